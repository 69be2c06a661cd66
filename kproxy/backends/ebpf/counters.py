"""The numbers of one family's counters, and where each began.

The programs count connections by number, and a counter is never reset. So a frontend that gets a number
remembers what was counted under it before. Numbers of frontends that are gone are used again only when no
others are left, because the counters have to be read for that.
"""

from collections.abc import Callable, Iterable, Sequence


class Counters:
    """The numbers `offset`, `offset + step`, and so on, so that families share the counters without overlap.

    `read` returns all counters. Not thread-safe, except `since`.
    """

    def __init__(self, offset: int, step: int, read: Callable[[], Sequence[int]]) -> None:
        self._offset = offset
        self._step = step
        self._read = read
        self._next = offset
        self._free: list[int] = []
        self._retired: list[int] = []
        self._began: dict[int, int] = {}

    def is_own(self, number: int) -> bool:
        """Whether a number belongs to this family."""
        return number % self._step == self._offset

    def adopt(self, used: Iterable[int], size: int) -> None:
        """Begin with the numbers below `size` of which some are in use, by frontends that stand already.

        Those whose beginning is known keep it; all others count from now on.
        """
        own, known, counts = set(used), self._began, self._read()
        given = range(self._offset, self._next, self._step)
        self._began = {
            number: known.get(number, 0 if number in given else counts[number])
            if number in own
            else counts[number]
            for number in range(self._offset, size, self._step)
        }
        self._next = self._offset + len(self._began) * self._step
        self._retired = []
        self._free = [number for number in reversed(self._began) if number not in own]

    def take(self, size: int) -> int | None:
        """A number below `size` for a new frontend, or None if all are in use."""
        if self._free:
            return self._free.pop()
        if self._next < size:
            number = self._next
            self._next += self._step
            return number
        if not self._retired:
            return None
        counts = self._read()
        self._began.update({number: counts[number] for number in self._retired})
        self._free, self._retired = self._retired, []
        return self._free.pop()

    def give(self, number: int) -> None:
        """Take back the number of a frontend that is gone."""
        self._retired.append(number)

    def since(self, number: int, counts: Sequence[int]) -> int:
        """What was counted for the frontend that has a number now, of all counters as read."""
        now = counts[number] if number < len(counts) else 0
        return max(0, now - self._began.get(number, 0))  # the number may have changed hands since
