"""Detect cheaply that other programs changed the rules.

nf_tables has a generation counter that every commit advances; x_tables reports the size of each table. While
the value is the one after kproxy's own last write, no other program has written.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kproxy.kernel.xtables.types import RulesetGeneration


class ForeignWrites:
    """Counts foreign writes to one ruleset; all backends that write to the same ruleset share one.

    `read` returns the ruleset's generation, or None if it is unknown; that counts as a foreign write.
    """

    def __init__(self, read: Callable[[], RulesetGeneration | None]) -> None:
        self._read = read
        self._last: RulesetGeneration | None = None
        self._foreign = 0

    @property
    def foreign_writes(self) -> int:
        """Number of foreign writes detected so far; a reader compares it with the number it saw last."""
        self._notice()
        return self._foreign

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Surround one restore of one table by kproxy, so that it does not count as foreign.

        Where the kernel counts commits, the restore makes at most one; any further commit is foreign.
        """
        self._notice()
        before = self._last
        try:
            yield
        finally:
            after = self._last = self._read()
            if before and after and before.commits is not None and after.commits is not None:
                self._foreign += after.commits - before.commits > 1

    def _notice(self) -> None:
        now = self._read()
        if now is None or now != self._last:
            self._foreign += 1
            self._last = now
