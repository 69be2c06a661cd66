"""How the lines of many services stand in the chains they share.

A service's lines are written as if they stood in one root chain, in any layout. A Placement says in which
chain each really stands; it is a pure function of the lines, so that an incremental write ends where a full
one would.
"""

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from kproxy.backends.iptables.names import ChainId

Entry = tuple[int, str, int, str]
"""(sort key, service, position among the service's lines, `-A ROOT ...` with its line feed)."""


class Placement(Protocol):
    """The chains of one kind of lines. Equal ones put the same lines in the same places."""

    @property
    def root(self) -> ChainId:
        """The chain that packets enter first."""

    def key(self, rule: str) -> int:
        """Where a line belongs: lines are kept sorted by it."""

    def places(self, rule: str) -> bool:
        """Whether a rule that was found is a line of a service, as far as this placement is concerned."""

    def contains(self, chain: str) -> bool:
        """Whether a chain of the root's table is one of these, the root aside."""

    def chains(
        self, entries: Sequence[Entry], at: Collection[int] | None = None
    ) -> dict[str, tuple[str, ...]]:
        """The chains with their rules, for sorted entries: all of them, or those that the keys lead through.

        Where two lists of entries differ, the chains that differ are among those of the keys `around` the
        difference in either.
        """


@dataclass(frozen=True)
class Flat:
    """All lines in the root chain, by service, and after them a tail: what kube-proxy does."""

    root: ChainId
    tail: tuple[str, ...] = ()

    def key(self, rule: str) -> int:
        """Services are sorted by name alone."""
        del rule
        return 0

    def places(self, rule: str) -> bool:
        """Every one can stay until it is known to be useless."""
        del rule
        return True

    def contains(self, chain: str) -> bool:
        """There are no others."""
        del chain
        return False

    def chains(
        self, entries: Sequence[Entry], at: Collection[int] | None = None
    ) -> dict[str, tuple[str, ...]]:
        """The root chain."""
        del at
        return {self.root[1]: (*[entry[3] for entry in entries], *self.tail)}


def entries_of(placement: Placement, lines: Mapping[str, Iterable[str]]) -> list[Entry]:
    """Sorted entries of all services' lines."""
    found = [
        (placement.key(rule), service, n, rule)
        for service, rules in lines.items()
        for n, rule in enumerate(rules)
    ]
    found.sort()
    return found


def replaced(
    placement: Placement, old: Sequence[Entry], lines: Mapping[str, Iterable[str]]
) -> tuple[list[Entry], set[int]]:
    """The entries with those of some services replaced, and the keys at which that makes a difference."""
    kept = [entry for entry in old if entry[1] not in lines]
    come = entries_of(placement, lines)
    gone = {entry for entry in old if entry[1] in lines}
    differs = {entry[0] for entry in gone.symmetric_difference(come)}
    kept += come
    kept.sort()
    return kept, differs


def around(entries: Sequence[Entry], keys: Iterable[int]) -> set[int]:
    """Some keys with those next to them: one that comes or goes may divide its neighbours."""
    found = set(keys)
    for key in tuple(found):
        before, after = bisect_left(entries, (key,)), bisect_left(entries, (key + 1,))
        if before > 0:
            found.add(entries[before - 1][0])
        if after < len(entries):
            found.add(entries[after][0])
    return found


def rerooted(placement: Placement, line: str) -> str:
    """A line of any of the chains as if it stood in the root."""
    return f"-A {placement.root[1]} {line.split(' ', 2)[2]}"
