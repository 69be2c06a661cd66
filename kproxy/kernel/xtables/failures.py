"""Classify failures of iptables-restore by its exit status and stderr.

Messages differ between the variants, and between parser and kernel; the exit status alone is ambiguous (1:
the library or kernel refused, 2: the parser refused, 4: the lock, or nft's kernel refused).
Messages are those of iptables 1.8.9; the rare ones (memory, a busy table, missing permissions) are taken from
its source and not covered by a test.
"""

from __future__ import annotations

import re

from kproxy.kernel.processes import FailureReason, ProcessError
from kproxy.kernel.xtables.types import FailureKind, RestoreError

_LINE = re.compile(
    r"(?:Error occurred at line: |^line (?=\d+: )|: line (?=\d+ failed)|COMMIT expected at line )(\d+)",
    re.MULTILINE,
)
_LOCKED = (
    "xtables lock",
    "xtables.lock: Resource temporarily unavailable",
    "Resource temporarily unavailable.",
)
_MISSING = (
    "Permission denied",
    "Operation not permitted",
    "you must be root",
    "do you need to insmod",
    "Failed to initialize nft",
    "Table does not exist",
    "can't initialize",
    "unable to initialize table",
    "Protocol not supported",
    "TABLE_ADD failed",
    "is incompatible, use 'nft' tool",
    "can't open lock file",
)
_KINDS = {
    FailureReason.ABSENT: FailureKind.MISSING,
    FailureReason.NOT_STARTED: FailureKind.OTHER,
    FailureReason.UNFINISHED: FailureKind.INTERRUPTED,
}
_BASE_CHAIN = re.compile(
    r"CHAIN_ADD failed \([^)]*\): chain (?:PREROUTING|INPUT|FORWARD|OUTPUT|POSTROUTING)$", re.MULTILINE
)
_MEMORY = ("Cannot allocate memory", "No buffer space available", "Message too long", "memory allocation")
_NOISE = re.compile(r"^(?:Try `.*for more information\.|# Warning: .*)$\n?", re.MULTILINE)
_MESSAGE_LIMIT = 2000


def from_exit(status: int, stderr: bytes) -> RestoreError:
    """Return the error for an exit status (negative: killed by that signal) and stderr."""
    message = trimmed(stderr)
    if status < 0:
        return RestoreError(FailureKind.INTERRUPTED, f"killed by signal {-status}. {message}".strip())
    kind = _kind(status, message)
    return RestoreError(kind, message or f"exit status {status}", named_line(message))


def from_process(error: ProcessError) -> RestoreError:
    """Return the error for a program that did not run until its exit."""
    return RestoreError(_KINDS[error.reason], error.message)


def named_line(message: str) -> int | None:
    """Return the first input line that an error text names, or None."""
    found = _LINE.search(message)
    return int(found[1]) if found else None


def trimmed(stderr: bytes) -> str:
    """Error text without usage hints and empty lines, at most a few thousand characters."""
    text = _NOISE.sub("", stderr.decode("utf-8", "replace"))
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip())[:_MESSAGE_LIMIT]


def _kind(status: int, message: str) -> FailureKind:
    if any(words in message for words in _MISSING) or _BASE_CHAIN.search(message):
        return FailureKind.MISSING
    if any(words in message for words in _LOCKED):
        return FailureKind.LOCKED
    if any(words in message for words in _MEMORY) or status not in (1, 2, 3, 4):
        return FailureKind.OTHER
    return FailureKind.RULE
