"""What the rest of kproxy knows of nftables: a script goes in as one transaction, listings come out.

The protocol is small so that the in-memory stand-in of kproxy.testing can obey it to the letter.
"""

import enum
from collections.abc import Mapping
from typing import Protocol

import msgspec

from kproxy.addresses import Family
from kproxy.kernel.xtables.types import Stamp

TABLE_FAMILY = {Family.IPV4: "ip", Family.IPV6: "ip6"}
"""nftables' names of the families."""


class NftFailure(enum.StrEnum):
    """Why nft failed, as far as it decides what to do next."""

    REFUSED = "refused"
    """Something in the script was refused, and nothing of it was done. Repeating it is useless."""
    MISSING = "missing"
    """The program or the permission is missing: nothing can be written."""
    INTERRUPTED = "interrupted"
    """The program was killed or took too long: the transaction may have been committed."""


class NftError(Exception):
    """nft did not do what it was asked to; `message` is what it wrote to stderr, shortened."""

    def __init__(self, kind: NftFailure, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class Reading(msgspec.Struct, frozen=True):
    """One table at one moment.

    `chains`: by name, a line for each rule, which is another as soon as the rule is, or was replaced; before
    them, where the kernel calls the chain, a line from where, which begins with `type `.
    `containers`: the maps and sets with names, as `map NAME` and `set NAME`.
    `elements`: key -> value ("" in sets) of each of these that transactions fill, as nft prints both; None if
    they were not asked for, or if something in them is known to nft alone: then `listing` has them.
    """

    chains: dict[str, tuple[str, ...]]
    containers: frozenset[str]
    elements: Mapping[str, dict[str, str]] | None = None
    listing: str = ""


class Nft(Protocol):
    """nftables in the network namespace of the calling thread. Every method may raise NftError."""

    def run(self, script: str) -> None:
        """Apply a script as one transaction: all of it or nothing."""

    def listing(self, family: Family, table: str) -> str | None:
        """The table as `nft -nn -s list table` prints it; None if it is not there.

        What counts is named, its counts are not.
        """

    def reading(self, family: Family, table: str, *, elements: bool = True) -> Reading | None:
        """The table, read without nft; None if it is not there."""

    def counts(self, family: Family, table: str, name: str) -> Mapping[str, tuple[int, int]] | None:
        """(packets, bytes) by key of one map's elements that are counted; None if it is not there."""

    def stamp(self) -> Stamp | None:
        """A fingerprint that changes with every transaction of anybody; None if the kernel gives none."""
