"""Follow the bridges of this node, so that packets between pods of one bridge are judged from the first.

A bridge is made with the first pod on it, and its containers start tens of milliseconds later; the kernel's
event comes in time. Flags that others clear are set again and reported as drift.
"""

import contextlib
import os
import select
import threading
from collections.abc import Callable, Collection

import structlog

from kproxy.addresses import Family
from kproxy.backends.core.base import Difference, Drift
from kproxy.kernel import bridges
from kproxy.kernel.bridges import FLAGS
from kproxy.node.pod_bridges import LOAD, MISSING, BridgeReport, PodBridges

log = structlog.stdlib.get_logger(__name__)

RESCAN = 60.0
"""Seconds between looks without an event."""
REST = 0.1
"""Seconds between two looks, so that another program that clears a flag at once costs little."""
REOPEN = 5.0
"""Seconds until events are subscribed to again after a failure; the bridges are looked at all the same."""

Drifted = Callable[[Family, tuple[Drift, ...]], None]


class BridgeWatch:
    """Keeps the flags set in its thread `run`; others call `turn`, `follow`, `wake` and `report`.

    `interfaces` returns the interfaces that CNI results name; call `wake` when there are others.
    """

    def __init__(
        self,
        pods: PodBridges,
        interfaces: Callable[[], Collection[str]],
        drifted: Drifted,
    ) -> None:
        self.report = BridgeReport()
        self._pods = pods
        self._interfaces = interfaces
        self._drifted = drifted
        self._addresses: Collection[str] = ()
        self._looked: Collection[str] = ()
        """The addresses of the last look."""
        self._on = True
        self._looking = threading.Lock()
        self._lock = threading.Lock()
        self._woken: int | None = None
        """An event descriptor while `run` waits."""

    def turn(self, *, on: bool) -> None:
        """Set flags, or leave all bridges alone; when this returns, a look that had begun has ended."""
        with self._looking:
            self._on = on
            if not on:
                self._pods.forget()
        self.wake()

    def follow(self, addresses: Collection[str]) -> None:
        """These are the addresses of local pods now."""
        if addresses != self._addresses:
            self._addresses = addresses
            self.wake()

    def prepare(self, addresses: Collection[str]) -> None:
        """Look now, on the calling thread, with these addresses too."""
        self._addresses = frozenset(self._addresses).union(addresses)
        self.look()

    def wake(self) -> None:
        """Look at the bridges now; after the stop, end `run`."""
        with self._lock:
            if self._woken is not None:
                os.eventfd_write(self._woken, 1)

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set and `wake` called; pods that came before are looked for once more."""
        with self._lock:
            woken = self._woken = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            while not stop.is_set():
                try:
                    with bridges.events() as events:
                        self._follow(stop, events, woken)
                except OSError as error:
                    log.warning(
                        "bridge_events_failed", reason=error.strerror or str(error), retry_seconds=REOPEN
                    )
                    self.look()
                    stop.wait(REOPEN)
            if self._looked is not self._addresses:
                self.look()
        finally:
            with self._lock:
                self._woken = None
                os.close(woken)

    def look(self) -> None:
        """Set what is missing, and log what is new."""
        before = self.report
        with self._looking:
            self._looked = self._addresses
            if not self._on:
                self.report = BridgeReport()
                return
            self.report = now = self._pods.ensure(self._addresses, self._interfaces())
        for each in now.flags:
            flag = FLAGS[each.family]
            if each.again:
                drift = Drift("bridge", each.bridge, Difference.MODIFIED, f"{flag} was cleared")
                self._drifted(each.family, (drift,))
            log.info("bridge_judged", bridge=each.bridge, flag=flag, value=1)
        for problem in now.problems:
            if problem not in before.problems:
                remedy = {"remedy": LOAD} if problem == MISSING else {}
                log.error("bridge_not_judged", bridges=list(now.bridges), reason=problem, **remedy)

    def _follow(self, stop: threading.Event, events: bridges.BridgeEvents, woken: int) -> None:
        poller = select.poll()
        poller.register(events.fileno(), select.POLLIN)
        poller.register(woken, select.POLLIN)
        while not stop.is_set():
            self.look()
            due = False
            while not due and not stop.is_set():
                ready = {number for number, _ in poller.poll(RESCAN * 1000)}
                due = not ready
                if woken in ready:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(woken)
                    due = True
                if events.fileno() in ready:
                    due |= events.changed()
            stop.wait(REST if self.report.flags else 0)
