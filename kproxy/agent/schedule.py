"""When the next sync is due: at once after a quiet time, never more often than allowed, later after failures.

The least time between syncs is counted from the end of the last one, and grows with what syncs cost, so a
slow kernel gets at most half of a core (kubernetes#138073 tells what happens otherwise). One dear sync among
cheap ones, such as the first, makes nobody wait: what counts is the cheaper of the last two.

Changes seldom come alone: a pod is ready soon after its service, and a rollout is a handful of writes. So
rests that were not needed are saved, a few of them, and used to follow up at once; under steady load there is
nothing to save, and it costs what it would cost without.
"""

import random
from collections.abc import Callable

FIRST_RETRY = 0.2
"""Ceiling of the first backoff in seconds; it doubles with every failure, up to the sync period."""

EMPTY_REST = 10
"""Rest after a sync that wrote nothing, as a multiple of its cost: it takes a tenth of a core at most."""

SAVED_RESTS = 3
"""How many rests may be cut short, to `PAUSE` or what a sync costs, after a quiet time."""

PAUSE = 0.01
"""Seconds of the shortest rest: what is written together comes within them."""

LONGEST_SAVED = 0.1
"""A least time between syncs that is longer than this, in seconds, was asked for, and is kept each time."""

COALESCE_DELAY = 0.02
"""Seconds that a service which is half here waits for its other half, and all other changes with it at most.

What one client writes back to back is, through two watches, less than 1 ms apart in half of all cases and
4 ms in nine of ten, on a machine with five times as much to do as it has cores.
"""


class Schedule:
    """Due times of syncs on the time line of `clock` (seconds, monotonic)."""

    def __init__(
        self, min_period: float, max_period: float, clock: Callable[[], float], chance: random.Random
    ) -> None:
        self._min_period = min_period
        self._max_period = max_period
        self._clock = clock
        self._chance = chance
        self._not_before = self._rested = clock()
        self._cost = 0.0
        self._failures = 0
        self._retry_at: float | None = None
        self._blocked = False

    def set_periods(self, min_period: float, max_period: float) -> None:
        """Take other periods from the next sync on."""
        self._min_period = min_period
        self._max_period = max_period

    @property
    def failures(self) -> int:
        """How many syncs in a row left something undone."""
        return self._failures

    def succeeded(self, started: float, *, wrote: bool = True) -> None:
        """Note that a sync which began at `started` has just ended with everything applied.

        One that found nothing to write makes the next wait a little only: a service often comes in two
        parts, and the first alone changes nothing.
        """
        if wrote:
            self._ended(started)
        else:
            now = self._clock()
            self._not_before = now + min(self._min_period, EMPTY_REST * (now - started))
        self._failures = 0
        self._retry_at = None
        self._blocked = False

    def failed(self, started: float, *, blocked: bool) -> None:
        """Note that a sync left something undone.

        `blocked`: nothing could be applied, so new changes wait for the retry too; otherwise some services
        were refused, and changes of the others go ahead.
        """
        self._ended(started)
        self._failures += 1
        ceiling = min(self._max_period, FIRST_RETRY * 2 ** min(self._failures - 1, 16))
        self._retry_at = self._clock() + self._chance.uniform(FIRST_RETRY / 4, ceiling)
        self._blocked = blocked

    def retry_due(self) -> bool:
        """Whether it is time to try again what failed."""
        return self._retry_at is not None and self._clock() >= self._retry_at

    def due_in(self, *, changed: bool, incomplete_since: float | None = None) -> float | None:
        """Seconds until a sync is due (0: now); None if none is until something changes.

        `incomplete_since`: since when a service that is new is only half here, if one is.
        """
        due: float | None = None
        if changed and not self._blocked:
            due = (
                self._not_before
                if incomplete_since is None
                else max(self._not_before, incomplete_since + COALESCE_DELAY)
            )
        if self._retry_at is not None:
            retry = max(self._retry_at, self._not_before)
            due = retry if due is None else min(due, retry)
        return None if due is None else max(0.0, due - self._clock())

    def _ended(self, started: float) -> None:
        now = self._clock()
        cost = now - started
        cheaper = min(cost, self._cost)
        self._cost = cost
        rest = pause = max(self._min_period, cheaper)
        if self._min_period <= LONGEST_SAVED:
            pause = min(rest, max(PAUSE, cheaper))
        # When all rests would be over if none of them had been cut short.
        saved = SAVED_RESTS * rest
        self._rested = min(max(self._rested + cost, now), now + saved) + rest
        self._not_before = max(now + pause, self._rested - saved)
