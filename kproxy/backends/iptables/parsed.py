"""Rules of a dump, parsed as far as a packet comes: of 115,000 rules it passes some tens.

A chain stays the text that iptables-save printed until a packet enters it; then a rule for another address is
passed over by its text, and the others are parsed once.
"""

import functools
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from kproxy.backends.iptables.canonical import tokenize
from kproxy.backends.iptables.dump import chain_texts, parse_save

_POLICY = re.compile(rb"^:(\S+) (ACCEPT|DROP) ", re.MULTILINE)
_NATIVE = ("nft", "--handle")
_TABLE = re.compile(rb"^\*(\S+)$", re.MULTILINE)
_OPTION = re.compile(r"-[a-z]$|--?[a-z][\w-]*$")
_TO_HOST = re.compile(r"-A \S+ (?:-s \S+ )?-d ([0-9a-f.:]+)/(?:32|128) ")

_READ_TOGETHER = 32
"""Greatest number of chains that are read before it is known whether the packet enters them."""


class Condition(msgspec.Struct, frozen=True, gc=False):
    """One option of a match, with its values; `module` is the last `-m` before it."""

    module: str
    option: str
    values: tuple[str, ...] = ()
    negated: bool = False


class Rule(msgspec.Struct, frozen=True, gc=False):
    """A rule: its conditions, and its target with options; `goto`: the target's end is that of the chain."""

    text: str
    conditions: tuple[Condition, ...]
    target: str = ""
    options: tuple[Condition, ...] = ()
    goto: bool = False

    @property
    def handle(self) -> int | None:
        """The handle of a rule that was written with nft: no more is printed (kernel.xtables.native)."""
        return next(
            (int(each.values[0]) for each in self.conditions if (each.module, each.option) == _NATIVE), None
        )


class Tables:
    """The tables of a dump by name. Raises ValueError for text that is none.

    `edited`: the dump may have passed an editor, so that the rules of a chain are not together.
    """

    def __init__(self, dump: bytes, *, edited: bool = False) -> None:
        self._texts: Mapping[str, Mapping[str, str]] = _joined(dump) if edited else chain_texts(dump)
        self._dropping = frozenset(_dropping(dump))

    def names(self) -> frozenset[str]:
        """The names of the tables."""
        return frozenset(self._texts)

    def has(self, table: str, chain: str) -> bool:
        """Whether there is such a chain."""
        return chain in self._texts.get(table, {})

    def drops(self, table: str, chain: str) -> bool:
        """Whether a chain's policy is DROP."""
        return (table, chain) in self._dropping

    def rules(self, table: str, chain: str, destination: str) -> Iterator[Rule]:
        """The rules of a chain, except those that name another host as destination."""
        packed = socket.inet_pton(socket.AF_INET6 if ":" in destination else socket.AF_INET, destination)
        wanted = socket.inet_ntop(socket.AF_INET6 if ":" in destination else socket.AF_INET, packed)
        for line in self._texts[table][chain].splitlines():
            found = _TO_HOST.match(line)
            if found is None or found[1] == wanted:
                yield parse(line)


class TablesByChain(Tables):
    """Tables whose chains are read when a packet enters them.

    `held`: the chains of each table, with the policy (`-`: none). `load` returns the rules of some chains of
    a table as iptables-save prints them; what it raises is raised by `rules`.
    """

    def __init__(
        self,
        held: Mapping[str, Mapping[str, str]],
        load: Callable[[str, Sequence[str]], Mapping[str, str]],
    ) -> None:
        self._held = held
        self._load = load
        self._loaded: dict[str, dict[str, str]] = {table: {} for table in held}
        self._texts = self._loaded

    def has(self, table: str, chain: str) -> bool:
        """See Tables.has."""
        return chain in self._held.get(table, {})

    def drops(self, table: str, chain: str) -> bool:
        """See Tables.drops."""
        return self._held[table][chain] == "DROP"

    def rules(self, table: str, chain: str, destination: str) -> Iterator[Rule]:
        """See Tables.rules. The chains to which the rules lead are read in one go, if they are few."""
        if chain not in self._loaded[table]:
            built_in = [name for name, policy in self._held[table].items() if policy != "-"]
            self._read(table, built_in if chain in built_in else [chain])
        found = list(super().rules(table, chain, destination))
        targets = dict.fromkeys(rule.target for rule in found if self.has(table, rule.target))
        following = [name for name in targets if name not in self._loaded[table]]
        if 0 < len(following) <= _READ_TOGETHER:
            self._read(table, following)
        yield from found

    def _read(self, table: str, chains: Sequence[str]) -> None:
        self._loaded[table] |= self._load(table, chains)


def _joined(dump: bytes) -> dict[str, dict[str, str]]:
    return {
        table: {chain: "\n".join(lines) for chain, lines in chains.items()}
        for table, chains in parse_save(dump).items()
    }


def _dropping(dump: bytes) -> Iterator[tuple[str, str]]:
    """(table, chain) of each policy DROP; policies are declared before a table's first rule."""
    for table in _TABLE.finditer(dump):
        first = dump.find(b"\n-A ", table.end())
        end = dump.find(b"\nCOMMIT\n", table.end())
        for found in _POLICY.finditer(dump, table.end(), min(first, end) if first >= 0 else end):
            if found[2] == b"DROP":
                yield table[1].decode("utf-8", "replace"), found[1].decode("utf-8", "replace")


@functools.lru_cache(maxsize=16384)
def parse(line: str) -> Rule:
    """Parse a rule of a dump."""
    tokens = tokenize(line)[2:]
    conditions: list[Condition] = []
    options: list[Condition] = []
    target, module, goto, negated = "", "", False, False
    at = 0
    while at < len(tokens):
        word, quoted = tokens[at]
        at += 1
        if word == "!" and not quoted:
            negated = True
            continue
        values = []
        while at < len(tokens) and (tokens[at][1] or not _is_option(tokens[at][0])):
            values.append(tokens[at][0])
            at += 1
        if word == "-m" and not target:
            module = values[0] if values else ""
            conditions.append(Condition(module, "-m"))
        elif word in {"-j", "-g"}:
            target, goto = values[0] if values else "", word == "-g"
        else:
            (options if target else conditions).append(Condition(module, word, tuple(values), negated))
        negated = False
    return Rule(
        line.split(" ", 2)[2] if line.count(" ") > 1 else "", tuple(conditions), target, tuple(options), goto
    )


def _is_option(word: str) -> bool:
    return word == "!" or _OPTION.match(word) is not None
