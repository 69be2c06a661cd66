"""One table of the iptables model in memory: its chains and rules, as text."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from kproxy.backends.iptables.canonical import tokenize
from kproxy.kernel.xtables.native import BUILT_IN


@dataclass(slots=True)
class Table:
    """Chains of one table: name -> rules in the form `-A CHAIN ...`; built-in chains in hook order first.

    `references` counts the rules that jump to each target. `hooked`: built-in chains that nftables has made.
    """

    name: str
    policies: dict[str, str]
    chains: dict[str, list[str]]
    references: Counter[str] = field(default_factory=Counter)
    hooked: set[str] = field(default_factory=set)


def new_table(name: str) -> Table:
    """Return a table as the kernel creates it at its first use."""
    built_in = BUILT_IN.get(name, ())
    return Table(name, dict.fromkeys(built_in, "ACCEPT"), {chain: [] for chain in built_in})


def table_of(name: str, chains: Mapping[str, list[str]]) -> Table:
    """Return a table with these chains, as a dump lists them; the lists of rules are not copied."""
    table = new_table(name)
    table.chains |= chains
    table.hooked.update(chains.keys() & table.policies.keys())
    targets = (target_of(rule) for rules in chains.values() for rule in rules)
    table.references.update(target for target in targets if target is not None)
    return table


def printed(table: Table) -> str:
    """The table as iptables-save prints it, without comments."""
    names = [*table.policies, *sorted(name for name in table.chains if name not in table.policies)]
    lines = [f"*{table.name}"]
    lines += [f":{name} {table.policies.get(name, '-')} [0:0]" for name in names]
    for name in names:
        lines += table.chains[name]
    lines.append("COMMIT\n")
    return "\n".join(lines)


def target_of(rule: str) -> str | None:
    """The chain or extension a rule jumps or goes to; None for a rule that only counts."""
    at = max(rule.rfind(" -j "), rule.rfind(" -g "))
    if at >= 0 and rule.find('"', at) < 0:
        end = rule.find(" ", at + 4)
        return rule[at + 4 :] if end < 0 else rule[at + 4 : end]
    words = tokenize(rule)
    for position, (word, quoted) in enumerate(words[:-1]):
        if not quoted and word in ("-j", "-g", "--jump", "--goto"):
            return words[position + 1][0]
    return None
