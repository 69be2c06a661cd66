"""Detect cheaply that other programs changed the rules.

nf_tables has a generation counter that every commit advances, of any table of the network namespace; x_tables
reports the size of each table. While the value is the one after kproxy's own last write, no other program has
written.

Several threads of kproxy may write to one ruleset at the same time. No lock is held then, so the value
cannot be read between two such writes. Where the kernel counts commits, each of them may account for one:
what is more than that, is foreign.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kproxy.kernel.xtables.types import RulesetGeneration

Read = Callable[[], RulesetGeneration | None]
"""Returns a ruleset's generation, or None if it is unknown; that counts as a foreign write."""


class ForeignWrites:
    """Counts foreign writes to one ruleset; everything that writes to it shares one. Thread-safe."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._last: RulesetGeneration | None = None
        self._foreign = 0
        self._running = 0
        self._own = 0
        """Own writes since `_last` was read, each of which may have made a commit."""

    @property
    def foreign_writes(self) -> int:
        """Number of foreign writes detected so far; a reader compares it with the number it saw last."""
        with self._lock:
            self._notice()
            return self._foreign

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Surround one restore of one table by kproxy, so that it does not count as foreign.

        Where the kernel counts commits, the restore makes at most one; any further commit is foreign.
        """
        with self._lock:
            self._notice()
            self._running += 1
            self._own += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                self._settle()

    def _notice(self) -> None:
        now = self._read()
        if now is None or self._last is None or self._differs(now):
            self._foreign += 1
            self._restart(now)

    def _settle(self) -> None:
        now = self._read()
        if now is not None and self._last is not None and now.commits is not None and self._differs(now):
            self._foreign += 1
            self._restart(now)
        elif not self._running or now is None or self._last is None:
            self._restart(now)

    def _differs(self, now: RulesetGeneration) -> bool:
        """Whether own writes do not account for the difference from the last value."""
        before = self._last
        if before is None or before.commits is None or now.commits is None:
            return not self._running and now != before
        return not 0 <= now.commits - before.commits <= self._own

    def _restart(self, now: RulesetGeneration | None) -> None:
        """Compare with this value from now on; writes that are running may still make their commit."""
        self._last = now
        self._own = self._running


RulesetWatches = dict[object, ForeignWrites]
"""The watch of each ruleset of the namespace, by `Variant.NFT` for nftables and by family for x_tables.

Everything in this process that writes to a ruleset uses the same; `setdefault` may be called by any thread.
"""
