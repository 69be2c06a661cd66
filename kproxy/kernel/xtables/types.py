"""The interface to iptables: restore a text, save a dump, and read the generation to detect changes.

It is small, so that a model in memory can implement it exactly.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

from kproxy.addresses import Family

NATIVE_RULE = "-m nft --handle "
"""Marks the line of a rule in a dump that iptables cannot print, because it was written with nft."""


class Variant(enum.StrEnum):
    """The kernel interface of the iptables programs: x_tables or nf_tables."""

    LEGACY = "legacy"
    NFT = "nft"


class FailureKind(enum.StrEnum):
    """Kinds of failure of a restore, by what the caller has to do next."""

    RULE = "rule"
    """The input was refused: a rule, a match, a target or a chain in it. Repeating it is useless."""
    LOCKED = "locked"
    """Another program holds the xtables lock or replaced the table in between. Repeat later."""
    MISSING = "missing"
    """The program, the kernel's table or the permission is missing: nothing can be written."""
    INTERRUPTED = "interrupted"
    """The program was killed or took too long: tables before the last may have been applied."""
    OTHER = "other"
    """Anything else, such as the kernel running out of memory."""


class RestoreError(Exception):
    """A restore that did not succeed.

    `line` is the 1-based line of the input that the program names, or None.  For a refusal by the kernel
    legacy names the COMMIT line of the table, and nft names the COMMIT line for a jump to a chain that does
    not exist: the fault is in this table section, not necessarily in the line.
    `message` is what the program wrote to stderr, trimmed.
    """

    def __init__(self, kind: FailureKind, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.line = line
        self.message = message


class XtablesUnavailable(Exception):
    """iptables cannot be used for this family on this node; `reason` says why in one sentence."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class XtablesStalled(XtablesUnavailable):
    """A program did not finish, so the state of the node is unknown: a retry may succeed."""


@dataclass(frozen=True, slots=True)
class RulesetGeneration:
    """A cheap fingerprint of the ruleset: while it is equal, the ruleset has not changed.

    For nft that is exact (the kernel counts every committed transaction of the network namespace); for legacy
    it is the size and layout of the tables, which a replacement by rules of equal size does not change.
    `value` is opaque to callers; `commits` is the count of transactions where the kernel keeps one (nft).
    """

    value: tuple[object, ...]
    commits: int | None = None


class Xtables(Protocol):
    """The tables of one IP family in the network namespace of the calling thread."""

    @property
    def family(self) -> Family:
        """The family of the tables."""

    @property
    def variant(self) -> Variant:
        """The variant of the programs."""

    @property
    def random_fully(self) -> bool:
        """Whether MASQUERADE supports --random-fully (iptables 1.6.2; every kernel since 3.13)."""

    def restore(self, text: bytes) -> None:
        """Apply an iptables-restore input; chains that it does not declare are not flushed.

        Each table section is atomic, the input as a whole is not.  Raises RestoreError.
        """

    def save(self, table: str | None = None) -> bytes:
        """The rules as iptables-save prints them, of one table or of all that exist.

        Without comment lines; packet counters of built-in chains read [0:0].  Raises RestoreError.
        """

    def counters(self, table: str) -> bytes:
        """The rules of one table, each after its counters: `[packets:bytes] -A ...`. Raises RestoreError."""

    def generation(self) -> RulesetGeneration | None:
        """The ruleset's generation, which changes with the ruleset; None if it cannot be read."""
