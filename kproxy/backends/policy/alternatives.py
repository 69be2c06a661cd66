"""What a group allows, as alternatives that are a rule each, and their division by port.

A rule costs every new packet that comes to it about 15 ns if its port is another, and 60 more to look up the
peer; a set of ranges of ports costs 90 and a map by port 100 (measured with Linux 6.18). So some ports are a
rule each, and a group with many rules is divided: a map by protocol and port leads to a chain that has only
the rules for that port, without the port. What has no single port follows in the group's own chain. Many pod
sets with the same ports are looked up in one set with the members of all.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from kproxy.backends.policy import names
from kproxy.plan.model import Protocol
from kproxy.plan.policy.model import Group, PortMatch, RuleMatch

DIVIDE_FROM = 16
"""The number of rules of a group from which on it is divided by port."""

FEW_RANGES = 4
"""Up to this number, the ranges of ports of a rule are a rule each; more are looked up in a set."""

UNITE_FROM = 8
"""The number of pod sets with the same ports from which on a group looks them up in one."""

MOST_PORTS = 256
"""The greatest number of ports by which a group is divided."""

MOST_TIMES = 4
"""The greatest number of rules of a divided group, as a multiple of those of an undivided one."""

NamedSets = Mapping[tuple[str, Protocol], str]
"""The set of each port name and protocol."""

Port = tuple[Protocol, int]


class Alternative(msgspec.Struct, frozen=True):
    """Ports of one protocol and a peer, which must both match; no protocol: every packet.

    `named`: the set of a port name. `peer`: the set of the other end's addresses, or "".
    """

    peer: str = ""
    protocol: Protocol | None = None
    ranges: tuple[tuple[int, int], ...] = ()
    named: str = ""


class Parts(msgspec.Struct, frozen=True):
    """A group divided by port: the alternatives of each port, and those of all other packets."""

    by_port: Mapping[Port, Sequence[Alternative]]
    rest: Sequence[Alternative]


def alternatives_of(group: Group, named: NamedSets) -> list[Alternative]:
    """What a group allows. Raises KeyError for the name of a port without a set."""
    found: dict[Alternative, None] = {}
    for rule in group.rules:
        peers = [peer.pods or peer.ranges for peer in rule.peers] or [""]
        for ports in _ports(rule, named):
            for peer in peers:
                found.setdefault(msgspec.structs.replace(ports, peer=peer))
    return list(found)


def _ports(rule: RuleMatch, named: NamedSets) -> list[Alternative]:
    """The ports of a rule, those of one protocol together."""
    if not rule.ports:
        return [Alternative()]
    found: list[Alternative] = []
    for protocol in sorted({port.protocol for port in rule.ports}):
        ports = [port for port in rule.ports if port.protocol is protocol]
        if any(_is_every(port) for port in ports):
            found.append(Alternative(protocol=protocol))
            continue
        ranges = _merged(each for port in ports for each in port.ranges)
        if len(ranges) <= FEW_RANGES:
            found += [Alternative(protocol=protocol, ranges=(each,)) for each in ranges]
        else:
            found.append(Alternative(protocol=protocol, ranges=ranges))
        found += [
            Alternative(protocol=protocol, named=named[port.name, protocol]) for port in ports if port.name
        ]
    return found


def _is_every(port: PortMatch) -> bool:
    return not port.ranges and not port.name


def _merged(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(last, found[-1][1])
        else:
            found.append((first, last))
    return tuple(found)


def unite(alternatives: Sequence[Alternative]) -> tuple[list[Alternative], dict[str, tuple[str, ...]]]:
    """Replace many pod sets that are allowed the same ports by one set with the members of all.

    Return the alternatives, and the names of the sets that each united one is of.
    """
    by_ports: dict[Alternative, list[str]] = {}
    for each in alternatives:
        by_ports.setdefault(msgspec.structs.replace(each, peer=""), []).append(each.peer)
    found: list[Alternative] = []
    united: dict[str, tuple[str, ...]] = {}
    for ports, peers in by_ports.items():
        if "" in peers:
            found.append(ports)
            continue
        pods = tuple(sorted({peer for peer in peers if names.is_pod_set(peer)}))
        if len(pods) >= UNITE_FROM:
            name = names.united(pods)
            united[name] = pods
            peers = [name, *(peer for peer in peers if not names.is_pod_set(peer))]  # noqa: PLW2901
        found += [msgspec.structs.replace(ports, peer=peer) for peer in dict.fromkeys(peers)]
    return found, united


def divide(alternatives: Sequence[Alternative]) -> Parts | None:
    """Divide a group by port; None if it has few rules, or if packets would meet as many."""
    if len(unite(alternatives)[0]) < DIVIDE_FROM:
        return None
    single = {
        (each.protocol, first)
        for each in alternatives
        for first, last in each.ranges
        if first == last and each.protocol is not None
    }
    ports = sorted(single)[:MOST_PORTS]
    by_port = {port: [found for each in alternatives if (found := _at(each, port))] for port in ports}
    chosen = frozenset(ports)
    rest = [found for each in alternatives if (found := _without(each, chosen))]
    longest = max(len(unite(some)[0]) for some in (rest, *by_port.values()))
    if longest + 2 > len(unite(alternatives)[0]):
        return None
    if len(rest) + sum(map(len, by_port.values())) > MOST_TIMES * len(alternatives):
        return None
    return Parts(by_port, rest)


def _at(each: Alternative, port: Port) -> Alternative | None:
    """What is left of an alternative for packets to a port."""
    protocol, number = port
    if each.protocol is None:
        return each
    if each.protocol is not protocol:
        return None
    if each.named:
        return each
    if each.ranges and not any(first <= number <= last for first, last in each.ranges):
        return None
    return Alternative(each.peer)


def _without(each: Alternative, ports: frozenset[Port]) -> Alternative | None:
    """What is left of an alternative for packets to other ports."""
    if not each.ranges or each.protocol is None:
        return each
    protocol = each.protocol
    left = tuple(some for some in each.ranges if some[0] != some[1] or (protocol, some[0]) not in ports)
    return msgspec.structs.replace(each, ranges=left) if left else None
