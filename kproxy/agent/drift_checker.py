"""Looking for what others changed in the kernel, often where that is cheap and seldom where it is not.

A look costs some microseconds where the kernel counts changes, and a second where all rules of a large node
are compared. So what one cost says when the next may be.
"""

from collections.abc import Callable, Iterable, Sequence

import structlog

from kproxy.addresses import Family
from kproxy.agent.family_sync import FamilySync
from kproxy.backends.core.base import CheckError, Drift
from kproxy.kernel.links import AddressNews
from kproxy.modes.base import Mode
from kproxy.node.kube_proxy_process import warn_of_kube_proxy
from kproxy.telemetry.observer import SyncObserver

log = structlog.stdlib.get_logger(__name__)

QUICK_PERIOD = 2.0
"""Seconds between looks at the kernel's change counters, a few microseconds each."""

FULL_PERIOD = 900.0
"""Seconds between comparisons of all rules even if the counters say that nothing changed."""

CHECK_SHARE = 20
"""A comparison that took t seconds is not repeated within this many times t (500 times for thorough ones)."""

SUSPICION_PERIOD = 60.0
"""Seconds between looks for a kube-proxy that may have written what drifted."""


class DriftChecker:
    """When the kernel is compared with what was applied; `next_look` is the time of `clock` for that."""

    def __init__(self, observer: SyncObserver, clock: Callable[[], float]) -> None:
        self.next_look = 0.0
        self._observer = observer
        self._clock = clock
        self._next_check = 0.0
        self._next_full = 0.0
        self._next_suspicion = 0.0

    def begin(self) -> None:
        """All was just read and written, so a comparison of everything has time."""
        self._next_full = self._clock() + FULL_PERIOD

    def look(self, sides: Iterable[FamilySync], in_step: Callable[[], bool]) -> bool:
        """Compare, if it is time; True if anything drifted.

        `in_step` says whether nothing waits to be applied: what is as it should be is then confirmed.
        """
        now = self._clock()
        self.next_look = now + QUICK_PERIOD
        if now < self._next_check:
            return False
        full = now >= self._next_full
        drifted = False
        for side in sides:
            try:
                drifts = side.backend.check(full=full)
            except CheckError as error:
                log.warning("check_failed", family=side.family.value, reason=str(error))
                self._observer.not_compared(side.family, str(error))
                continue
            self._observer.compared(side.family, clean=not drifts)
            if drifts:
                self.tell(side.family, drifts)
                drifted = True
            elif in_step():
                self._observer.confirmed(side.family)
        cost = self._clock() - now
        self._next_check = self._clock() + CHECK_SHARE * cost
        if full:
            self._next_full = self._clock() + max(FULL_PERIOD, 500 * cost)
        return drifted

    def compare_addresses(self, mode: Mode, news: AddressNews) -> bool:
        """Compare the addresses that there are news of; True if the mode wants any of them otherwise."""
        try:
            found = mode.compare_addresses(news)
        except CheckError as error:
            log.warning("check_failed", reason=str(error))
            for family in mode.families:
                self._observer.not_compared(family, str(error))
            return False
        for family, drifts in found.items():
            self.tell(family, drifts)
        return bool(found)

    def tell(self, family: Family, drifts: Sequence[Drift]) -> None:
        """Report and log what drifted."""
        self._observer.drifted(family, drifts)
        shown = [str(drift) for drift in drifts[:10]]
        log.warning("drift_found", family=family.value, objects=len(drifts), first=shown)
        if self._clock() >= self._next_suspicion:
            self._next_suspicion = self._clock() + SUSPICION_PERIOD
            warn_of_kube_proxy(ask=False)
