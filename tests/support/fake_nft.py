"""An in-memory fake of nftables: the commands that kproxy's scripts use, and the relevant refusals.

A script is a transaction: it is applied to a copy, which replaces the ruleset if no command was refused. As
the kernel and nft 1.0 do, the fake refuses names that do not exist, deletion of referenced chains and maps,
elements that exist with another value or in an overlapping range, and rules that look up a map of drawn
numbers without declaring it.
"""

import copy
import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from kproxy.addresses import Family
from kproxy.kernel.nft.commands import TABLE_FAMILY, Transaction
from kproxy.kernel.nft.listed import listed, listed_hook
from kproxy.kernel.nft.types import NftError, NftFailure, Reading
from kproxy.kernel.xtables.types import RulesetGeneration

_COMMAND = re.compile(
    r"(?P<verb>add|delete|flush) (?P<kind>table|map|set|chain|rule|element) (?P<table>ip6? \S+)"
    r"(?: (?P<name>\S+))?(?: (?P<rest>.*))?"
)
_GOTO = re.compile(r"\b(?:goto|jump) (\S+)")
_LOOKUP = re.compile(r"@(\S+)")


@dataclass
class FakeContainer:
    """A map (`kind` map) or set, its declaration, and its elements: key -> value, "" in sets.

    `counts`: key -> (packets, bytes), where the declaration has elements counted.
    """

    kind: str
    declaration: str
    elements: dict[str, str] = field(default_factory=dict)
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def counted(self) -> bool:
        """Whether elements have counters."""
        return "counter" in self.declaration


@dataclass
class FakeTable:
    """`chains`: name -> (hook of a base chain or "", rules)."""

    containers: dict[str, FakeContainer] = field(default_factory=dict)
    chains: dict[str, tuple[str, list[str]]] = field(default_factory=dict)

    def referrers(self, pattern: re.Pattern[str], name: str) -> list[str]:
        """The chains and maps with a reference to a name."""
        found = [
            chain
            for chain, (_, rules) in self.chains.items()
            if any(name in pattern.findall(rule) for rule in rules)
        ]
        for container, content in self.containers.items():
            if any(name in pattern.findall(value) for value in content.elements.values()):
                found.append(container)
        return found


class FakeNft:
    """A network namespace's ruleset.

    `refuse` returns whether a line of a script is refused; `after` is called after each commit. If `lose` is
    "before" or "after", the next script is interrupted before or after its commit.
    """

    def __init__(self) -> None:
        self.tables: dict[str, FakeTable] = {}
        self.scripts: list[str] = []
        self.commits = 0
        self.readings = 0
        self.refuse: Callable[[str], bool] = lambda _: False
        self.after: Callable[[], None] = lambda: None
        self.gives_way: Callable[[], bool] | None = None
        self.lose: str | None = None

    def table(self, family: Family, name: str = "kproxy") -> FakeTable:
        """One table, which must exist."""
        return self.tables[f"{TABLE_FAMILY[family]} {name}"]

    def commit(self, transaction: Transaction) -> None:
        """See Nft.commit."""
        self.run(str(transaction))

    def run(self, script: str) -> None:
        """Execute a transaction given as text."""
        lost, self.lose = self.lose, None
        if lost == "before":
            raise NftError(NftFailure.INTERRUPTED, "lost before it was committed")
        tables = copy.deepcopy(self.tables)
        declared: set[str] = set()
        for line in script.splitlines():
            if self.refuse(line):
                raise NftError(NftFailure.REFUSED, f"injected refusal: {line[:80]}")
            _apply(tables, line, declared)
        self.tables = tables
        self.scripts.append(script)
        self.commits += 1
        self.after()
        if lost == "after":
            raise NftError(NftFailure.INTERRUPTED, "lost after it was committed")

    def reading(
        self,
        family: Family,
        table: str,
        *,
        elements: bool = True,
        portable: bool = False,
    ) -> Reading | None:
        """See Nft.reading."""
        self.readings += 1
        known = self.tables.get(f"{TABLE_FAMILY[family]} {table}")
        if known is None:
            return None
        filled = {name: each for name, each in known.containers.items() if "dynamic" not in each.declaration}
        return Reading(
            {name: (*([hook] if hook else []), *rules) for name, (hook, rules) in known.chains.items()},
            frozenset(f"{each.kind} {name}" for name, each in known.containers.items()),
            {name: dict(each.elements) for name, each in filled.items()} if elements else None,
        )

    def counts(self, family: Family, table: str, name: str) -> dict[str, tuple[int, int]] | None:
        """See Nft.counts."""
        known = self.tables.get(f"{TABLE_FAMILY[family]} {table}")
        if known is None or name not in known.containers:
            return None
        container = known.containers[name]
        return {key: container.counts.get(key, (0, 0)) for key in container.elements if container.counted}

    def sizes(self, family: Family, table: str, wanted: Callable[[str], bool]) -> dict[str, int]:
        """See CountsElements.sizes."""
        known = self.tables.get(f"{TABLE_FAMILY[family]} {table}")
        found = known.containers if known is not None else {}
        return {name: len(each.elements) for name, each in found.items() if wanted(name)}

    def generation(self) -> RulesetGeneration | None:
        """See Nft.generation."""
        return RulesetGeneration(("nft", self.commits), commits=self.commits)


