"""Compute when the next sync is due: at once after an idle period, limited in rate, delayed after failures.

The minimum interval is counted from the end of the last sync and grows with the cost of syncs, so that syncs
take at most half of a core (kubernetes#138073 reports a node where they took more). One expensive sync among
cheap ones, such as the first, does not delay the next: the cheaper of the last two counts.

The default interval is an upper bound: cheap syncs rest `COST_RESTS` times their cost, so that they and the
decoding of what changes take less than a tenth of a core. Any other interval was asked for, and is kept.

Changes often come in groups: a pod is ready soon after its service, and a rollout is several writes. So a few
unused rests are saved and spent on immediate follow-up syncs. Under steady load no rest is unused, and the
rate is the same as without saving.
"""

import random
from collections.abc import Callable, Collection

from kproxy.backends.core.base import SyncReport
from kproxy.config.schema_modes import MIN_SYNC_PERIOD

FIRST_RETRY = 0.2
"""Upper bound of the first backoff in seconds; it doubles with every failure, up to the sync period."""

COST_RESTS = 12
"""Rest after a sync, as a multiple of its cost, where the default interval is longer than that."""

EMPTY_REST = 10
"""Rest after a sync that wrote nothing, as a multiple of its cost: such syncs use at most 10 % of a core."""

SAVED_RESTS = 3
"""The number of rests that may be shortened, to `PAUSE` or the cost of a sync, after an idle period."""

PAUSE = 0.01
"""Seconds of the shortest rest: changes that a client writes together arrive within it."""

LONGEST_SAVED = 0.1
"""Seconds; a configured minimum interval longer than this is deliberate and never shortened."""

COALESCE_DELAY = 0.02
"""Seconds that an incomplete service waits for its other object; all other changes wait at most as long.

Two consecutive writes of one client arrive through two watches less than 1 ms apart in half of all cases and
less than 4 ms apart in 90 %, measured on a machine with a load of five times its cores.
"""


class Schedule:
    """Due times of syncs in the time of `clock` (seconds, monotonic).

    `cost_rests`: the rest after a sync, as a multiple of its cost, unless `min_period` was configured.
    """

    def __init__(
        self,
        min_period: float,
        max_period: float,
        clock: Callable[[], float],
        chance: random.Random,
        cost_rests: float = COST_RESTS,
    ) -> None:
        self._cost_rests = cost_rests
        self._min_period = min_period
        self._max_period = max_period
        self._clock = clock
        self._chance = chance
        self._not_before = self._rested = clock()
        self._cost = 0.0
        self._failures = 0
        self._retry_at: float | None = None
        self._refused_at: float | None = None
        self._blocked = False

    def set_periods(self, min_period: float, max_period: float) -> None:
        """Use other periods from the next sync on."""
        self._min_period = min_period
        self._max_period = max_period

    @property
    def failures(self) -> int:
        """The number of consecutive tries that did not apply everything."""
        return self._failures

    def concluded(
        self, started: float, reports: Collection[SyncReport], *, blocked: bool, failing: bool
    ) -> None:
        """Note that a sync which began at `started` has just ended with these `reports`; see `failed`."""
        if failing or any(report.incomplete for report in reports):
            retries = [report.retry_in for report in reports if report.retry_in is not None]
            self.failed(started, blocked=blocked, failing=failing, retry_in=min(retries, default=None))
        else:
            self.succeeded(started, wrote=any(report.changes for report in reports))

    def succeeded(self, started: float, *, wrote: bool = True) -> None:
        """Note that a sync which began at `started` has just ended with everything applied.

        A sync that wrote nothing delays the next one only a little: a service often arrives as two objects,
        and the first one alone changes nothing.
        """
        if wrote:
            self._ended(started)
        else:
            now = self._clock()
            self._not_before = now + min(self._min_period, EMPTY_REST * (now - started))
        self._failures = 0
        self._retry_at = self._refused_at = None
        self._blocked = False

    def failed(
        self, started: float, *, blocked: bool, failing: bool = False, retry_in: float | None = None
    ) -> None:
        """Note that a sync did not apply everything.

        `blocked`: nothing could be applied, so new changes wait for the retry too. `failing`: a family failed
        as a whole. Otherwise some services were refused; `retry_in` is the time in seconds until a backend
        tries them again, if it decides that itself. A sync for other changes postpones no retry.
        """
        self._ended(started)
        now = self._clock()
        self._blocked = blocked
        self._refused_at = None if retry_in is None else now + retry_in
        if retry_in is not None and not blocked and not failing:
            self._failures += 1
            self._retry_at = None
            return
        if not blocked and self._retry_at is not None and self._retry_at > started:
            return
        self._failures += 1
        ceiling = min(self._max_period, FIRST_RETRY * 2 ** min(self._failures - 1, 16))
        self._retry_at = now + self._chance.uniform(FIRST_RETRY / 4, ceiling)

    def retry_due(self) -> bool:
        """Whether the retry after a failure as a whole is due."""
        return self._retry_at is not None and self._clock() >= self._retry_at

    def due_in(
        self, *, changed: bool, incomplete_since: float | None = None, unfinished: bool = False
    ) -> float | None:
        """Seconds until a sync is due (0: now); None if none is due before a change.

        `incomplete_since`: the time since which a new service is incomplete; None if there is none.
        `unfinished`: the last sync left changes for the next one, which follows without a rest.
        """
        if unfinished and not self._blocked:
            return 0.0
        due: float | None = None
        if changed and not self._blocked:
            due = (
                self._not_before
                if incomplete_since is None
                else max(self._not_before, incomplete_since + COALESCE_DELAY)
            )
        for retry_at in (self._retry_at, self._refused_at):
            if retry_at is not None:
                retry = max(retry_at, self._not_before)
                due = retry if due is None else min(due, retry)
        return None if due is None else max(0.0, due - self._clock())

    def _least_rest(self, cost: float) -> float:
        """The minimum interval, or less after a cheap sync; see the module's text."""
        if self._min_period != MIN_SYNC_PERIOD:
            return self._min_period
        return min(self._min_period, max(PAUSE, self._cost_rests * cost))

    def _ended(self, started: float) -> None:
        now = self._clock()
        cost = now - started
        cheaper = min(cost, self._cost)
        self._cost = cost
        rest = pause = max(self._least_rest(cheaper), cheaper)
        if self._min_period <= LONGEST_SAVED:
            pause = min(rest, max(PAUSE, cheaper))
        # The end of all rests if none of them had been shortened.
        saved = SAVED_RESTS * rest
        self._rested = min(max(self._rested + cost, now), now + saved) + rest
        self._not_before = max(now + pause, self._rested - saved)
