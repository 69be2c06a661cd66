"""How many rules stand in the legacy tables, whichever variant this node's programs speak.

python-iptables reads these tables through libiptc and sees no others, which is what is wanted here. It may
crash where its struct layouts do not fit the libraries, and serves one family per process; so it works in a
process of its own, opens only tables that exist (opening one creates it), and never commits. Where it is not
installed, iptables-legacy-save tells the same.
"""

import re
import sys
from typing import Any

import msgspec

from kproxy.addresses import Family
from kproxy.kernel import generations
from kproxy.kernel.xtables.detect import find_tools
from kproxy.kernel.xtables.programs import SubprocessXtables
from kproxy.kernel.xtables.python_iptables import (
    PythonIptablesError,
    is_installed,
    run_apart,
)
from kproxy.kernel.xtables.types import RestoreError, Variant, XtablesUnavailable

_SECONDS = 120.0
_RULE = re.compile(rb"^-A (\S+)", re.MULTILINE)

Counts = dict[str, dict[str, int]]
"""table -> chain -> rules; chains without rules are not told of."""


class LegacyRulesError(Exception):
    """The legacy tables exist and cannot be read; the message says why."""


def count(family: Family) -> Counts:
    """Count the rules of one family's legacy tables in this network namespace. Raises LegacyRulesError."""
    if not generations.legacy_tables(family):
        return {}
    reason = "python-iptables is not installed"
    if is_installed():
        try:
            return msgspec.json.decode(run_apart(__name__, family.name, seconds=_SECONDS), type=Counts)
        except PythonIptablesError as error:
            reason = str(error)
    try:
        programs = find_tools(family, Variant.LEGACY, probe=False)
        return counted(SubprocessXtables(family, programs, timeout=_SECONDS).save())
    except (XtablesUnavailable, RestoreError) as error:
        raise LegacyRulesError(f"{reason}, and {error}") from error


def counted(dump: bytes) -> Counts:
    """The same of what iptables-legacy-save prints."""
    found: Counts = {}
    for section in dump.split(b"\nCOMMIT\n"):
        start = section.find(b"*") if not section.startswith(b"*") else 0
        name = section[start + 1 :].partition(b"\n")[0].decode()
        for match in _RULE.finditer(section):
            chains = found.setdefault(name, {})
            chain = match[1].decode()
            chains[chain] = chains.get(chain, 0) + 1
    return found


def _count_here(family: Family) -> Counts:
    """Count through libiptc, rule by rule, without taking rules apart: that may need what is not there."""
    import iptc

    kind: Any = iptc.Table if family is Family.IPV4 else iptc.Table6
    found: Counts = {}
    for name in generations.legacy_tables(family):
        table = kind(name, autocommit=False)
        for chain in table.chains:
            rules, rule = 0, table.first_rule(chain.name)
            while rule:
                rules += 1
                rule = table.next_rule(rule)
            if rules:
                found.setdefault(name, {})[chain.name] = rules
    return found


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(_count_here(Family[sys.argv[1]])))
