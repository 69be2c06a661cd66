"""What the rest of kproxy knows of nftables: transactions go in, readings of a table come out.

The protocol is small so that the in-memory stand-in of kproxy_lab can obey it to the letter.
"""

import enum
from collections.abc import Mapping
from typing import Protocol

import msgspec

from kproxy.addresses import Family
from kproxy.kernel.nft.commands import Transaction
from kproxy.kernel.xtables.types import RulesetGeneration


class NftFailure(enum.StrEnum):
    """Why nothing could be read or written, as far as it decides what to do next."""

    REFUSED = "refused"
    """Something in the transaction was refused, and nothing of it was done. Repeating it is useless."""
    MISSING = "missing"
    """The permission or nftables itself is missing: nothing can be written."""
    INTERRUPTED = "interrupted"
    """The kernel's answer was lost, or it had no memory: the transaction may have been committed."""


class NftError(Exception):
    """The kernel did not do what it was asked to; `message` names what was refused, and why."""

    def __init__(self, kind: NftFailure, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class Reading(msgspec.Struct, frozen=True):
    """One table at one moment.

    `chains`: by name, a line for each rule, which is another as soon as the rule is, or was replaced; before
    them, where the kernel calls the chain, a line from where, which begins with `type `. Lines of a portable
    reading are another only if the rule is, so that two tables compare.
    `containers`: the maps and sets with names, as `map NAME` and `set NAME`.
    `elements`: key -> value ("" in sets) of each of these that transactions fill, as nft prints both; None if
    they were not asked for. `unreadable`: the maps and sets whose elements are not understood, and why.
    """

    chains: dict[str, tuple[str, ...]]
    containers: frozenset[str]
    elements: Mapping[str, dict[str, str]] | None = None
    unreadable: Mapping[str, str] = {}


class Nft(Protocol):
    """nftables in the network namespace of the calling thread. Every method may raise NftError."""

    def commit(self, transaction: Transaction) -> None:
        """Carry out a transaction: all of it or nothing."""

    def reading(
        self, family: Family, table: str, *, elements: bool = True, portable: bool = False
    ) -> Reading | None:
        """The table; None if it is not there."""

    def counts(self, family: Family, table: str, name: str) -> Mapping[str, tuple[int, int]] | None:
        """(packets, bytes) by key of one map's elements that are counted; None if it is not there."""

    def generation(self) -> RulesetGeneration | None:
        """A fingerprint that changes with every transaction of anybody; None if the kernel gives none."""
