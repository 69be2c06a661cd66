"""Judge one flow as the kernel would, and say why: which rule allows it, or what the nearest rule lacks.

The policies are compared with the flow directly, without groups and sets, so that the answer names policies
and rules as their authors wrote them. Only ends on this node are judged: the other end's node judges it.
"""

from collections.abc import Callable, Sequence

import msgspec

from kproxy.addresses import Family, to_number
from kproxy.plan.model import Protocol
from kproxy.plan.policy.identities import selects
from kproxy.plan.policy.model import Direction, DirectionJudgement, FlowEnd, Judgement
from kproxy.plan.policy.pods import PodEntry
from kproxy.plan.policy.rules import Policy, Rule
from kproxy.plan.policy.selectors import Labels
from kproxy.plan.policy.words import flow_port, listed, peers_in_words, ports_in_words

PoliciesOf = Callable[[PodEntry], Sequence[Policy]]
LabelsOf = Callable[[str], Labels]


class Flow(msgspec.Struct, frozen=True):
    """A new connection between canonical addresses of one family, and the pods that have them."""

    family: Family
    protocol: Protocol
    port: int
    source_ip: str
    destination_ip: str
    source: PodEntry | None
    destination: PodEntry | None

    def subject(self, direction: Direction) -> PodEntry | None:
        """The pod whose policies of this direction are asked: one of this node, else None."""
        pod = self.destination if direction is Direction.INGRESS else self.source
        return pod if pod is not None and pod.local else None


def judge_flow(
    flow: Flow, policies_of: PoliciesOf, labels_of: LabelsOf, *, from_node: bool = False
) -> Judgement:
    """Judge both ends.

    `from_node`: the source is the node itself, whose traffic into its pods always passes.
    """
    by: list[DirectionJudgement] = []
    for direction in (Direction.EGRESS, Direction.INGRESS):
        subject = flow.subject(direction)
        if subject is not None and not (from_node and direction is Direction.INGRESS):
            by.append(_judge_end(flow, direction, subject, policies_of(subject), labels_of))
    refusals = [_reason(each) for each in by if not each.allowed]
    return Judgement(
        _end(flow.source_ip, flow.source),
        _end(flow.destination_ip, flow.destination),
        flow.protocol,
        flow.port,
        not refusals,
        tuple(by),
        "; ".join(refusals),
    )


def _judge_end(
    flow: Flow, direction: Direction, subject: PodEntry, policies: Sequence[Policy], labels_of: LabelsOf
) -> DirectionJudgement:
    isolating = [each for each in policies if direction in each.directions]
    if not isolating:
        return DirectionJudgement(direction, subject.key)
    keys = tuple(each.key for each in isolating)
    closed = tuple(each.key for each in isolating if each.problems)
    right_peer: list[Rule] = []
    right_port: list[Rule] = []
    for rule in (rule for policy in isolating for rule in policy.rules(direction)):
        peer, port = _peer_matches(rule, flow, direction, labels_of), _port_matches(rule, flow)
        if peer and port:
            return DirectionJudgement(direction, subject.key, keys, allowed_by=rule.origin, closed=closed)
        if peer:
            right_peer.append(rule)
        elif port:
            right_port.append(rule)
    nearest = _nearest(flow, direction, isolating, right_peer, right_port)
    return DirectionJudgement(direction, subject.key, keys, allowed=False, nearest=nearest, closed=closed)


def _peer_matches(rule: Rule, flow: Flow, direction: Direction, labels_of: LabelsOf) -> bool:
    if rule.anyone:
        return True
    if direction is Direction.INGRESS:
        ip, pod = flow.source_ip, flow.source
    else:
        ip, pod = flow.destination_ip, flow.destination
    if pod is not None:
        labels = labels_of(pod.identity.namespace)
        if any(selects(each, pod.identity, labels) for each in rule.pods):
            return True
    if not rule.blocks:
        return False
    number = to_number(ip)
    return any(each.family is flow.family and each.contains(number) for each in rule.blocks)


def _port_matches(rule: Rule, flow: Flow) -> bool:
    if not rule.ports:
        return True
    for each in rule.ports:
        if each.protocol is not flow.protocol:
            continue
        if each.name:
            pod = flow.destination
            if pod is not None and flow.port in pod.numbers(each.name, each.protocol):
                return True
        elif not each.first or each.first <= flow.port <= each.last:
            return True
    return False


def _nearest(
    flow: Flow,
    direction: Direction,
    isolating: Sequence[Policy],
    right_peer: Sequence[Rule],
    right_port: Sequence[Rule],
) -> str:
    """The first rule that lacks only the port, best with the same protocol; else one that lacks the peer."""
    ingress = direction is Direction.INGRESS
    other, preposition = ("source", "from") if ingress else ("destination", "to")
    port = flow_port(flow.protocol, flow.port)
    if right_peer:
        same = (each for each in right_peer if any(p.protocol is flow.protocol for p in each.ports))
        rule = next(same, right_peer[0])
        return f"{rule.origin} allows this {other}, but only {ports_in_words(rule, flow.destination)}"
    if right_port:
        rule = right_port[0]
        allowed = port if rule.ports else "every port"
        return f"{rule.origin} allows {allowed}, but only {preposition} {peers_in_words(rule)}"
    if any(each.rules(direction) for each in isolating):
        return f"no rule allows this {other}, and none allows {port}"
    closed = [each.key for each in isolating if each.problems]
    if closed:
        return f"{listed(closed)} cannot be obeyed, so nothing is allowed"
    return f"{listed([each.key for each in isolating])} allows nothing"


def _reason(judged: DirectionJudgement) -> str:
    return f"{judged.direction} of {judged.pod} is isolated by {listed(judged.policies)}: {judged.nearest}"


def _end(ip: str, pod: PodEntry | None) -> FlowEnd:
    return FlowEnd(ip) if pod is None else FlowEnd(ip, pod.key, pod.local)
