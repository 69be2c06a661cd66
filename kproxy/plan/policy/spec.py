"""Read the spec of a NetworkPolicy strictly: what is not understood in full is not obeyed in part.

A rule that is left out closes something silently, and an exception that is left out opens something. So an
unknown field, a wrong type, or a value that the API server would refuse makes a policy one that cannot be
obeyed. It allows nothing, for the pods that its podSelector selects and the directions that its policyTypes
name; where these cannot be read, for all pods of its namespace and for both directions.

Rules: https://kubernetes.io/docs/reference/kubernetes-api/policy-resources/network-policy-v1/ and the
validation of the API server (pkg/apis/networking/validation). Manifests come without defaults of the API.
"""

import re
from collections.abc import Sequence

import msgspec

from kproxy.addresses import Family, cidr_interval, parse_cidr
from kproxy.plan.model import Protocol
from kproxy.plan.policy import limits
from kproxy.plan.policy.defects import Defects
from kproxy.plan.policy.model import Direction
from kproxy.plan.policy.ranges import Block, Interval, count_ranges, is_strictly_within, most_ranges
from kproxy.plan.policy.rules import PodsPeer, Policy, PortSpec, Rule, pods_peer
from kproxy.plan.policy.selectors import EVERYTHING, WireSelector, read_selector
from kproxy.plan.policy.unreadable import BOTH, TYPES, UNDECODABLE, directions_of, explain, selector_of
from kproxy.state.policy_wire import NetworkPolicy

_PORT_NAME = re.compile(r"(?!.*--)(?=.*[a-z])[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?", re.ASCII)
_PORT_MAX = 65_535
_PROTOCOLS = {each.value: each for each in Protocol}


class _Wire(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True, rename="camel"):
    """Base of the structs of a spec; a field may be null, which is the same as absent."""


class _Port(_Wire, frozen=True):
    protocol: str | None = None
    port: int | str | None = None
    end_port: int | None = None


class _IPBlock(_Wire, frozen=True):
    cidr: str
    excepts: tuple[str, ...] | None = msgspec.field(name="except", default=None)


class _Peer(_Wire, frozen=True):
    pod_selector: WireSelector | None = None
    namespace_selector: WireSelector | None = None
    ip_block: _IPBlock | None = None


class _Ingress(_Wire, frozen=True):
    peers: tuple[_Peer, ...] | None = msgspec.field(name="from", default=None)
    ports: tuple[_Port, ...] | None = None


class _Egress(_Wire, frozen=True):
    peers: tuple[_Peer, ...] | None = msgspec.field(name="to", default=None)
    ports: tuple[_Port, ...] | None = None


class _Spec(_Wire, frozen=True):
    pod_selector: WireSelector | None = None
    ingress: tuple[_Ingress, ...] | None = None
    egress: tuple[_Egress, ...] | None = None
    policy_types: tuple[str, ...] | None = None


_FIELDS = frozenset(each.encode_name for each in msgspec.structs.fields(_Spec))
_DECODER = msgspec.json.Decoder(_Spec)


def read_policy(policy: NetworkPolicy) -> Policy:
    """What a policy says, or with `problems` why it cannot be obeyed."""
    raw = bytes(policy.spec)
    try:
        spec = _DECODER.decode(raw) if raw and raw != b"null" else _Spec()
    except UNDECODABLE as error:
        return Policy(
            policy.key,
            policy.metadata.namespace,
            selector_of(raw),
            directions_of(raw, _FIELDS),
            problems=(explain(raw, error),),
        )
    return _Reader(policy).read(spec)


