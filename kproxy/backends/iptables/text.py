"""The whole of a family's rules as one iptables-restore input, for people and for fresh namespaces.

`kproxy render` prints it, and the tests of rendering read it. What a running kproxy writes is smaller: see
writer.py. Both are built from the same parts, so what is shown is what is programmed.
"""

from collections.abc import Iterable

from kproxy.backends.iptables.kernel_state import KernelState
from kproxy.backends.iptables.layout import Layout
from kproxy.backends.iptables.restore import restore_text
from kproxy.plan.model import ServicePlan

_TABLES = ("mangle", "filter", "nat")


def render_text(plans: Iterable[ServicePlan], layout: Layout) -> str:
    """The complete restore input: tables mangle, filter and nat, each with sorted declarations.

    Within a table: the fixed chains and the chains that services share, by name; the jumps as insertions, in
    the order in which they are made; the services' own chains by name. `plans` are settled plans of
    the layout's family, in any order.
    """
    wanted = [plan for plan in plans if plan.ports]
    endpoints = sum(port.endpoints for plan in wanted for port in plan.ports)
    comments = endpoints <= layout.large_cluster_endpoints
    state = KernelState()
    state.services = {plan.key: layout.render(plan, comments=comments) for plan in wanted}

    chains: dict[str, dict[str, str]] = {table: {} for table in _TABLES}
    for (table, chain), rules in layout.fixed.items():
        chains[table][chain] = rules or ""
    for field, (table, chain) in layout.shared.items():
        chains[table][chain] = "".join(state.shared_lines(field, {}, layout.tails.get(field, ())))
    own = {chain: text for rules in state.services.values() for chain, text in rules.chains.items()}

    parts: list[str] = []
    for table, common in chains.items():
        services = own if table == "nat" else {}
        lines = [common[chain] for chain in sorted(common)]
        lines += [jump.insertion for jump in layout.jumps if jump.table == table]
        lines += [services[chain] for chain in sorted(services)]
        parts.append(restore_text(table, declare=(*common, *services), rules=lines).decode())
    return "".join(parts)
