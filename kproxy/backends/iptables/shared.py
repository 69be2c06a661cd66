"""Placement of the lines of many services in the chains that they share.

In any layout, a service's lines are rendered for one root chain. A Placement decides which chain each line is
in. It is a pure function of the lines, so that an incremental write has the same result as a full one.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from kproxy.backends.iptables.names import ChainId

Entry = tuple[int, str, int, str]
"""(sort key, service, position among the service's lines, `-A ROOT ...` with its line feed)."""


Known = Callable[[str], bool]
"""Whether a chain has its desired rules, as long as no key in it changes."""


def nothing(chain: str) -> bool:
    """No chain is known."""
    del chain
    return False


class Placement(Protocol):
    """The chains of one kind of lines. Equal placements put the same lines in the same chains."""

    @property
    def root(self) -> ChainId:
        """The chain that packets enter first."""

    def key(self, rule: str) -> int:
        """The sort key of a line."""

    def places(self, rule: str) -> bool:
        """Whether a rule found in these chains can be a service's line."""

    def contains(self, chain: str) -> bool:
        """Whether a chain of the root's table is one of these chains, without the root."""

    def chains(
        self, entries: Sequence[Entry], at: Collection[int] | None = None, known: Known = nothing
    ) -> dict[str, tuple[str, ...]]:
        """The chains with their rules, for sorted entries.

        With `at`, `known` chains that contain none of these keys are left out, with their descendants.
        """

    def inner(self, rules: Iterable[str]) -> Iterator[str]:
        """The chains of this placement that rules jump to."""


@dataclass(frozen=True)
class Flat:
    """All lines in the root chain, sorted by service, followed by a tail, as in kube-proxy."""

    root: ChainId
    tail: tuple[str, ...] = ()

    def key(self, rule: str) -> int:
        """Services are sorted by name alone."""
        del rule
        return 0

    def places(self, rule: str) -> bool:
        """True: any line may be a service's."""
        del rule
        return True

    def contains(self, chain: str) -> bool:
        """False: there are no chains besides the root."""
        del chain
        return False

    def chains(
        self, entries: Sequence[Entry], at: Collection[int] | None = None, known: Known = nothing
    ) -> dict[str, tuple[str, ...]]:
        """The root chain."""
        del at, known
        return {self.root[1]: (*[entry[3] for entry in entries], *self.tail)}

    def inner(self, rules: Iterable[str]) -> Iterator[str]:
        """No chains."""
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
    """Return the entries with those of some services replaced, and the keys whose lines differ."""
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
    """Compare the chains of `old` and `new`, whose entries differ at some keys.

    Returns the chains whose rules may have changed, with their new rules, and the chains that are not needed
    any more. A chain with none of the keys changes as well where a chain above it is now divided, or no
    longer divided: then it is not `known` yet, or no rule jumps to it any more.
    """
    written = placement.chains(new, keys, known)
    needed = {*written, *(chain for rules in written.values() for chain in placement.inner(rules))}
    before = placement.chains(old, keys, needed.__contains__)
    return written, before.keys() - needed


def rerooted(placement: Placement, line: str) -> str:
    """Return a line of any of the chains as rendered for the root."""
    name_end = line.find(" ", 3)
    return f"-A {placement.root[1]}" + (line[name_end:] if name_end > 0 else "\n")
