"""Judge the outcomes of a packet by NetworkPolicies: what they refuse, and which rule allows the rest.

Policies see a packet after the translation of services, with its own source, at the hook by which it leaves
the node or comes to it. Packets of the node itself into its pods always pass.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING
from typing import Protocol as Interface

import msgspec
from msgspec import UNSET

from kproxy.addresses import cidr_contains, parse_cidr, split_host_port
from kproxy.inspect.explain.report import REFUSALS, Desired, PolicyFinding, Way, rounded
from kproxy.node.facts import pod_cidrs
from kproxy.plan.model import Protocol
from kproxy.plan.outcomes import ModeFacts, Packet, PacketVerdict, Routing, Where
from kproxy.state.wire import Node

if TYPE_CHECKING:
    from kproxy.plan.policy.describe import PodPolicies
    from kproxy.plan.policy.model import DirectionJudgement, FlowEnd, Judgement

ALLOW, DROP = "allow", "drop"
"""Values of --network-policy-unknown-pods; with any other one, packets are held."""

_MOST_LINES = 10
"""Rules that are named in words; JSON has all."""


class PolicyView(Interface):
    """The plan of NetworkPolicies, see PolicyPlanner."""

    def judge(
        self, protocol: Protocol, source_ip: str, destination_ip: str, port: int, *, from_node: bool = False
    ) -> "Judgement":
        """Whether a new connection is allowed, and why."""

    def policies_of(self, pod: str) -> "PodPolicies | None":
        """What isolates a pod, and its addresses; None if the pod is not known."""

    def pod_at(self, ip: str) -> str | None:
        """The key of the pod that has an address."""


class Enforcement(msgspec.Struct, frozen=True):
    """Policies as they are enforced: `refusal` is what becomes of refused packets.

    Packets of addresses in `pod_ranges` that are no known local pod's are treated as `unknown` says.
    """

    view: PolicyView
    refusal: PacketVerdict = PacketVerdict.DROP
    unknown: str = ALLOW
    pod_ranges: tuple[str, ...] = ()


def enforcement(view: PolicyView, *, reject: bool, unknown: str, node: Node | None) -> Enforcement:
    """The enforcement with these settings; invalid pod ranges of the Node are left out."""
    ranges = []
    for text in pod_cidrs(node):
        try:
            ranges.append(parse_cidr(text)[1])
        except ValueError:
            continue
    refusal = PacketVerdict.REJECT if reject else PacketVerdict.DROP
    return Enforcement(view, refusal, unknown, tuple(ranges))


def with_policies(
    packet: Packet, desired: Desired, mode: ModeFacts, routing: Routing, enforced: Enforcement | None
) -> tuple[Desired, tuple[PolicyFinding, ...]]:
    """What is desired with policies, and what each end of each way says."""
    if enforced is None:
        return desired, ()
    judge = _Judge(packet, mode, routing, enforced)
    ways = _merged(judge.way(each) for each in desired.outcomes)
    words = tuple(_words(judge.findings))
    changed = msgspec.structs.replace(desired, outcomes=ways, policy=(*desired.policy, *words))
    return changed, tuple(judge.findings)


class _Judge:
    """Judges the ways of one packet, and gathers the findings."""

    def __init__(self, packet: Packet, mode: ModeFacts, routing: Routing, enforced: Enforcement) -> None:
        self.findings: list[PolicyFinding] = []
        self._packet = packet
        self._mode = mode
        self._routing = routing
        self._enforced = enforced

    def way(self, way: Way) -> Way:
        """The way, or its refusal."""
        packet = self._packet
        if way.verdict is PacketVerdict.FORWARD and way.endpoint is not None:
            ip, port = split_host_port(way.endpoint)
        elif way.verdict is PacketVerdict.UNTOUCHED or self._passes_policies_first(way):
            ip, port = packet.destination, packet.port
        else:
            return way
        from_node = packet.where is Where.NODE
        judged = self._enforced.view.judge(packet.protocol, packet.source, ip, port, from_node=from_node)
        self.findings += (_finding(each, judged) for each in judged.by)
        # An address that is no known pod's is dealt with before any policy.
        if not from_node and (unknown := self._unknown(judged)) is not None:
            return _ended(way, *unknown)
        return way if judged.allowed else _ended(way, self._enforced.refusal, judged.reason)

    def _passes_policies_first(self, way: Way) -> bool:
        """Whether a refused packet comes to the policies before it is refused.

        What the node receives is refused before; what it forwards, after policies.
        """
        local = self._mode.services_on_node or self._routing.is_local(self._packet.destination)
        return way.verdict in REFUSALS and self._packet.where is not Where.NODE and not local

    def _unknown(self, judged: "Judgement") -> tuple[PacketVerdict, str] | None:
        """What becomes of a packet one of whose ends is an address of this node's pods that is not known."""
        enforced = self._enforced
        if enforced.unknown == ALLOW or self._routing.is_local(judged.source.ip):
            return None
        ends = [judged.source]
        if not self._routing.is_local(judged.destination.ip):
            ends.append(judged.destination)
        found = next((each.ip for each in ends if self._is_unknown(each)), None)
        if found is None:
            return None
        reason = f"{found} is in this node's pod ranges, and no pod with this address is known"
        if enforced.unknown == DROP:
            return PacketVerdict.DROP, reason
        return PacketVerdict.UNKNOWN, f"held until the pod is known: {reason}"

    def _is_unknown(self, end: "FlowEnd") -> bool:
        return not end.local and any(cidr_contains(cidr, end.ip) for cidr in self._enforced.pod_ranges)


def _finding(each: "DirectionJudgement", judged: "Judgement") -> PolicyFinding:
    return PolicyFinding(
        each.direction,
        each.pod,
        judged.destination.ip,
        judged.port,
        each.policies,
        each.allowed,
        each.allowed_by,
        each.nearest,
        each.closed,
    )


def _ended(way: Way, verdict: PacketVerdict, reason: str) -> Way:
    return Way(verdict, None, masquerade=False, probability=way.probability, reason=reason or UNSET)


def _merged(ways: Iterable[Way]) -> tuple[Way, ...]:
    """Refused ways of the same reason as one."""
    found: list[Way] = []
    places: dict[tuple[PacketVerdict, object], int] = {}
    for way in ways:
        if way.endpoint is not None:
            found.append(way)
            continue
        key = (way.verdict, way.reason)
        if key in places:
            known = found[places[key]]
            total = rounded(known.probability + way.probability)
            found[places[key]] = msgspec.structs.replace(known, probability=total)
        else:
            places[key] = len(found)
            found.append(way)
    return tuple(found)


def _words(findings: Iterable[PolicyFinding]) -> Iterator[str]:
    """Which rule allows it at each isolated end; refusals are the reasons of their outcomes."""
    lines: dict[str, None] = {}
    for each in findings:
        if each.allowed_by is not None:
            other = "source" if each.direction == "ingress" else "destination"
            lines[f"{each.allowed_by} allows this {other} ({each.direction} of {each.pod})"] = None
    yield from list(lines)[:_MOST_LINES]
    if len(lines) > _MOST_LINES:
        yield f"and {len(lines) - _MOST_LINES} more rules allow it"
