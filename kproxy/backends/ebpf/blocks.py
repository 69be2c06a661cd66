"""The slots of an array in blocks of consecutive ones, one block for each frontend.

A program reads a frontend first, and then a slot of its block. Between the two the frontend may get another
block. So a freed block waits before others may have it: with immediate reuse 32 of 40,000 connections went to
an endpoint of another service at 40,000 changes a second, and none with `QUARANTINE`.
"""

import time
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterable

QUARANTINE = 0.002
"""Seconds until a freed block is used again; see above."""


def room_for(count: int) -> int:
    """The slots of a block for `count` endpoints: 1, 2, 3, 4, 6, 8, 12, 16 and so on, at least as many.

    A few sizes leave few gaps that fit nothing, and a service that grows by one often keeps its block.
    """
    power = 1 << (count - 1).bit_length()
    smaller = power * 3 // 4
    return smaller if count <= smaller else power


class Blocks:
    """Which slots are free, in use, or waiting. `clock` returns monotonic seconds; `wait` lets some pass."""

    def __init__(
        self,
        size: int,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
        taken: Iterable[tuple[int, int]] = (),
    ) -> None:
        """`taken`: (first slot, slots) of each block in use, in order; they do not overlap."""
        self._clock = clock
        self._wait = wait
        self._sizes: list[int] = []
        """The sizes of free ranges, each once, in order."""
        self._by_size: dict[int, dict[int, None]] = {}
        self._by_start: dict[int, int] = {}
        self._by_end: dict[int, int] = {}
        self._waiting: deque[tuple[float, int, int]] = deque()
        self.size = size
        self.free = size
        """Slots in free ranges."""
        self.waiting = 0
        """Slots of freed blocks that wait."""
        at = 0
        for first, count in taken:
            self._add(at, first - at)
            self.free -= count
            at = first + count
        self._add(at, size - at)

    @property
    def used(self) -> int:
        """Slots of blocks in use."""
        return self.size - self.free - self.waiting

    def take(self, count: int) -> int | None:
        """The first of `count` slots that nothing else uses, or None if there are none."""
        self.release()
        at = bisect_left(self._sizes, count)
        if at == len(self._sizes):
            return None
        size = self._sizes[at]
        first = next(iter(self._by_size[size]))
        self._remove(first, size)
        self._add(first + count, size - count)
        self.free -= count
        return first

    def take_late(self, count: int) -> int | None:
        """As `take`, but wait for freed blocks, at most `QUARANTINE` seconds, as long as there is no room."""
        while (first := self.take(count)) is None and self._waiting:
            self._wait(max(0.0, self._waiting[0][0] - self._clock()))
        return first

    def give(self, first: int, count: int) -> None:
        """Free a block; it waits before its slots are used again."""
        self._waiting.append((self._clock() + QUARANTINE, first, count))
        self.waiting += count

    def extend(self, size: int) -> None:
        """Add free slots at the end, up to `size`."""
        if size > self.size:
            self._merge(self.size, size - self.size)
            self.free += size - self.size
            self.size = size

    def release(self) -> None:
        """Make the blocks free that have waited."""
        if not self._waiting:
            return
        now = self._clock()
        while self._waiting and self._waiting[0][0] <= now:
            _, first, count = self._waiting.popleft()
            self.waiting -= count
            self.free += count
            self._merge(first, count)

    def _merge(self, first: int, count: int) -> None:
        """Add a free range, joined with those before and after it."""
        before = self._by_end.get(first)
        if before is not None:
            self._remove(before, first - before)
            first, count = before, first - before + count
        after = self._by_start.get(first + count)
        if after is not None:
            self._remove(first + count, after)
            count += after
        self._add(first, count)

    def _add(self, first: int, count: int) -> None:
        if count <= 0:
            return
        self._by_start[first] = count
        self._by_end[first + count] = first
        same = self._by_size.get(count)
        if same is None:
            insort(self._sizes, count)
            same = self._by_size[count] = {}
        same[first] = None

    def _remove(self, first: int, count: int) -> None:
        del self._by_start[first], self._by_end[first + count]
        same = self._by_size[count]
        del same[first]
        if not same:
            del self._by_size[count]
            del self._sizes[bisect_left(self._sizes, count)]
