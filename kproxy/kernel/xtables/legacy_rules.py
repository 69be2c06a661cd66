"""Count the rules in the legacy tables, independent of the variant of this node's programs.

python-iptables reads only these tables, through libiptc. It may crash if its struct layouts do not fit the
libraries, and supports one family per process; so it runs in a separate process, opens only existing tables
(opening one creates it), and never commits. If it is not installed, iptables-legacy-save is used.
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
"""table -> chain -> number of rules; chains without rules are left out."""


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
    """Count the rules in the output of iptables-legacy-save."""
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
    """Count through libiptc, without decoding rules, which may need extensions that are not installed."""
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