class _Reader:
    """Reads one spec whose types are right, and collects everything that is wrong with its values."""

    def __init__(self, policy: NetworkPolicy) -> None:
        self._key, self._namespace = policy.key, policy.metadata.namespace
        self._defects = Defects()

    def read(self, spec: _Spec) -> Policy:
        selector = EVERYTHING
        if spec.pod_selector is not None:
            selector = read_selector(spec.pod_selector, "spec.podSelector", self._defects)
            selector = EVERYTHING if self._defects else selector
        directions = self._directions(spec)
        ingress: tuple[Rule, ...] = ()
        egress: tuple[Rule, ...] = ()
        if self._within_limits(spec):
            ingress = self._rules(spec.ingress or (), Direction.INGRESS)
            egress = self._rules(spec.egress or (), Direction.EGRESS)
        if not self._defects:
            self._check_products((*ingress, *egress))
        if self._defects:
            ingress = egress = ()
        problems = self._defects.result()
        return Policy(self._key, self._namespace, selector, directions, ingress, egress, problems)

    def _directions(self, spec: _Spec) -> frozenset[Direction]:
        if not spec.policy_types:
            return BOTH if spec.egress else frozenset({Direction.INGRESS})
        found = {TYPES.get(each) for each in spec.policy_types[:3]}
        if len(spec.policy_types) <= len(TYPES) and None not in found:
            return frozenset(each for each in found if each is not None)
        self._defects.add("spec.policyTypes", spec.policy_types, f"only {' and '.join(TYPES)} are known")
        return BOTH

    def _within_limits(self, spec: _Spec) -> bool:
        rules: tuple[_Ingress | _Egress, ...] = (*(spec.ingress or ()), *(spec.egress or ()))
        peers = [peer for rule in rules for peer in rule.peers or ()]
        ports = [port for rule in rules for port in rule.ports or ()]
        selectors = [(each.pod_selector, each.namespace_selector) for each in peers]
        selecting = sum(each != (None, None) for each in selectors)
        requirements = sum(
            len(selector.match_labels or ()) + len(selector.match_expressions or ())
            for each in selectors
            for selector in each
            if selector is not None
        )
        excepts = sum(len(each.ip_block.excepts or ()) for each in peers if each.ip_block is not None)
        names = len({each.port for each in ports if isinstance(each.port, str)})
        numbers = (
            (len(rules), limits.RULES, "rules"),
            (len(peers), limits.PEERS, "peers"),
            (selecting, limits.PODS_PEERS, "peers with selectors"),
            (requirements, limits.REQUIREMENTS_PER_POLICY, "requirements of selectors"),
            (excepts, limits.EXCEPTS, "exceptions of ipBlocks"),
            (len(ports), limits.PORTS, "ports"),
            (names, limits.PORT_NAMES, "port names"),
        )
        return False not in [self._defects.within("spec", *each) for each in numbers]

    def _rules(self, rules: Sequence[_Ingress | _Egress], direction: Direction) -> tuple[Rule, ...]:
        return tuple(self._rule(rule, direction, number) for number, rule in enumerate(rules))

    def _rule(self, wire: _Ingress | _Egress, direction: Direction, number: int) -> Rule:
        path = f"spec.{direction}[{number}]"
        ports = tuple(self._port(each, f"{path}.ports[{n}]") for n, each in enumerate(wire.ports or ()))
        pods: dict[str, PodsPeer] = {}
        blocks: list[Block] = []
        field = "from" if direction is Direction.INGRESS else "to"
        for n, each in enumerate(wire.peers or ()):
            peer = self._peer(each, f"{path}.{field}[{n}]")
            if isinstance(peer, PodsPeer):
                pods[peer.name] = peer
            elif peer is not None:
                blocks.append(peer)
        return Rule(
            f"{self._key} {direction}[{number}]",
            tuple(each for each in ports if each is not None),
            not wire.peers,
            tuple(pods.values()),
            tuple(blocks),
        )

    def _check_products(self, rules: Sequence[Rule]) -> None:
        """Check what the rules become in the kernel."""
        combinations = sum(
            max(1, len(rule.pods) + bool(rule.blocks))
            * max(1, len({(p.protocol, p.name) for p in rule.ports}))
            for rule in rules
        )
        self._defects.within("spec", combinations, limits.COMBINATIONS, "combinations of peer and port")
        wide = len({each.name for rule in rules for each in rule.pods if each.namespaces is not None})
        self._defects.within("spec", wide, limits.WIDE_PEERS, "peers in several namespaces")
        lists = [rule.blocks for rule in rules if rule.blocks]
        for family in Family:
            if sum(most_ranges(each, family) for each in lists) > limits.RANGES:
                number = count_ranges(lists, family, limits.RANGES)
                self._defects.within("spec", number, limits.RANGES, f"{family} ranges without exceptions")

    def _port(self, wire: _Port, path: str) -> PortSpec | None:
        protocol = Protocol.TCP if wire.protocol is None else _PROTOCOLS.get(wire.protocol)
        if protocol is None:
            self._defects.add(f"{path}.protocol", wire.protocol, f"must be one of {', '.join(Protocol)}")
            return None
        port, end = wire.port, wire.end_port
        if not isinstance(port, int) and end is not None:
            self._defects.add(f"{path}.endPort", end, "needs a number as port")
            return None
        if port is None:
            return PortSpec(protocol)
        if isinstance(port, str):
            if not _PORT_NAME.fullmatch(port):
                self._defects.add(f"{path}.port", port, "is not a port name")
            return PortSpec(protocol, port)
        last = port if end is None else end
        for name, value in (("port", port), ("endPort", last)):
            if not 1 <= value <= _PORT_MAX:
                self._defects.add(f"{path}.{name}", value, f"must be 1 to {_PORT_MAX}")
                return None
        if last < port:
            self._defects.add(f"{path}.endPort", last, f"is less than port {port}")
        return PortSpec(protocol, "", port, last)

    def _peer(self, wire: _Peer, path: str) -> PodsPeer | Block | None:
        if wire.ip_block is not None:
            for name, selector in (
                ("podSelector", wire.pod_selector),
                ("namespaceSelector", wire.namespace_selector),
            ):
                if selector is not None:
                    self._defects.add(
                        f"{path}.{name}", msgspec.to_builtins(selector), "not allowed with ipBlock"
                    )
            return self._block(wire.ip_block, f"{path}.ipBlock")
        if wire.pod_selector is None and wire.namespace_selector is None:
            self._defects.add(path, {}, "must have podSelector, namespaceSelector or ipBlock")
            return None
        pods, namespaces = EVERYTHING, None
        if wire.pod_selector is not None:
            pods = read_selector(wire.pod_selector, f"{path}.podSelector", self._defects)
        if wire.namespace_selector is not None:
            namespaces = read_selector(wire.namespace_selector, f"{path}.namespaceSelector", self._defects)
        return pods_peer(self._namespace, namespaces, pods)

    def _block(self, wire: _IPBlock, path: str) -> Block | None:
        try:
            family, cidr = parse_cidr(wire.cidr)
        except ValueError as error:
            self._defects.add(f"{path}.cidr", wire.cidr, str(error))
            return None
        interval = cidr_interval(cidr)
        holes: dict[str, Interval] = {}
        for number, text in enumerate(wire.excepts or ()):
            field = f"{path}.except[{number}]"
            try:
                other, canonical = parse_cidr(text)
            except ValueError as error:
                self._defects.add(field, text, str(error))
                continue
            hole = holes[canonical] = cidr_interval(canonical)
            if other is not family or not is_strictly_within(hole, interval):
                self._defects.add(field, text, f"must be strictly within cidr {cidr}")
        excepts = tuple(sorted(holes))
        return Block(family, cidr, excepts, interval, tuple(holes[each] for each in excepts))
