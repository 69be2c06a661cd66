"""Delete stale UDP flows on a separate thread: reading all flows can take longer than a sync may."""

import threading
import time
from collections.abc import Callable

import structlog

from kproxy.addresses import Family
from kproxy.kernel.conntrack.types import Conntrack, ConntrackError
from kproxy.plan.stale_conntrack import StaleConntrack
from kproxy.telemetry.metrics import Metrics
from kproxy.telemetry.series import CONNTRACK_DELETED, CONNTRACK_SYNC

log = structlog.stdlib.get_logger(__name__)

_AGAIN = 5.0
"""Seconds until the next try after a failure."""


class ConntrackCleaner:
    """Collects descriptions of stale flows from the run loop and deletes the flows, many at a time."""

    def __init__(self, make: Callable[[], Conntrack], metrics: Metrics | None = None) -> None:
        self._make = make
        self._metrics = metrics or Metrics()
        self._wanted: dict[Family, StaleConntrack] = {}
        self._news = threading.Condition()

    def submit(self, family: Family, stale: StaleConntrack) -> None:
        """Queue flows for deletion; return at once. May be called from any thread."""
        if not stale.kept and not stale.gone:
            return
        with self._news:
            self._wanted[family] = self._wanted.get(family, StaleConntrack()).then(stale)
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
            for family, stale in wanted.items():
                if not self._clean(conntrack, family, stale):
                    with self._news:
                        self._wanted[family] = stale.then(self._wanted.get(family, StaleConntrack()))
                    stop.wait(_AGAIN)

    def _clean(self, conntrack: Conntrack, family: Family, stale: StaleConntrack) -> bool:
        began = time.monotonic()
        try:
            found = [
                flow
                for flow in conntrack.udp_flows(family, stale.ports)
                if stale.covers(
                    flow.dst, flow.dst_port, flow.answers, flow.answers_port, answered=flow.answered
                )
            ]
            removed = conntrack.delete(family, found) if found else 0
        except ConntrackError as error:
            log.warning("flows_kept", family=family.value, reason=str(error))
            return False
        seconds = time.monotonic() - began
        self._metrics.observe(CONNTRACK_SYNC, family.value, value=seconds)
        self._metrics.add(CONNTRACK_DELETED, family.value, amount=removed)
        if removed:
            cost = round(seconds * 1000, 1)
            log.info("flows_removed", family=family.value, flows=removed, ms=cost)
        return True
