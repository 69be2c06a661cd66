"""All rules of a family as one iptables-restore input, for `kproxy render` and for new namespaces.

A running kproxy writes differences: see writer.py. Both are built from the same parts, so the printed rules
are those that are programmed.
"""

from collections.abc import Iterable

from kproxy.backends.iptables.layout import Layout
from kproxy.backends.iptables.restore import restore_text
from kproxy.backends.iptables.shared import entries_of
from kproxy.plan.model import ServicePlan

_TABLES = ("mangle", "filter", "nat")


def render_text(plans: Iterable[ServicePlan], layout: Layout) -> str:
    """The complete restore input: tables mangle, filter and nat, each with sorted declarations.

    Within a table: the base chains and the chains that services share, by name; the jumps as insertions, in
    the order in which they are made; the services' own chains by name. `plans` are settled plans of
    the layout's family, in any order.
    """
    wanted = [plan for plan in plans if plan.ports]
    endpoints = sum(port.endpoints for plan in wanted for port in plan.ports)
    comments = endpoints <= layout.large_cluster_endpoints
    services = {plan.key: layout.render(plan, comments=comments) for plan in wanted}

    chains: dict[str, dict[str, str]] = {table: {} for table in _TABLES}
    for (table, chain), rules in layout.base.items():
        chains[table][chain] = rules or ""
    for field, placement in layout.shared.items():
        lines = {key: getattr(rules.shared, field) for key, rules in services.items()}
        placed = placement.chains(entries_of(placement, lines))
        chains[placement.root[0]] |= {chain: "".join(rules) for chain, rules in placed.items()}
    own = {chain: text for rules in services.values() for chain, text in rules.chains.items()}

    parts: list[str] = []
    for table, common in chains.items():
        texts = own if table == "nat" else {}
        rules_text = [common[chain] for chain in sorted(common)]
        rules_text += [jump.insertion for jump in layout.jumps if jump.table == table]
        rules_text += [texts[chain] for chain in sorted(texts)]
        parts.append(restore_text(table, declare=(*common, *texts), rules=rules_text).decode())
    return "".join(parts)
