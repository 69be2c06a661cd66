"""Which local pods a change of the plan concerns, and whether their connections without ports may go on.

Those are the pods whose established connections are judged again; the planner judges protocols with ports.
"""

from kproxy.addresses import cidr_contains
from kproxy.plan.policy.model import Direction, Group, PolicyTable, RuleMatch, Touched
from kproxy.plan.policy.names import named_port_set


def affected(table: PolicyTable, touched: Touched) -> frozenset[str]:
    """The local addresses whose groups changed, or whose groups use a set with other members.

    The rest of a group never changes under its name.
    """
    found = {address for address in touched.addresses if address in table.local}
    if touched.members:
        groups = {name for name, group in table.groups.items() if _uses(group, touched.members)}
        for isolated in table.isolated.values():
            found.update(address for address, name in isolated.items() if name in groups)
    return frozenset(found)


def _uses(group: Group, members: frozenset[str]) -> bool:
    return any(
        any(peer.pods in members for peer in rule.peers if peer.pods)
        or any(named_port_set(port.name, port.protocol) in members for port in rule.ports if port.name)
        for rule in group.rules
    )


def allowed_without_ports(table: PolicyTable, source: str, destination: str) -> bool:
    """Whether packets of a protocol without ports, such as ICMP, may pass: by rules without ports only."""
    ends = ((Direction.EGRESS, source, destination), (Direction.INGRESS, destination, source))
    for direction, pod, other in ends:
        name = table.isolated[direction].get(pod)
        if name is not None and not any(
            not rule.ports and _is_peer(table, rule, other) for rule in table.groups[name].rules
        ):
            return False
    return True


def _is_peer(table: PolicyTable, rule: RuleMatch, address: str) -> bool:
    return not rule.peers or any(
        address in table.peers[peer.pods]
        if peer.pods
        else any(cidr_contains(cidr, address) for cidr in table.ranges[peer.ranges])
        for peer in rule.peers
    )
