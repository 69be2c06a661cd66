"""What the rest of kproxy knows of nftables: a script goes in as one transaction, listings come out.

The protocol is small so that the in-memory stand-in of kproxy.testing can obey it to the letter.
"""

import enum
from typing import Protocol

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


class Nft(Protocol):
    """nftables in the network namespace of the calling thread. Every method may raise NftError."""

    def run(self, script: str) -> None:
        """Apply a script as one transaction: all of it or nothing."""

    def listing(self, family: Family, table: str, *, terse: bool = False) -> str | None:
        """The table as `nft -nn -s list table` prints it, `terse` without elements; None if it is not there.

        What counts is named, its counts are not.
        """

    def map_listing(self, family: Family, table: str, name: str) -> str | None:
        """One map with its counts, as `nft -nn list map` prints it; None if it is not there."""

    def stamp(self) -> Stamp | None:
        """A fingerprint that changes with every transaction of anybody; None if the kernel gives none."""
