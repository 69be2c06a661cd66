"""Delete stale UDP flows on a separate thread: reading all flows can take longer than a sync may."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping

import structlog

from kproxy.addresses import Family
from kproxy.kernel.conntrack.types import Conntrack, ConntrackError, Flow
from kproxy.plan.stale_conntrack import Frontend, StaleConntrack
from kproxy.telemetry.metrics import Metrics
from kproxy.telemetry.series import CONNTRACK_DELETED, CONNTRACK_SYNC

log = structlog.stdlib.get_logger(__name__)

_AGAIN = 5.0
"""Seconds until the next try after a failure."""


class ConntrackCleaner:
    """Collects descriptions of stale flows from the run loop and deletes the flows, many at a time.

    `on_deleted` is called with the number of flows that were deleted for each change, by the change's number.
    """

    def __init__(self, make: Callable[[], Conntrack], metrics: Metrics | None = None) -> None:
        self._make = make
        self._metrics = metrics or Metrics()
        self.on_deleted: Callable[[Mapping[int, int]], None] = lambda _: None
        self._wanted: dict[Family, StaleConntrack] = {}
        self._changes: dict[Family, dict[str, int]] = {}
        """The number of the last change of each service whose flows are wanted."""
        self._news = threading.Condition()

    def submit(self, family: Family, stale: StaleConntrack, changes: Mapping[str, int] | None = None) -> None:
        """Queue flows for deletion; return at once. May be called from any thread.

        `changes`: the number of the change of each service, if it has one.
        """
        if not stale.kept and not stale.gone:
            return
        with self._news:
            self._wanted[family] = self._wanted.get(family, StaleConntrack()).then(stale)
            self._changes.setdefault(family, {}).update(changes or {})
            self._news.notify()

    def wake(self) -> None:
        """Wake `run`, so that it checks for the stop."""
        with self._news:
            self._news.notify()

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set and `wake` called; flows submitted before that are tried once more."""
        conntrack = self._make()
        ending = False
        while not ending:
            with self._news:
                self._news.wait_for(lambda: self._wanted or stop.is_set())
                ending = stop.is_set()
                wanted, self._wanted = self._wanted, {}
                numbers, self._changes = self._changes, {}
            for family, stale in wanted.items():
                changes = numbers.get(family, {})
                if not self._clean(conntrack, family, stale, changes):
                    with self._news:
                        self._wanted[family] = stale.then(self._wanted.get(family, StaleConntrack()))
                        self._changes[family] = changes | self._changes.get(family, {})
                    stop.wait(_AGAIN)

    def _clean(
        self, conntrack: Conntrack, family: Family, stale: StaleConntrack, changes: Mapping[str, int]
    ) -> bool:
        began = time.monotonic()
        try:
            found = [
                (flow, stale.services.get(frontend, ""))
                for flow in conntrack.udp_flows(family, stale.ports)
                if (frontend := _frontend(stale, flow)) is not None
            ]
            removed = conntrack.delete(family, [flow for flow, _ in found]) if found else []
        except ConntrackError as error:
            log.warning("flows_kept", family=family.value, reason=str(error))
            return False
        seconds = time.monotonic() - began
        self._metrics.observe(CONNTRACK_SYNC, family.value, value=seconds)
        self._metrics.add(CONNTRACK_DELETED, family.value, amount=len(removed))
        if removed:
            cost = round(seconds * 1000, 1)
            log.info("flows_removed", family=family.value, flows=len(removed), ms=cost)
            existed = set(removed)
            services = Counter(key for flow, key in found if flow in existed)
            self.on_deleted({changes[key]: count for key, count in services.items() if key in changes})
        return True


def _frontend(stale: StaleConntrack, flow: Flow) -> Frontend | None:
    return stale.frontend(flow.dst, flow.dst_port, flow.answers, flow.answers_port, answered=flow.answered)
