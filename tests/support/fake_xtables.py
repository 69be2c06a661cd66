"""An in-memory fake of one family's iptables with the kernel's rules.

Thousands of tests above the kernel interface run against it. It refuses what the kernel refuses (unknown
chains and tables, deletion of chains in use, loops, bad rule numbers), applies each table section atomically,
and injects the failures of a node. A differential test compares it with both real variants.

Rules are kept as text: `save` prints the output of iptables-save if the rules were written in its form.
Matches are not checked; use `refuse_rules_matching` for that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from kproxy.addresses import Family
from kproxy.kernel.xtables.types import FailureKind, RestoreError, RulesetGeneration, Variant
from tests.support.fake_xtables_section import RefusedError, Section
from tests.support.fake_xtables_table import BUILT_IN, Table, new_table, printed

_NFT_ORDER = ("mangle", "security", "raw", "filter", "nat")


@dataclass(slots=True)
class _Fault:
    kind: FailureKind
    message: str
    line: int | None
    after_tables: int | None


class FakeXtables:
    """The Xtables protocol over dictionaries, with injected faults.

    `restores` holds the inputs of all restores that were attempted, newest last.
    """

    def __init__(
        self, family: Family = Family.IPV4, variant: Variant = Variant.NFT, *, random_fully: bool = True
    ) -> None:
        self.family = family
        self.variant = variant
        self.random_fully = random_fully
        self.restores: list[bytes] = []
        self.saves = 0
        self._tables: dict[str, Table] = {}
        self._generation = 1
        self._faults: list[_Fault] = []
        self._refusals: list[re.Pattern[str]] = []

    # The protocol ------------------------------------------------------------------------------------

    def restore(self, text: bytes) -> None:
        """Apply a restore input as iptables-restore --noflush does.  Raises RestoreError."""
        self.restores.append(text)
        fault = self._faults.pop(0) if self._faults else None
        if fault is not None and fault.after_tables is None:
            raise RestoreError(fault.kind, fault.message, fault.line)
        self._apply(text.decode("utf-8", "surrogateescape"), fault)

    def save(self, table: str | None = None) -> bytes:
        """The dump iptables-save would print, without comments."""
        self.saves += 1
        if table is not None and table not in BUILT_IN:
            raise RestoreError(FailureKind.MISSING, f"table '{table}' does not exist")
        if table is not None and self.variant is Variant.LEGACY:
            self._table(table)
        order = _NFT_ORDER if self.variant is Variant.NFT else tuple(reversed(self._tables))
        wanted = [name for name in order if name in self._tables and table in (None, name)]
        return "".join(printed(self._tables[name]) for name in wanted).encode("utf-8", "surrogateescape")

    def counters(self, table: str) -> bytes:
        """The rules of one table; all counters are 0."""
        return b"".join(
            b"[0:0] " + line if line.startswith(b"-A ") else line
            for line in self.save(table).splitlines(keepends=True)
        )

    def generation(self) -> RulesetGeneration:
        """The ruleset's generation: it differs from an earlier one if and only if something changed."""
        return RulesetGeneration((str(self.variant), self._generation))

    # Faults ------------------------------------------------------------------------------------------

    def fail_next(
        self, kind: FailureKind, *, times: int = 1, message: str = "injected failure", line: int | None = None
    ) -> None:
        """Let the next `times` restores fail with `kind` before they change anything."""
        self._faults += [_Fault(kind, message, line, None)] * times

    def lock_for(self, attempts: int) -> None:
        """Let the next `attempts` restores find the xtables lock held."""
        message = "Another app is currently holding the xtables lock. Stopped waiting after 5s."
        self.fail_next(FailureKind.LOCKED, times=attempts, message=message)

    def kill_after_tables(self, tables: int) -> None:
        """Let the next restore be killed after `tables` COMMITs: those are applied, the rest is not."""
        self._faults.append(_Fault(FailureKind.INTERRUPTED, "killed by signal 9", None, tables))

    def refuse_rules_matching(self, pattern: str) -> None:
        """Refuse every rule whose line the regular expression finds, as a kernel without the match would."""
        self._refusals.append(re.compile(pattern))

    def accept_all_rules(self) -> None:
        """Remove every pattern of refuse_rules_matching."""
        self._refusals.clear()

    def edit(self, text: str) -> None:
        """Apply a restore input as another program would: without faults, not counted in `restores`."""
        refusals, self._refusals = self._refusals, []
        try:
            self._apply(text, None)
        finally:
            self._refusals = refusals

    def flush_table(self, table: str) -> None:
        """Delete a table with all chains, as `nft flush ruleset` or a firewall's restart does."""
        if self._tables.pop(table, None) is not None:
            self._generation += 1

    def chains(self, table: str) -> dict[str, list[str]]:
        """A copy of the table's chains and rules; empty if the table was never used."""
        found = self._tables.get(table)
        return {name: list(rules) for name, rules in found.chains.items()} if found else {}

    # Working -----------------------------------------------------------------------------------------

    def _apply(self, text: str, fault: _Fault | None) -> None:
        section: Section | None = None
        committed = 0
        number = 0
        for number, line in enumerate(text.split("\n"), 1):
            try:
                if section is not None and line.startswith(("-", ":", "[")):
                    section.line(line, number)
                elif not line or line[0] == "#":
                    continue
                elif section is not None and line.rstrip() == "COMMIT":
                    if fault is not None and committed == fault.after_tables:
                        raise RestoreError(fault.kind, fault.message)
                    self._commit(section)
                    section, committed = None, committed + 1
                elif section is None and line[0] == "*":
                    section = Section(self._peek(line[1:].strip()), self._refusals, self.variant)
                else:
                    raise RefusedError(f"Bad argument `{line}'")
            except RefusedError as error:
                self._refused(error, number)
        if section is not None:
            self._refused(RefusedError("COMMIT expected"), number)
        if fault is not None:
            raise RestoreError(fault.kind, fault.message)

    def _refused(self, error: RefusedError, number: int) -> None:
        raise RestoreError(FailureKind.RULE, f"line {number} failed: {error}", number) from error

    def _peek(self, name: str) -> Table:
        if name not in BUILT_IN:
            raise RefusedError(f"table name '{name}' invalid")
        if self.variant is Variant.LEGACY:
            return self._table(name)
        return self._tables.get(name) or new_table(name)

    def _table(self, name: str) -> Table:
        return self._tables.setdefault(name, new_table(name))

    def _commit(self, section: Section) -> None:
        if section.commit():
            self._tables[section.table.name] = section.table
            self._generation += 1
