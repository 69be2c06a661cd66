"""The product's model of iptables in memory, with the failures of a node.

Thousands of tests above the kernel interface run against it. Besides what the model refuses, it refuses loops
of chains as the kernel does, and what a test wants refused. Matches are not checked; use
`refuse_rules_matching` for that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from kproxy.addresses import Family
from kproxy.backends.iptables.memory import MemoryXtables
from kproxy.backends.iptables.memory_section import Section
from kproxy.kernel.xtables.types import FailureKind, RestoreError, RulesetGeneration, Variant
from tests.support.chain_loops import refuse_loops


@dataclass(slots=True)
class _Fault:
    kind: FailureKind
    message: str
    line: int | None
    after_tables: int | None


class FakeXtables(MemoryXtables):
    """The Xtables protocol over dictionaries, with injected faults.

    `restores` holds the inputs of all restores that were attempted, newest last.
    """

    def __init__(
        self, family: Family = Family.IPV4, variant: Variant = Variant.NFT, *, random_fully: bool = True
    ) -> None:
        super().__init__(family, variant, random_fully=random_fully)
        self.restores: list[bytes] = []
        self.saves = 0
        self._faults: list[_Fault] = []
        self._fault: _Fault | None = None
        self._committed = 0
        self._refusals: list[re.Pattern[str]] = []

    def restore(self, text: bytes) -> None:
        """Apply a restore input, unless a fault is due. Raises RestoreError."""
        self.restores.append(text)
        fault = self._faults.pop(0) if self._faults else None
        if fault is not None and fault.after_tables is None:
            raise RestoreError(fault.kind, fault.message, fault.line)
        self._fault, self._committed = fault, 0
        try:
            super().restore(text)
        finally:
            self._fault = None
        if fault is not None:
            raise RestoreError(fault.kind, fault.message)

    def save(self, table: str | None = None) -> bytes:
        """Count and return the dump."""
        self.saves += 1
        return super().save(table)

    def generation(self) -> RulesetGeneration:
        """The generation without a count of commits, as of legacy."""
        return RulesetGeneration((str(self.variant), self.commits))

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
            self._apply(text)
        finally:
            self._refusals = refusals

    def flush_table(self, table: str) -> None:
        """Delete a table with all chains, as `nft flush ruleset` or a firewall's restart does."""
        if self._tables.pop(table, None) is not None:
            self.commits += 1

    # Working -----------------------------------------------------------------------------------------

    def _section(self, name: str) -> Section:
        section = super()._section(name)
        patterns = tuple(self._refusals)
        return Section(
            section.table, self.variant, lambda rule: any(pattern.search(rule) for pattern in patterns)
        )

    def _commit(self, section: Section) -> None:
        fault = self._fault
        if fault is not None and self._committed == fault.after_tables:
            raise RestoreError(fault.kind, fault.message)
        refuse_loops(section, self.variant)
        super()._commit(section)
        self._committed += 1
