"""Dry run: tables in memory that start from a dump and apply restores without touching the kernel.

The backend itself runs against them, so a dry run makes the same changes as a real sync. Rules are not
validated, because only a kernel can do that. Refused is only what depends on the tables: deletion of a
missing rule, or of a chain that a rule still refers to.
"""

from collections import Counter
from collections.abc import Iterator, Mapping

from kproxy.addresses import Family
from kproxy.backends.core.change import Change, Sign, counted
from kproxy.backends.iptables.canonical import canonical_rule
from kproxy.backends.iptables.dump import parse_save
from kproxy.kernel.xtables.types import FailureKind, RestoreError, RulesetGeneration, Variant

BUILT_IN: Mapping[str, frozenset[str]] = {
    "filter": frozenset({"INPUT", "FORWARD", "OUTPUT"}),
    "nat": frozenset({"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"}),
    "mangle": frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}),
}
"""Built-in chains by table (xt_table.valid_hooks of each)."""

_Chains = dict[str, list[str]]


class DryRunXtables:
    """One family's tables (implements Xtables). Raises ValueError for a dump that cannot be read."""

    def __init__(self, family: Family, variant: Variant, dump: bytes, *, random_fully: bool = True) -> None:
        self.family = family
        self.variant = variant
        self.random_fully = random_fully
        self._before = parse_save(dump)
        self._now = {table: dict(chains) for table, chains in self._before.items()}
        self._commits = 0

    def restore(self, text: bytes) -> None:
        """Apply a restore input to the tables in memory. Raises RestoreError if it cannot be applied."""
        section = _Section("", {})
        for number, line in enumerate(text.decode().splitlines(), 1):
            if line.startswith("*"):
                section = _Section(line[1:], self._now.get(line[1:], {}))
            elif line == "COMMIT":
                self._now[section.table] = section.result(number)
                self._commits += 1
            else:
                section.take(line, number)

    def save(self, table: str | None = None) -> bytes:
        """The tables as iptables-save prints them."""
        parts: list[str] = []
        for name, chains in self._now.items():
            if table in (None, name):
                parts.append(f"*{name}\n")
                parts += [f":{chain} - [0:0]\n" for chain in chains]
                parts += [f"{rule}\n" for rules in chains.values() for rule in rules]
                parts.append("COMMIT\n")
        return "".join(parts).encode("utf-8", "surrogateescape")

    def counters(self, table: str) -> bytes:
        """The rules of a table, with counters of zero."""
        lines = self.save(table).decode("utf-8", "surrogateescape").splitlines(keepends=True)
        counted_lines = [f"[0:0] {line}" if line.startswith("-A ") else line for line in lines]
        return "".join(counted_lines).encode("utf-8", "surrogateescape")

    def generation(self) -> RulesetGeneration:
        """A generation that counts the applied restores."""
        return RulesetGeneration(("dry run", self._commits), commits=self._commits)

    def changes(self) -> Iterator[Change]:
        """The changes made by the restores: one per chain, in built-in chains one per rule."""
        for table in self._before.keys() | self._now.keys():
            before, now = self._before.get(table, {}), self._now.get(table, {})
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


class _Section:
    """One table's part of a restore input; chains that it does not change are shared with `standing`."""

    def __init__(self, table: str, standing: Mapping[str, list[str]]) -> None:
        self.table = table
        self._chains: _Chains = {**{chain: [] for chain in BUILT_IN.get(table, ())}, **standing}
        self._copied: set[str] = set()
        self._doomed: set[str] = set()

    def take(self, line: str, number: int) -> None:
        """Apply one line."""
        if line.startswith(":"):
            chain = line[1 : line.index(" ")]
            self._chains[chain] = []
            self._copied.add(chain)
            return
        command, chain, rest = [*line.split(" ", 2), ""][:3]
        rules = self._mutable(chain)
        if rules is None:
            raise RestoreError(FailureKind.RULE, f"line {number}: there is no chain {chain}", number)
        match command:
            case "-A":
                rules.append(line)
            case "-I":
                place, _, rule = rest.partition(" ")
                place, rule = (place, rule) if place.isdigit() else ("1", rest)
                rules.insert(int(place) - 1, f"-A {chain} {rule}")
            case "-D":
                found = _find(rules, f"-A {chain} {rest}")
                if found is None:
                    raise RestoreError(FailureKind.RULE, f"line {number}: there is no rule {rest}", number)
                del rules[found]
            case "-X":
                self._doomed.add(chain)
            case _:
                raise RestoreError(FailureKind.RULE, f"line {number}: unknown command {command}", number)

    def result(self, number: int) -> _Chains:
        """The table afterwards. Raises RestoreError if a chain to delete is still in use."""
        chains = {chain: rules for chain, rules in self._chains.items() if chain not in self._doomed}
        if self._doomed:
            for rules in chains.values():
                for rule in rules:
                    if rule[rule.rfind(" ") + 1 :] in self._doomed:
                        raise RestoreError(FailureKind.RULE, f"line {number}: in use by {rule}", number)
        return chains

    def _mutable(self, chain: str) -> list[str] | None:
        rules = self._chains.get(chain)
        if rules is not None and chain not in self._copied:
            rules = self._chains[chain] = list(rules)
            self._copied.add(chain)
        return rules


def _find(rules: list[str], wanted: str) -> int | None:
    if wanted in rules:
        return rules.index(wanted)
    form = canonical_rule(wanted)
    return next((n for n, rule in enumerate(rules) if canonical_rule(rule) == form), None)


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
