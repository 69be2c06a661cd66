"""The interface to nftables: transactions to commit, and readings of a table.

It is small, so that a model in memory can implement it exactly.
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import msgspec

from kproxy.addresses import Family
from kproxy.kernel.nft.commands import Transaction
from kproxy.kernel.xtables.types import RulesetGeneration


class NftFailure(enum.StrEnum):
    """Kinds of failure, by what the caller has to do next."""

    REFUSED = "refused"
    """A message of the transaction was refused; nothing was committed. Repeating it is useless."""
    MISSING = "missing"
    """The permission or nftables itself is missing: nothing can be written."""
    INTERRUPTED = "interrupted"
    """The kernel's answer was lost, or it had no memory: the transaction may have been committed."""
    POSTPONED = "postponed"
    """A reading gave way to something more urgent."""


class NftError(Exception):
    """A request failed; `message` names the refused object and the reason."""

    def __init__(self, kind: NftFailure, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class Reading(msgspec.Struct, frozen=True):
    """One table at one moment.

    `chains`: by name, a line for each rule, which differs if the rule was changed or replaced; for a base
    chain, preceded by a line with its hook, which begins with `type `. Lines of a portable reading differ
    only if the rules differ, so that two tables can be compared. `containers`: the named maps and sets, as
    `map NAME` and `set NAME`. `elements`: key -> value ("" in sets) of each map and set that transactions
    fill, as nft prints both; None if they were not requested. `unreadable`: maps and sets whose elements
    cannot be decoded, with the reason. `dormant`: the table is switched off (`flags dormant`), and no packet
    passes its chains.
    """

    chains: dict[str, tuple[str, ...]]
    containers: frozenset[str]
    elements: Mapping[str, dict[str, str]] | None = None
    unreadable: Mapping[str, str] = {}
    dormant: bool = False


@runtime_checkable
class CountsElements(Protocol):
    """What can tell how full maps and sets are."""

    def sizes(self, family: Family, table: str, wanted: Callable[[str], bool]) -> Mapping[str, int]:
        """The number of elements of those maps and sets whose names are `wanted`. Raises NftError."""


@runtime_checkable
class CountsRules(Protocol):
    """What can tell how many packets passed the counters of rules."""

    def rule_counts(self, family: Family, table: str) -> Mapping[str, Sequence[int]] | None:
        """The packets of each counter in a chain's rules, in order; None without the table. Raises NftError.

        Chains without counters are left out.
        """


class Nft(Protocol):
    """nftables in the network namespace of the calling thread. Every method may raise NftError.

    `gives_way`: if set, asked during a reading whether something more urgent waits; then NftError is raised.
    """

    gives_way: Callable[[], bool] | None

    def commit(self, transaction: Transaction) -> None:
        """Commit a transaction: all of it or nothing."""

    def reading(
        self, family: Family, table: str, *, elements: bool = True, portable: bool = False
    ) -> Reading | None:
        """Read the table; None if it does not exist."""

    def counts(self, family: Family, table: str, name: str) -> Mapping[str, tuple[int, int]] | None:
        """(packets, bytes) by key of one map's elements with counters; None if it does not exist."""

    def generation(self) -> RulesetGeneration | None:
        """A value that changes with every transaction of any program; None if it cannot be read."""
