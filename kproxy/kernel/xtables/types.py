"""What the rest of kproxy knows of iptables: a text goes in, a dump comes out, a stamp tells of change.

The protocol is small so that the in-memory stand-in of kproxy_lab can obey it to the letter.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

from kproxy.addresses import Family

NATIVE_RULE = "-m nft --handle "
"""What the line of a rule has in a dump that iptables has no words for: others wrote it with nft."""


class Variant(enum.StrEnum):
    """Which kernel interface the iptables programs speak: x_tables or nf_tables."""

    LEGACY = "legacy"
    NFT = "nft"


class FailureKind(enum.StrEnum):
    """Why a restore failed, as far as it decides what to do next."""

    RULE = "rule"
    """The input was refused: a rule, a match, a target or a chain in it. Repeating it is useless."""
    LOCKED = "locked"
    """Another program holds the xtables lock or replaced the table meanwhile. Repeat later."""
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
    not exist: the line bounds the trouble (it is in this table section), it need not be the trouble.
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
    """A program did not come to its end, which says nothing of what the node has: another try may succeed."""


@dataclass(frozen=True, slots=True)
class RulesetGeneration:
    """A cheap fingerprint of the ruleset: equal stamps, taken by one object, mean nothing was changed.

    For nft that is exact (the kernel counts every committed transaction of the network namespace); for
    legacy it is the size and layout of the tables, which an exchange of rules of equal size leaves as it was.
    `value` is opaque to callers; `commits` is the count of transactions where the kernel keeps one (nft).
    """

    value: tuple[object, ...]
    commits: int | None = None


class Xtables(Protocol):
    """The tables of one IP family in the network namespace of the calling thread."""

    @property
    def family(self) -> Family:
        """The family whose tables these are."""

    @property
    def variant(self) -> Variant:
        """The kernel interface behind them."""

    @property
    def random_fully(self) -> bool:
        """Whether MASQUERADE knows --random-fully (iptables 1.6.2; every kernel since 3.13)."""

    def restore(self, text: bytes) -> None:
        """Apply an iptables-restore input without flushing what it does not name.

        Each table section is atomic, the input as a whole is not.  Raises RestoreError.
        """

    def save(self, table: str | None = None) -> bytes:
        """The rules as iptables-save prints them, of one table or of all that exist.

        Without comment lines; packet counters of built-in chains read [0:0].  Raises RestoreError.
        """

    def counters(self, table: str) -> bytes:
        """The rules of one table, each after its counters: `[packets:bytes] -A ...`. Raises RestoreError."""

    def generation(self) -> RulesetGeneration | None:
        """A fingerprint that changes when somebody changes the ruleset; None if the kernel gives none."""
