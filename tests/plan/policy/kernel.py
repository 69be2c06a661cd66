"""What a kernel would do with planned tables: looks up addresses, runs groups, and searches sets."""

import ipaddress
from itertools import pairwise

from kproxy.addresses import Family
from kproxy.plan.model import Protocol
from kproxy.plan.policy.model import Direction, PeerMatch, PolicyTable, PortMatch
from kproxy.plan.policy.names import named_port_set


def passes(table: PolicyTable, protocol: Protocol, source: str, destination: str, port: int) -> bool:
    """Whether a packet with these canonical addresses passes both ends."""
    return _accepts(table, Direction.EGRESS, source, destination, protocol, destination, port) and _accepts(
        table, Direction.INGRESS, destination, source, protocol, destination, port
    )


def _accepts(
    table: PolicyTable,
    direction: Direction,
    own: str,
    other: str,
    protocol: Protocol,
    destination: str,
    port: int,
) -> bool:
    name = table.isolated[direction].get(own)
    if name is None:
        return True
    group = table.groups[name]
    assert group.name == name
    assert group.direction is direction
    return any(
        (not rule.peers or any(_peer(table, each, other) for each in rule.peers))
        and (not rule.ports or any(_port(table, each, protocol, destination, port) for each in rule.ports))
        for rule in group.rules
    )


def _peer(table: PolicyTable, match: PeerMatch, ip: str) -> bool:
    assert bool(match.pods) != bool(match.ranges)
    if match.pods:
        return ip in table.peers[match.pods]
    address = ipaddress.ip_address(ip)
    return any(address in ipaddress.ip_network(each) for each in table.ranges[match.ranges])


def _port(table: PolicyTable, match: PortMatch, protocol: Protocol, destination: str, port: int) -> bool:
    if match.protocol is not protocol:
        return False
    if match.name:
        name = named_port_set(match.name, protocol)
        assert table.named_protocols[name] == (match.name, protocol)
        return (destination, port) in table.named[name]
    return not match.ranges or any(first <= port <= last for first, last in match.ranges)


def check(table: PolicyTable, family: Family) -> None:
    """Check what every table must be: nothing is missing, and nothing is left that no group uses."""
    groups = {name for found in table.isolated.values() for name in found.values()}
    assert groups == table.groups.keys()
    matches = [peer for group in table.groups.values() for rule in group.rules for peer in rule.peers]
    assert {each.pods for each in matches if each.pods} == table.peers.keys()
    assert {each.ranges for each in matches if each.ranges} == table.ranges.keys()
    ports = [port for group in table.groups.values() for rule in group.rules for port in rule.ports]
    assert {named_port_set(each.name, each.protocol) for each in ports if each.name} == table.named.keys()
    assert table.named.keys() == table.named_protocols.keys()
    for direction, isolated in table.isolated.items():
        assert isolated.keys() <= table.local.keys()
        assert all(table.groups[name].direction is direction for name in isolated.values())
    for group in table.groups.values():
        assert not any(not rule.ports and not rule.peers for rule in group.rules)
        assert len({(rule.ports, rule.peers) for rule in group.rules}) == len(group.rules)
        assert set(group.closed) <= set(group.policies)
    version = 4 if family is Family.IPV4 else 6
    members = {ip for found in table.peers.values() for ip in found}
    assert all(ipaddress.ip_address(ip).version == version for ip in members | table.local.keys())
    for cidrs in table.ranges.values():
        networks = [ipaddress.ip_network(each) for each in cidrs]
        assert all(each.version == version for each in networks)
        ordered = [(int(each.network_address), int(each.broadcast_address)) for each in networks]
        assert all(a[1] < b[0] for a, b in pairwise(ordered))
