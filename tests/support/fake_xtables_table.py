"""One table of the in-memory iptables: its chains and rules, as text."""

from collections import Counter
from dataclasses import dataclass, field

BUILT_IN = {
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "raw": ("PREROUTING", "OUTPUT"),
    "security": ("INPUT", "FORWARD", "OUTPUT"),
}


@dataclass(slots=True)
class Table:
    """Chains of one table: name -> rules in the form `-A CHAIN ...`; built-in chains in hook order first."""

    name: str
    policies: dict[str, str]
    chains: dict[str, list[str]]
    references: Counter[str] = field(default_factory=Counter)
    hooked: set[str] = field(default_factory=set)


def new_table(name: str) -> Table:
    """Return a table as the kernel creates it at its first use."""
    built_in = BUILT_IN[name]
    return Table(name, dict.fromkeys(built_in, "ACCEPT"), {chain: [] for chain in built_in})


def printed(table: Table) -> str:
    """The table as iptables-save prints it, without comments."""
    names = [*table.policies, *sorted(name for name in table.chains if name not in table.policies)]
    lines = [f"*{table.name}"]
    lines += [f":{name} {table.policies.get(name, '-')} [0:0]" for name in names]
    for name in names:
        lines += table.chains[name]
    lines.append("COMMIT\n")
    return "\n".join(lines)
