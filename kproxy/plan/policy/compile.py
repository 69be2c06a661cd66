"""Turn the policies that isolate a pod into a group: the rules of one direction and one family.

Equal inputs give equal groups with equal names, whichever pod asked. Everything that a rule says of other
families is left out, and a rule that can match nothing then is left out too: it must not become one without
peers or ports, which would match everything.

Tiers. A ClusterNetworkPolicy (policy.networking.k8s.io/v1alpha2) has rules that accept, deny or pass, in a
tier Admin before and a tier Baseline after NetworkPolicies. Rules of this module only accept, and what no
rule accepts is denied: that is the tier between. To add tiers, `RuleMatch` gets a verdict (accept by
default), and `group_of` puts the Admin rules, by priority, before the rules and the Baseline rules after
them; the end of a group then accepts if no NetworkPolicy isolates the pod. Sets, names, `PolicyTable` and its
updates stay.
"""

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from kproxy.addresses import Family
from kproxy.plan.model import Protocol
from kproxy.plan.policy.model import Direction, Group, PeerMatch, PortMatch, RuleMatch
from kproxy.plan.policy.names import content_name
from kproxy.plan.policy.ranges import cidrs_of, is_everything
from kproxy.plan.policy.rules import NamedPort, PodsPeer, Policy, PortSpec, Rule

_EVERY_PORT = (0, 0)


class Compiled(msgspec.Struct, frozen=True, gc=False):
    """What isolates a pod in one direction and family; `group` is None if something allows everything.

    `pods`, `ranges` and `named` are the sets that the rules of the group use, by name.
    """

    group: Group | None
    pods: dict[str, PodsPeer]
    ranges: dict[str, tuple[str, ...]]
    named: tuple[tuple[str, Protocol], ...]


class CompiledPeers(msgspec.Struct, frozen=True, gc=False):
    """The peers of a rule in one family; `matches` is None if no address of that family can match.

    `name` and `ranges` are those of the set of address ranges, if one of `matches` is one.
    """

    matches: tuple[PeerMatch, ...] | None
    name: str = ""
    ranges: tuple[str, ...] = ()


class _RuleForm(msgspec.Struct, frozen=True, gc=False):
    """A rule of one direction and family; `ports` is None if they depend on the pod."""

    rule: Rule
    ports: tuple[PortMatch, ...] | None
    peers: CompiledPeers


class CompiledPolicy:
    """A policy, and its rules as groups need them, made once for all pods that it selects."""

    __slots__ = ("_forms", "policy")

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._forms: dict[tuple[bool, bool], tuple[_RuleForm, ...]] = {}

    def rules(self, direction: Direction, family: Family) -> tuple[_RuleForm, ...]:
        """The rules that can match anything in this family."""
        key = direction is Direction.INGRESS, family is Family.IPV6
        forms = self._forms.get(key)
        if forms is None:
            forms = self._forms[key] = tuple(_forms(self.policy, direction, family))
        return forms


def group_of(
    direction: Direction, policies: Sequence[CompiledPolicy], family: Family, ports: tuple[NamedPort, ...]
) -> Compiled:
    """The group of a pod with these named ports; `policies` are sorted by key, and all isolate it."""
    rules: dict[tuple[tuple[PortMatch, ...], tuple[PeerMatch, ...]], RuleMatch] = {}
    pods: dict[str, PodsPeer] = {}
    ranges: dict[str, tuple[str, ...]] = {}
    named: dict[tuple[str, Protocol], None] = {}
    for form in (form for policy in policies for form in policy.rules(direction, family)):
        matched = port_matches(form.rule, direction, ports) if form.ports is None else form.ports
        peers = form.peers.matches
        if matched is None or peers is None:
            continue
        if not matched and not peers:
            return Compiled(None, {}, {}, ())
        if (matched, peers) in rules:
            continue
        rules[matched, peers] = RuleMatch(matched, peers, form.rule.origin)
        for port in matched:
            if port.name:
                named[port.name, port.protocol] = None
        if peers:
            pods.update((each.name, each) for each in form.rule.pods)
            if form.peers.name:
                ranges[form.peers.name] = form.peers.ranges
    keys = tuple(each.policy.key for each in policies)
    closed = tuple(each.policy.key for each in policies if each.policy.problems)
    content = (direction, keys, tuple(rules.values()), closed)
    name = content_name("i" if direction is Direction.INGRESS else "e", content)
    return Compiled(Group(name, *content), pods, ranges, tuple(named))


def _forms(policy: Policy, direction: Direction, family: Family) -> Iterator[_RuleForm]:
    for rule in policy.rules(direction):
        peers = peer_matches(rule, family)
        if peers.matches is None:
            continue
        if direction is Direction.INGRESS and any(each.name for each in rule.ports):
            yield _RuleForm(rule, None, peers)
        else:
            yield _RuleForm(rule, port_matches(rule, direction, ()), peers)


def peer_matches(rule: Rule, family: Family) -> CompiledPeers:
    """The peers of a rule: none if all addresses match."""
    if rule.anyone:
        return CompiledPeers(())
    found = [PeerMatch(pods=each.name) for each in rule.pods]
    cidrs = cidrs_of(rule.blocks, family) if rule.blocks else ()
    if is_everything(cidrs):
        return CompiledPeers(())
    name = content_name("c", cidrs) if cidrs else ""
    if name:
        found.append(PeerMatch(ranges=name))
    return CompiledPeers(tuple(sorted(found)), name, cidrs) if found else CompiledPeers(None)


def port_matches(
    rule: Rule, direction: Direction, ports: tuple[NamedPort, ...]
) -> tuple[PortMatch, ...] | None:
    """The ports of a rule: none if all traffic matches; None if no port can match.

    At ingress, names mean the pod's own `ports`.
    """
    if not rule.ports:
        return ()
    ranges: dict[Protocol, list[tuple[int, int]]] = {}
    names: set[tuple[Protocol, str]] = set()
    for each in rule.ports:
        if not each.name:
            ranges.setdefault(each.protocol, []).append((each.first, each.last))
        elif direction is Direction.EGRESS:
            names.add((each.protocol, each.name))
        else:
            ranges.setdefault(each.protocol, []).extend(_numbers(each, ports))
    every = {protocol for protocol, found in ranges.items() if _EVERY_PORT in found}
    matched = [PortMatch(protocol) for protocol in every]
    matched += [PortMatch(p, merge(found)) for p, found in ranges.items() if found and p not in every]
    matched += [PortMatch(protocol, (), name) for protocol, name in names if protocol not in every]
    return tuple(sorted(matched)) or None


def merge(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The same ports as sorted ranges, none beside another."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(merged[-1][1], last)
        else:
            merged.append((first, last))
    return tuple(merged)


def _numbers(port: PortSpec, ports: tuple[NamedPort, ...]) -> list[tuple[int, int]]:
    return [(number, number) for name, p, number in ports if name == port.name and p is port.protocol]
