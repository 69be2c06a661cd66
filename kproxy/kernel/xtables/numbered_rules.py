"""The rules of legacy tables by their numbers, as the kernel's traces name them."""

import re
from collections.abc import Mapping, Sequence

import msgspec

from kproxy.addresses import Family
from kproxy.kernel import generations
from kproxy.kernel.xtables.detect import find_tools
from kproxy.kernel.xtables.programs import SubprocessXtables, sections
from kproxy.kernel.xtables.types import RestoreError, Variant, XtablesUnavailable

_POLICY = re.compile(r"^:(\S+) (ACCEPT|DROP) ", re.MULTILINE)
_RULE = re.compile(r"^-A (\S+) (.*)$", re.MULTILINE)


class _Table(msgspec.Struct, frozen=True):
    chains: Mapping[str, Sequence[str]]
    policies: Mapping[str, str]


class NumberedRules:
    """Reads the tables with iptables-legacy-save when they have changed; what cannot be read has no rules."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._tables: Mapping[str, _Table] = {}
        self._generation: object = None

    def rule(self, table: str, chain: str, number: int) -> str:
        """The text of a rule after `-A CHAIN`; they count from 1. "" if there is none."""
        held = self._held(table)
        rules = held.chains.get(chain, ()) if held is not None else ()
        return rules[number - 1] if 0 < number <= len(rules) else ""

    def policy(self, table: str, chain: str) -> str:
        """ACCEPT or DROP; "" if it is not known."""
        held = self._held(table)
        return held.policies.get(chain, "") if held is not None else ""

    def _held(self, table: str) -> _Table | None:
        generation = generations.ruleset_generation(self._family, Variant.LEGACY)
        if generation != self._generation:
            self._generation, self._tables = generation, self._read()
        return self._tables.get(table)

    def _read(self) -> Mapping[str, _Table]:
        try:
            tools = find_tools(self._family, Variant.LEGACY, probe=False)
            return parsed(SubprocessXtables(self._family, tools).save())
        except (XtablesUnavailable, RestoreError):
            return {}


def parsed(dump: bytes) -> Mapping[str, _Table]:
    """The tables of a dump by name."""
    return {name: _table(text.decode("utf-8", "surrogateescape")) for name, text in sections(dump)}


def _table(text: str) -> _Table:
    chains: dict[str, list[str]] = {}
    for chain, rule in _RULE.findall(text):
        chains.setdefault(chain, []).append(rule)
    return _Table(chains, dict(_POLICY.findall(text)))