class ListedNft(FakeNft):
    """A FakeNft that lists chains as the kernel does: a handle and a digest for each rule."""

    def reading(
        self,
        family: Family,
        table: str,
        *,
        elements: bool = True,
        portable: bool = False,
    ) -> Reading | None:
        """See Nft.reading."""
        found = super().reading(family, table, elements=elements, portable=portable)
        if found is None:
            return None
        chains = {
            name: ((listed_hook(hook),) if hook else ()) + self._lines(family, rules)
            for name, (hook, rules) in self.table(family, table).chains.items()
        }
        return msgspec.structs.replace(found, chains=chains)

    form: Callable[[str], str] | None = None
    """How another kernel lists a rule."""

    def _lines(self, family: Family, rules: list[str]) -> tuple[str, ...]:
        """Rules get a new handle when they are written, and so another identity."""
        form = self.form or (lambda rule: "".join(listed(family, [rule]) or ()))
        return tuple(f"{id(rule):x} {form(rule)}" for rule in rules)

    def rule_counts(self, family: Family, table: str) -> dict[str, tuple[int, ...]] | None:
        """See CountsRules.rule_counts."""
        known = self.tables.get(f"{TABLE_FAMILY[family]} {table}")
        if known is None:
            return None
        return {
            name: (0,) * sum("counter" in rule for rule in rules) for name, (_, rules) in known.chains.items()
        }


def _refused(line: str, reason: str) -> NftError:
    return NftError(NftFailure.REFUSED, f"{reason}: {line[:120]}")


def _apply(tables: dict[str, FakeTable], line: str, declared: set[str]) -> None:
    found = _COMMAND.fullmatch(line)
    if found is None:
        raise _refused(line, "syntax error")
    verb, kind, name = found["verb"], found["kind"], found["name"] or ""
    rest = found["rest"] or ""
    if kind == "table":
        if verb == "add":
            tables.setdefault(found["table"], FakeTable())
        elif tables.pop(found["table"], None) is None:
            raise _refused(line, "No such file or directory")
        return
    table = tables.get(found["table"])
    if table is None:
        raise _refused(line, "No such file or directory")
    if kind in {"map", "set"}:
        _container(table, line, verb, kind, name, rest, declared)
    elif kind == "chain":
        _chain(table, line, verb, name, rest)
    elif kind == "rule":
        _rule(table, line, name, rest, declared)
    else:
        _elements(table, line, verb, name, rest)


def _container(
    table: FakeTable, line: str, verb: str, kind: str, name: str, rest: str, declared: set[str]
) -> None:
    if verb == "add":
        declaration = rest.strip("{ }")
        standing = table.containers.setdefault(name, FakeContainer(kind, declaration))
        if standing.declaration != declaration:
            raise _refused(line, "File exists")
        declared.add(name)
        return
    if name not in table.containers:
        raise _refused(line, "No such file or directory")
    if table.referrers(_LOOKUP, name):
        raise _refused(line, "Device or resource busy")
    del table.containers[name]


def _chain(table: FakeTable, line: str, verb: str, name: str, rest: str) -> None:
    if verb == "add":
        table.chains.setdefault(name, (rest.strip("{ }"), []))
        return
    if name not in table.chains:
        raise _refused(line, "No such file or directory")
    if verb == "flush":
        table.chains[name] = (table.chains[name][0], [])
        return
    if any(chain != name for chain in table.referrers(_GOTO, name)):
        raise _refused(line, "Device or resource busy")
    del table.chains[name]


def _rule(table: FakeTable, line: str, name: str, rest: str, declared: set[str]) -> None:
    if name not in table.chains or any(to not in table.chains for to in _GOTO.findall(rest)):
        raise _refused(line, "No such file or directory")
    for container in _LOOKUP.findall(rest):
        if container not in table.containers:
            raise _refused(line, "No such file or directory")
        numbered = "numgen random" in table.containers[container].declaration
        if numbered and container not in declared:
            raise _refused(line, "conflicting protocols specified: tcp vs. th")
    table.chains[name][1].append(rest)


def _elements(table: FakeTable, line: str, verb: str, name: str, rest: str) -> None:
    container = table.containers.get(name)
    if container is None:
        raise _refused(line, "No such file or directory")
    for element in rest.removeprefix("{ ").removesuffix(" }").split(", "):
        key, _, value = element.partition(" : ")
        if verb == "delete":
            if key not in container.elements:
                raise _refused(element, "No such file or directory")
            del container.elements[key]
            container.counts.pop(key, None)
            continue
        if container.elements.get(key, value) != value or _overlaps(container, key):
            raise _refused(element, "File exists")
        if any(to not in table.chains for to in _GOTO.findall(value)):
            raise _refused(element, "No such file or directory")
        container.elements[key] = value


def _overlaps(container: FakeContainer, key: str) -> bool:
    if "interval" not in container.declaration or key in container.elements:
        return False
    first, last = _bounds(key)
    return any(first <= end and start <= last for start, end in map(_bounds, container.elements))


def _bounds(key: str) -> tuple[int, int]:
    """The first and last address of a prefix, or port of a range."""
    if "." in key or ":" in key:
        network = ipaddress.ip_network(key)
        return int(network[0]), int(network[-1])
    first, _, last = key.partition("-")
    return int(first), int(last or first)
