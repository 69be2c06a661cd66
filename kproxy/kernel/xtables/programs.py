"""Xtables by running iptables-restore and iptables-save.

A dump of a table counts only if it is complete. An existing table that is missing in a dump, or has no
COMMIT, is read chain by chain with nft, and is an error with legacy. So missing output never counts as an
empty table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kproxy.addresses import Family
from kproxy.kernel import generations
from kproxy.kernel.processes import TIMEOUT, Ended, ProcessError, Runner
from kproxy.kernel.xtables import failures, lock, shared_tables
from kproxy.kernel.xtables.types import FailureKind, RestoreError, RulesetGeneration, Variant

_WAIT_SINCE = (1, 6, 2)  # iptables-restore -w
_RANDOM_FULLY_SINCE = (1, 6, 2)
_COUNTERS = re.compile(rb"^(:\S+ [A-Z]+) \[\d+:\d+\]$", re.MULTILINE)
_TABLE_NAME = re.compile(r"[a-z]+\Z")


@dataclass(frozen=True, slots=True)
class XtablesTools:
    """The programs of one family and variant.

    `restore` and `save` are absolute paths; `version` is that of the programs, e.g. (1, 8, 9). `instead_of`
    is the reason why the preferred variant is not used, else "".
    """

    restore: str
    save: str
    variant: Variant
    version: tuple[int, int, int]
    instead_of: str = ""


class SubprocessXtables:
    """The tables of one family, through the programs of `tools`.

    `lock_wait`: seconds to wait for the xtables lock (legacy only; nft has none). `timeout`: seconds that a
    program may run. A stop of `runner` ends both waits.
    """

    def __init__(
        self,
        family: Family,
        tools: XtablesTools,
        *,
        lock_wait: int = 5,
        timeout: float = TIMEOUT,
        runner: Runner | None = None,
    ) -> None:
        self.family = family
        self.tools = tools
        self.variant = tools.variant
        self.random_fully = tools.version >= _RANDOM_FULLY_SINCE
        self._timeout = timeout
        self._runner = runner or Runner()
        self._restore_argv = [tools.restore, "--noflush"]
        if tools.variant is Variant.LEGACY and tools.version >= _WAIT_SINCE:
            self._restore_argv += ["-w", str(lock_wait)]

    def restore(self, text: bytes) -> None:
        """Apply a restore input; see Xtables.restore.  Raises RestoreError.

        If native nft rules prevent iptables-nft from finding rules to delete, these are deleted over netlink
        in a separate transaction first.
        """
        ended = self._run(self._restore_argv, text)
        if ended.status and self.variant is Variant.NFT and shared_tables.is_unparsable(ended.stderr):
            remaining = shared_tables.delete_rules(self.family, text)
            if remaining is not None:
                ended = self._run(self._restore_argv, remaining)
        if ended.status:
            error = failures.from_exit(ended.status, ended.stderr)
            if error.kind is FailureKind.LOCKED:
                error = RestoreError(error.kind, f"{error.message} [{lock.describe()}]", error.line)
            raise error

    def save(self, table: str | None = None) -> bytes:
        """Dump one table or all that exist; see Xtables.save.  Raises RestoreError.

        If a named table does not exist, legacy creates it.
        """
        return without_counters(self._dump(table, counters=False))

    def counters(self, table: str) -> bytes:
        """The rules of one table with their counters; see Xtables.counters.  Raises RestoreError."""
        return self._dump(table, counters=True)

    def print_chains(self, table: str, chains: Sequence[str]) -> Mapping[str, str]:
        """The rules of chains of an existing table, as `save` returns them; only for iptables-nft.

        Chains that its programs cannot print, or that are gone, are read over netlink. Raises RestoreError.
        """
        try:
            printed = shared_tables.print_chains(table, chains, self._listed)
        except RestoreError:
            printed = {}
        others = [name for name in chains if name not in printed]
        return {**printed, **shared_tables.read_chains(self.family, table, others)}

    def generation(self) -> RulesetGeneration | None:
        """See Xtables.generation."""
        return generations.ruleset_generation(self.family, self.variant)

    def _dump(self, table: str | None, *, counters: bool) -> bytes:
        argv = [self.tools.save, *(["-c"] if counters else []), *(_in_table(table) if table else [])]
        existing = self._existing(table)
        ended = self._run(argv)
        if ended.status and not (self.variant is Variant.NFT and shared_tables.is_unreadable(ended)):
            raise failures.from_exit(ended.status, ended.stderr)
        found = dict(sections(ended.stdout))
        missing = [name for name in existing if name not in found]
        if self.variant is Variant.NFT:
            for name in missing:
                found[name] = shared_tables.read(self.family, name, self._listed, counters=counters)
        elif missing:
            names = ", ".join(sorted(missing))
            raise RestoreError(FailureKind.OTHER, f"{self.tools.save} did not print all of table {names}")
        return b"".join(found.values())

    def _existing(self, table: str | None) -> Iterable[str]:
        """The tables that a dump must have, in the order in which missing ones are read."""
        if self.variant is Variant.NFT:
            existing = shared_tables.existing(self.family)
        else:
            existing = generations.legacy_tables(self.family)
        return [name for name in existing if table in {None, name}]

    def _listed(self, script: bytes) -> Ended:
        return self._run(self._restore_argv, script)

    def _run(self, argv: list[str], text: bytes = b"") -> Ended:
        try:
            return self._runner.run(argv, text, self._timeout)
        except ProcessError as error:
            raise failures.from_process(error) from error


def _in_table(table: str) -> list[str]:
    if not _TABLE_NAME.match(table):
        msg = f"not a table name: {table!r}"
        raise ValueError(msg)
    return ["-t", table]


def sections(dump: bytes) -> Iterator[tuple[str, bytes]]:
    """(table, its text from `*` to COMMIT) of each complete table of a dump; no comments."""
    start = dump.find(b"*") if not dump.startswith(b"*") else 0
    while start >= 0:
        end = dump.find(b"\nCOMMIT\n", start)
        following = dump.find(b"\n*", start)
        if end >= 0 and not 0 <= following < end:
            end += len(b"\nCOMMIT\n")
            yield dump[start + 1 : dump.index(b"\n", start)].decode("utf-8", "replace"), dump[start:end]
        start = following + 1 if following >= 0 else -1


def without_counters(dump: bytes) -> bytes:
    """A dump with the counters of built-in chains at [0:0]."""
    parts: list[bytes] = []
    for _, text in sections(dump):
        rules = text.find(b"\n-A ")
        rules = rules if rules >= 0 else len(text)
        parts += (_COUNTERS.sub(rb"\1 [0:0]", text[:rules]), text[rules:])
    return b"".join(parts)
