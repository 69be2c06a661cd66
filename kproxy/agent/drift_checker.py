"""Check the kernel for drift: often where a check is cheap, seldom where it is expensive.

A check takes some microseconds where the kernel counts changes, and a second where all rules of a large node
are compared. So the duration of a comparison determines when the next one may run, and it gives way to a
change where the mode can.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import structlog

from kproxy.addresses import Family
from kproxy.backends.core.base import CheckError, CheckPostponed, Drift
from kproxy.kernel.links import AddressNews
from kproxy.modes.base import Mode
from kproxy.node.kube_proxy_process import warn_of_kube_proxy

log = structlog.stdlib.get_logger(__name__)

QUICK_PERIOD = 2.0
"""Seconds between reads of the kernel's change counters, which take a few microseconds each."""

FULL_PERIOD = 900.0
"""Seconds between comparisons of all rules even if the counters say that nothing changed."""

CHECK_SHARE = 20
"""A comparison that took t seconds is not repeated within this many times t (500 times for full ones)."""

LONGEST_POSTPONED = 60.0
"""Seconds for which a comparison gives way to changes; then it runs to its end."""

SUSPICION_PERIOD = 60.0
"""Seconds between searches for a kube-proxy that may have caused the drift."""


class Checked(Protocol):
    """What can be compared with the kernel; see Backend for both."""

    gives_way: Callable[[], bool]

    def check(self, *, full: bool = False) -> tuple[Drift, ...]:
        """Compare, and return the drift. Raises CheckError, CheckPostponed."""


class Compared(Protocol):
    """One family of what is compared."""

    @property
    def family(self) -> Family:
        """The IP family."""

    @property
    def backend(self) -> Checked:
        """What compares it."""


class DriftObserver(Protocol):
    """What records the outcome of comparisons; see SyncObserver."""

    def drifted(self, family: Family, drifts: Sequence[Drift]) -> None:
        """Record drift."""

    def compared(self, family: Family, *, clean: bool) -> None:
        """Record a comparison."""

    def not_compared(self, family: Family, reason: str) -> None:
        """Record a comparison that failed."""

    def confirmed(self, family: Family) -> None:
        """Record that the kernel has the applied state."""


class DriftChecker:
    """Decides when the kernel is compared with the applied state; `next_check` is that time of `clock`.

    `waits` returns whether a change waits that is more urgent. `suspects`: whether a kube-proxy may have
    caused the drift.
    """

    def __init__(
        self,
        observer: DriftObserver,
        clock: Callable[[], float],
        waits: Callable[[], bool] = lambda: False,
        *,
        suspects: bool = True,
    ) -> None:
        self.next_check = 0.0
        self._observer = observer
        self._clock = clock
        self._waits = waits
        self._suspects = suspects
        self._postponed_since: float | None = None
        self._compare_from = 0.0
        self._next_full = 0.0
        self._next_suspicion = 0.0

    def begin(self) -> None:
        """Start the periods: everything was just read and written, so a full comparison can wait."""
        self._next_full = self._clock() + FULL_PERIOD

    def soon(self) -> None:
        """Make the next check due as soon as a comparison may run; may be called from any thread."""
        self.next_check = min(self.next_check, max(self._clock(), self._compare_from))

    def check(self, syncs: Iterable[Compared], in_step: Callable[[], bool]) -> bool:
        """Compare if a comparison is due; return True if anything drifted.

        `in_step` returns whether no change waits to be applied: a comparison without drift then confirms
        the applied state.
        """
        now = self._clock()
        self.next_check = now + QUICK_PERIOD
        if now < self._compare_from:
            self.next_check = min(self.next_check, self._compare_from)  # `soon` may have asked for it
            return False
        full = now >= self._next_full
        drifted = False
        for sync in syncs:
            sync.backend.gives_way = self._gives_way
            try:
                drifts = sync.backend.check(full=full)
            except CheckPostponed:
                if self._postponed_since is None:
                    self._postponed_since = now
                return drifted
            except CheckError as error:
                log.warning("check_failed", family=sync.family.value, reason=str(error))
                self._observer.not_compared(sync.family, str(error))
                continue
            self._observer.compared(sync.family, clean=not drifts)
            if drifts:
                self.log_drifts(sync.family, drifts)
                drifted = True
            elif in_step():
                self._observer.confirmed(sync.family)
        self._postponed_since = None
        cost = self._clock() - now
        self._compare_from = self._clock() + CHECK_SHARE * cost
        if full:
            self._next_full = self._clock() + max(FULL_PERIOD, 500 * cost)
        return drifted

    def _gives_way(self) -> bool:
        since = self._postponed_since
        return (since is None or self._clock() - since < LONGEST_POSTPONED) and self._waits()

    def compare_addresses(self, mode: Mode, news: AddressNews) -> bool:
        """Compare the addresses that `news` names; return True if any of them drifted."""
        try:
            found = mode.compare_addresses(news)
        except CheckError as error:
            log.warning("check_failed", reason=str(error))
            for family in mode.families:
                self._observer.not_compared(family, str(error))
            return False
        for family, drifts in found.items():
            self.log_drifts(family, drifts)
        return bool(found)

    def log_drifts(self, family: Family, drifts: Sequence[Drift]) -> None:
        """Report the drift to the observer, and look for a kube-proxy that may have caused it."""
        self._observer.drifted(family, drifts)
        if self._suspects and self._clock() >= self._next_suspicion:
            self._next_suspicion = self._clock() + SUSPICION_PERIOD
            warn_of_kube_proxy(ask=False)
