"""Dry run: tables in memory that start from a dump and apply restores without touching the kernel.

The backend itself runs against them, so a dry run makes the same changes as a real sync.
"""

from collections import Counter
from collections.abc import Iterator

from kproxy.addresses import Family
from kproxy.backends.core.change import Change, Sign, counted
from kproxy.backends.iptables.canonical import canonical_rule
from kproxy.backends.iptables.dump import parse_save
from kproxy.backends.iptables.memory import MemoryXtables
from kproxy.kernel.xtables.native import BUILT_IN
from kproxy.kernel.xtables.types import Variant


class DryRunXtables(MemoryXtables):
    """One family's tables (implements Xtables). Raises ValueError for a dump that cannot be read."""

    def __init__(self, family: Family, variant: Variant, dump: bytes, *, random_fully: bool = True) -> None:
        self._before = parse_save(dump)
        super().__init__(family, variant, self._before, random_fully=random_fully)

    def changes(self) -> Iterator[Change]:
        """The changes made by the restores: one per chain, in built-in chains one per rule."""
        for table in self._before.keys() | self._tables.keys():
            before = self._before.get(table, {})
            now = self._tables[table].chains if table in self._tables else {}
            for chain in before.keys() | now.keys():
                old, new = before.get(chain), now.get(chain)
                if old == new:
                    continue
                if chain in BUILT_IN.get(table, ()):
                    yield from _jumps(table, old or [], new or [])
                elif old is None:
                    yield Change(f"chain {table}/{chain}", Sign.ADD, counted(len(new or ()), "rule"))
                elif new is None:
                    yield Change(f"chain {table}/{chain}", Sign.REMOVE, counted(len(old), "rule"))
                elif detail := _difference(old, new):
                    yield Change(f"chain {table}/{chain}", Sign.CHANGE, detail)


def _jumps(table: str, old: list[str], new: list[str]) -> Iterator[Change]:
    for sign, rules in ((Sign.ADD, Counter(new) - Counter(old)), (Sign.REMOVE, Counter(old) - Counter(new))):
        for rule in rules.elements():
            yield Change(f"rule {table}/{rule.removeprefix('-A ')}", sign)


def _difference(old: list[str], new: list[str]) -> str:
    """Describe the difference of two lists of rules; "" if they are equal in canonical form."""
    forms, wanted = [canonical_rule(rule) for rule in old], [canonical_rule(rule) for rule in new]
    lacks, extra = Counter(wanted) - Counter(forms), Counter(forms) - Counter(wanted)
    if lacks or extra:
        return f"lacks {counted(lacks.total(), 'rule')} and has {extra.total()} not wanted"
    return "" if forms == wanted else "has its rules in another order"
