"""Notice for next to nothing that somebody else changed the rules.

The kernel counts: nf_tables has a generation that every commit advances, x_tables tells the size of each
table. As long as the count is the one that our own last write left behind, nobody else has written.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kproxy.kernel.xtables.types import RulesetGeneration


class ForeignWrites:
    """Follows one ruleset's stamp; all backends that write to the same ruleset share one."""

    def __init__(self, read: Callable[[], RulesetGeneration | None]) -> None:
        self._read = read
        self._last: RulesetGeneration | None = None
        self._foreign = 0

    @property
    def foreign_writes(self) -> int:
        """How many times somebody else's writing was noticed; a reader compares it with what it saw last."""
        self._notice()
        return self._foreign

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Surround one restore of our own, of one table, so that it is not taken for somebody else's.

        Where the kernel counts commits, ours is at most one: any further one is somebody else's.
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
