"""A model in memory of one family's iptables, with the kernel's rules for tables, for dry runs and for tests.

It refuses what depends on the tables (unknown chains and tables, deletion of chains in use, bad rule numbers)
and applies each table section atomically. A differential test compares it with both real variants.

Rules are kept as text: `save` prints the output of iptables-save if the rules were written in its form.
"""

from collections.abc import Mapping

from kproxy.addresses import Family
from kproxy.backends.iptables.memory_section import RefusedError, Section
from kproxy.backends.iptables.memory_table import Table, new_table, printed, table_of
from kproxy.kernel.xtables.native import BUILT_IN
from kproxy.kernel.xtables.types import FailureKind, RestoreError, RulesetGeneration, Variant

_NFT_ORDER = ("mangle", "security", "raw", "filter", "nat")


class MemoryXtables:
    """The Xtables protocol over dictionaries. `chains`: the first content, table -> chain -> rules."""

    def __init__(
        self,
        family: Family,
        variant: Variant,
        chains: Mapping[str, Mapping[str, list[str]]] | None = None,
        *,
        random_fully: bool = True,
    ) -> None:
        self.family = family
        self.variant = variant
        self.random_fully = random_fully
        self.commits = 0
        self._tables = {name: table_of(name, content) for name, content in (chains or {}).items()}

    def restore(self, text: bytes) -> None:
        """Apply a restore input as iptables-restore --noflush does. Raises RestoreError."""
        self._apply(text.decode("utf-8", "surrogateescape"))

    def save(self, table: str | None = None) -> bytes:
        """The dump that iptables-save would print, without comments. Raises RestoreError."""
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
        return RulesetGeneration((str(self.variant), self.commits), self.commits)

    def chains(self, table: str) -> dict[str, list[str]]:
        """A copy of the table's chains and rules; empty if the table was never used."""
        found = self._tables.get(table)
        return {name: list(rules) for name, rules in found.chains.items()} if found else {}

    def _apply(self, text: str) -> None:
        section: Section | None = None
        number = 0
        for number, line in enumerate(text.split("\n"), 1):
            try:
                if section is not None and line.startswith(("-", ":", "[")):
                    section.line(line, number)
                elif not line or line[0] == "#":
                    continue
                elif section is not None and line.rstrip() == "COMMIT":
                    self._commit(section)
                    section = None
                elif section is None and line[0] == "*":
                    name = line[1:].strip()
                    if name not in BUILT_IN:
                        raise RefusedError(f"table name '{name}' invalid")
                    section = self._section(name)
                else:
                    raise RefusedError(f"Bad argument `{line}'")
            except RefusedError as error:
                raise _refused(error, number) from error
        if section is not None:
            raise _refused(RefusedError("COMMIT expected"), number)

    def _section(self, name: str) -> Section:
        """Begin a section of a table. A legacy table exists from now on, one of nft once it is committed."""
        is_legacy = self.variant is Variant.LEGACY
        table = self._table(name) if is_legacy else self._tables.get(name) or new_table(name)
        return Section(table, self.variant)

    def _table(self, name: str) -> Table:
        return self._tables.setdefault(name, new_table(name))

    def _commit(self, section: Section) -> None:
        if section.commit():
            self._tables[section.table.name] = section.table
            self.commits += 1


def _refused(error: RefusedError, number: int) -> RestoreError:
    return RestoreError(FailureKind.RULE, f"line {number} failed: {error}", number)
