"""How the lines of many services stand in the chains they share.

A service's lines are written as if they stood in one root chain, in any layout. A Placement says in which
chain each really stands; it is a pure function of the lines, so that an incremental write ends where a full
one would.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from kproxy.backends.iptables.names import ChainId

Entry = tuple[int, str, int, str]
"""(sort key, service, position among the service's lines, `-A ROOT ...` with its line feed)."""


Known = Callable[[str], bool]
"""Whether a chain stands as it shall, as long as no key in it changes."""


def nothing(chain: str) -> bool:
    """No chain is known."""
    del chain
    return False


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
        self, entries: Sequence[Entry], at: Collection[int] | None = None, known: Known = nothing
    ) -> dict[str, tuple[str, ...]]:
        """The chains with their rules, for sorted entries.

        With `at`, chains that no key of these leads through are left out, with all that they lead to, if they
        are `known`.
        """

    def inner(self, rules: Iterable[str]) -> Iterator[str]:
        """Those of these chains that rules lead to."""


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
        self, entries: Sequence[Entry], at: Collection[int] | None = None, known: Known = nothing
    ) -> dict[str, tuple[str, ...]]:
        """The root chain."""
        del at, known
        return {self.root[1]: (*[entry[3] for entry in entries], *self.tail)}

    def inner(self, rules: Iterable[str]) -> Iterator[str]:
        """None."""
        del rules
        yield from ()


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


def changed_chains(
    placement: Placement, old: Sequence[Entry], new: Sequence[Entry], keys: Collection[int], known: Known
) -> tuple[dict[str, tuple[str, ...]], set[str]]:
    """What leads from the chains of `old` to those of `new`, which differ at some keys.

    The chains that may have other rules, with these, and those that are not needed any more. A chain without
    any of the keys in it changes as well where one above it comes to be divided, or ceases to be: it is not
    `known` yet, or nothing leads to it any more.
    """
    written = placement.chains(new, keys, known)
    needed = {*written, *(chain for rules in written.values() for chain in placement.inner(rules))}
    before = placement.chains(old, keys, needed.__contains__)
    return written, before.keys() - needed


def rerooted(placement: Placement, line: str) -> str:
    """A line of any of the chains as if it stood in the root."""
    name_end = line.find(" ", 3)
    return f"-A {placement.root[1]}" + (line[name_end:] if name_end > 0 else "\n")
