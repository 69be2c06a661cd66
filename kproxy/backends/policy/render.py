"""A group of rules as chains, and the sets that they read. No I/O.

A group has a rule for each pair of ports and peer. One with many is divided by port, see alternatives.py.
"""

from collections.abc import Mapping, Sequence

import msgspec

from kproxy.backends.policy import names
from kproxy.backends.policy.alternatives import Alternative, NamedSets, Parts, alternatives_of, divide, unite
from kproxy.backends.policy.chains import Chain, refusal
from kproxy.backends.policy.config import PolicyConfig
from kproxy.plan.policy.model import Direction, Group


class GroupObjects(msgspec.Struct, frozen=True):
    """What a group needs: chains, its immutable maps and sets by name, and all sets that it reads.

    The first chain is the group's own, to which pods are led; others follow it. `united`: the pod sets of
    which a set has the members.
    """

    chains: Mapping[str, Chain]
    own: Mapping[str, Mapping[str, str]] = {}
    reads: frozenset[str] = frozenset()
    united: Mapping[str, tuple[str, ...]] = {}


def render_group(group: Group, config: PolicyConfig, named: NamedSets) -> GroupObjects:
    """Return the objects of a group. Raises KeyError for a port name without a set."""
    alternatives = alternatives_of(group, named)
    texts = _Texts(config, group.direction)
    end = refusal(config, group.direction.value, group.name)
    own: dict[str, Mapping[str, str]] = {}
    if parts := divide(alternatives):
        chains, own[names.ports_map(group.name)] = _divided(group.name, parts, texts, end)
    else:
        chains = {group.name: ("counter", *texts.rules(alternatives), *end)}
    own |= texts.ports
    return GroupObjects(chains, own, frozenset(texts.reads | own.keys()), texts.united)


def render_closed(group: Group, config: PolicyConfig) -> GroupObjects:
    """Return the objects of a group whose rules the kernel refuses: it allows nothing."""
    return GroupObjects({group.name: ("counter", *refusal(config, group.direction.value, group.name))})


def verdict_for(direction: Direction, group: str) -> str:
    """How a pod is led to its group: after the chain of the source, that of the destination is asked."""
    return f"jump {group}" if direction is Direction.EGRESS else f"goto {group}"


class _Texts:
    """Writes rules, and notes the sets that they read: all, those of ports, and those of several pod sets."""

    def __init__(self, config: PolicyConfig, direction: Direction) -> None:
        self.reads: set[str] = set()
        self.ports: dict[str, Mapping[str, str]] = {}
        self.united: dict[str, tuple[str, ...]] = {}
        self._ip = config.ip
        egress = direction is Direction.EGRESS
        self._peer = f"{config.ip} {'daddr' if egress else 'saddr'}"
        self._allow = "return" if egress else "accept"

    def rules(self, alternatives: Sequence[Alternative]) -> list[str]:
        """The rules that allow what matches one of these."""
        some, united = unite(alternatives)
        self.united |= united
        return [
            " ".join(part for part in (self._of_ports(each), self._of_peer(each), self._allow) if part)
            for each in some
        ]

    def _of_peer(self, each: Alternative) -> str:
        if not each.peer:
            return ""
        self.reads.add(each.peer)
        return f"{self._peer} @{each.peer}"

    def _of_ports(self, each: Alternative) -> str:
        if each.named:
            self.reads.add(each.named)
            return f"{self._ip} daddr . meta l4proto . th dport @{each.named}"
        if each.protocol is None:
            return ""
        protocol = f"meta l4proto {names.PROTOCOL_NUMBERS[each.protocol]}"
        if not each.ranges:
            return protocol
        if len(each.ranges) == 1:
            return f"{protocol} th dport {names.range_text(*each.ranges[0])}"
        name, elements = names.port_ranges(each.ranges)
        self.ports[name] = elements
        return f"{protocol} th dport @{name}"


def _divided(
    group: str, parts: Parts, texts: _Texts, end: Chain
) -> tuple[dict[str, Chain], Mapping[str, str]]:
    """The chains of a group that is divided by port, and the elements of its map."""
    last = names.end_of(group)
    found: dict[str, Chain] = {}
    elements: dict[str, str] = {}
    of_rules: dict[Chain, str] = {}
    for (protocol, port), some in parts.by_port.items():
        rules = (*texts.rules(some), f"goto {last}")
        part = of_rules.setdefault(rules, f"{group}.{len(of_rules)}")
        found[part] = rules
        elements[f"{names.PROTOCOL_NUMBERS[protocol]} . {port}"] = f"goto {part}"
    by_port = f"meta l4proto . th dport vmap @{names.ports_map(group)}"
    own = ("counter", by_port, *texts.rules(parts.rest), f"goto {last}")
    return {group: own, last: end, **found}, elements
