"""When a refused object is tried again: at growing intervals, as the kernel seldom changes its mind.

The first retry is soon, because some refusals pass (another program is half-way through its own change). The
longest interval bounds how long a service stays away after its cause is gone, for example after an operator
loaded a kernel module. The jitter is derived from the object's name, so that many nodes, or many objects of
one node, do not retry at the same moment, and a test needs no random source.
"""

import zlib
from collections.abc import Callable, Collection, Mapping

FIRST_RETRY = 1.0
"""Seconds until the first retry; each further refusal doubles the interval."""

LONGEST_RETRY = 300.0
"""The longest interval in seconds, and so the time within which an object is back once its cause is gone."""


def retry_interval(name: str, refusals: int) -> float:
    """Seconds until an object that was refused `refusals` (1 or more) times in succession is tried again."""
    longest = min(LONGEST_RETRY, FIRST_RETRY * 2.0 ** min(refusals - 1, 32))
    share = zlib.crc32(f"{name} {refusals}".encode()) / 2**32
    return longest * (0.75 + 0.25 * share)


class Leftovers:
    """Objects that no service needs and the kernel would not delete: the reason, and the next try."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._reasons: dict[str, str] = {}
        self._refusals: dict[str, int] = {}
        self._due: dict[str, float] = {}

    @property
    def reasons(self) -> dict[str, str]:
        """Every leftover with its reason."""
        return dict(self._reasons)

    def postponed(self) -> dict[str, str]:
        """The leftovers that are not due yet, with their reasons."""
        now = self._clock()
        return {name: reason for name, reason in self._reasons.items() if self._due[name] > now}

    def replace(self, found: Mapping[str, str], postponed: Collection[str]) -> int:
        """Replace all leftovers; return how many of them were tried, which `postponed` ones were not."""
        now = self._clock()
        self._refusals = {name: self._refusals.get(name, 0) for name in found}
        self._due = {name: self._due.get(name, now) for name in found}
        self._reasons = dict(found)
        tried = [name for name in found if name not in postponed]
        for name in tried:
            self._refusals[name] += 1
            self._due[name] = now + retry_interval(name, self._refusals[name])
        return len(tried)

    def retry(self) -> None:
        """Make all due."""
        now = self._clock()
        self._due = dict.fromkeys(self._due, now)
        self._refusals = dict.fromkeys(self._refusals, 0)

    def next_due(self) -> float | None:
        """The time of the next try, or None."""
        return min(self._due.values(), default=None)
