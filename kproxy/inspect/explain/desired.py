"""What should happen to a packet: the plan of its service, with every decision in words.

The result does not depend on what was written to the kernel. Where the modes differ on purpose, `ModeFacts`
says how.
"""

from collections.abc import Iterable

import msgspec
from msgspec import UNSET

from kproxy.addresses import cidr_contains
from kproxy.inspect.explain.cluster import Cluster
from kproxy.inspect.explain.frontends import Found, find, without_service
from kproxy.inspect.explain.policies import with_policies
from kproxy.inspect.explain.question import Question
from kproxy.inspect.explain.report import (
    Desired,
    Destination,
    Excluded,
    Frontend,
    Report,
    Source,
    Way,
    rounded,
)
from kproxy.inspect.explain.resolve import Resolved, resolve
from kproxy.node.facts import FamilyFacts
from kproxy.plan.exclusions import Judged, judge
from kproxy.plan.model import EndpointPlan, PortPlan
from kproxy.plan.outcomes import FrontendKind, ModeFacts, Packet, PacketVerdict, Where
from kproxy.plan.weights import effective


class _Decision(msgspec.Struct, frozen=True):
    """The endpoints for a packet under one policy, or the refusal.

    `by_rules`: rules as in iptables mode choose the endpoint, whatever the mode. `at_socket`: the client's
    socket gets its endpoint before there is a packet.
    """

    words: tuple[str, ...]
    endpoints: tuple[EndpointPlan, ...] = ()
    local: bool = False
    masquerade: bool = False
    by_rules: bool = False
    at_socket: bool = False
    verdict: PacketVerdict = PacketVerdict.FORWARD
    reason: str = ""


def explain_desired(question: Question, cluster: Cluster) -> Report:
    """Answer a question without the kernel. Raises QuestionError."""
    resolved = resolve(question, cluster)
    mode = cluster.mode_facts(resolved.packet.family)
    found = find(resolved.packet, resolved.service, mode, cluster)
    if found is not None:
        return _served(resolved, found, mode, cluster)
    verdict, reason = without_service(resolved.packet, mode, cluster)
    refused = verdict is not PacketVerdict.UNTOUCHED
    way = Way(verdict, None, masquerade=False, probability=1.0, reason=reason if refused else UNSET)
    return _report(
        resolved, cluster, None, Desired((way,), (reason,)), conflicts=_conflicts(resolved, cluster)
    )


def _served(
    resolved: Resolved,
    found: Found,
    mode: ModeFacts,
    cluster: Cluster,
) -> Report:
    packet, plan, port, kind = resolved.packet, found.plan, found.port, found.kind
    sides = cluster.facts.families[packet.family]
    decision = _decide(packet, port, kind, mode, sides, cluster)
    inputs = cluster.service(plan.key)
    judged = judge(inputs, packet.family, cluster.facts.view, port, local=decision.local)
    if decision.verdict is PacketVerdict.FORWARD:
        scheduler = "" if decision.by_rules else mode.scheduler(port)
        words = (*decision.words, *_more_words(port, decision, kind, scheduler))
        ways = tuple(_ways(packet, port, len(plan.ports), decision, judged, mode))
        desired = Desired(ways, words, port.affinity_seconds is not None, scheduler)
    else:
        desired = Desired((_refusal(decision.verdict, decision.reason),), decision.words)
    name = port.name[len(plan.key) + 1 :] or str(port.port)
    return _report(
        resolved,
        cluster,
        Frontend(plan.key, name, kind),
        desired,
        tuple(_excluded(judged)),
        tuple(f"{p.field} {p.value}: {p.reason}" for p in plan.problems if p.conflict or p.refused),
    )


def _decide(
    packet: Packet, port: PortPlan, kind: FrontendKind, mode: ModeFacts, facts: FamilyFacts, cluster: Cluster
) -> _Decision:
    internal = kind is FrontendKind.CLUSTER_IP
    local = port.internal_local if internal else port.external_local
    side = "internal" if internal else "external"
    policy = f"{side}TrafficPolicy {'Local' if local else 'Cluster'}"
    own = packet.where is Where.NODE
    if not port.has_endpoints:
        reason = "no endpoint is ready, and none that terminates still serves"
        if not port.endpoints:
            reason = "the Service has no endpoint for this port"
        if (
            not internal
            and own
            and not mode.refuses_node_itself
            and not cluster.routing.is_local(packet.destination)
        ):
            passed = "the node's own packets are not refused at this address"
            return _Decision((policy, reason, passed), local=local, verdict=PacketVerdict.UNTOUCHED)
        return _Decision((policy, reason), local=local, verdict=PacketVerdict.REJECT, reason=reason)
    words: list[str] = []
    if kind is FrontendKind.LOAD_BALANCER and port.source_ranges is not None:
        allowed, text = _admission(packet, port)
        if not allowed:
            return _Decision((policy, text), local=local, verdict=PacketVerdict.DROP, reason=text)
        words.append(text)
    pod = _is_local_pod(packet, facts)
    at_socket = internal and mode.at_socket(packet, port)
    if at_socket:
        masquerade, text = False, "the socket table chooses when the client connects: address kept"
    elif internal:
        masquerade, text = _masquerades(pod, own, mode, facts, masquerade_all=cluster.config.masquerade_all)
    elif not local:
        masquerade, text = True, "an address for outside: masqueraded"
    elif pod and not (own and mode.rules_for_local_policy):
        local, masquerade, text = False, False, "source is a pod: every endpoint may serve it, address kept"
    elif own:
        local, masquerade, text = False, True, "source is the node: every endpoint may serve it, masqueraded"
    else:
        masquerade, text = False, "source is outside: address kept"
    words.insert(0, f"{policy}; {text}")
    endpoints = port.local if local else port.cluster
    if not endpoints:
        reason = "policy Local, and no endpoint on this node: dropped, so that the client tries again"
        return _Decision((*words, reason), local=True, verdict=PacketVerdict.DROP, reason=reason)
    by_rules = not internal and port.external_local and not local and mode.rules_for_local_policy
    return _Decision(
        tuple(words), endpoints, local=local, masquerade=masquerade, by_rules=by_rules, at_socket=at_socket
    )


def _masquerades(
    pod: bool, own: bool, mode: ModeFacts, facts: FamilyFacts, *, masquerade_all: bool
) -> tuple[bool, str]:
    """Whether packets to a cluster IP are masqueraded, and why."""
    if masquerade_all:
        return True, "masquerade-all: masqueraded"
    if facts.local_traffic is None:
        if own and mode.masquerades_own:
            return True, "source is the node: masqueraded"
        return False, "local pod traffic is not detected: address kept"
    if pod:
        return False, "source is a pod: address kept"
    return (
        True,
        "source is the node: masqueraded" if own else "source is not a pod of the cluster: masqueraded",
    )


def _is_local_pod(packet: Packet, facts: FamilyFacts) -> bool:
    """Whether the packet counts as pod traffic (detectLocalMode)."""
    traffic = facts.local_traffic
    if traffic is None:
        return False
    if traffic.cidr is not None:
        return cidr_contains(traffic.cidr, packet.source)
    pattern = traffic.interface or ""
    if packet.where is Where.NODE:
        return False
    if packet.interface is None:
        return packet.where is Where.POD
    return packet.interface.startswith(pattern[:-1]) if pattern.endswith("+") else packet.interface == pattern


def _admission(packet: Packet, port: PortPlan) -> tuple[bool, str]:
    """Whether source ranges admit the source, in words."""
    ranges = port.source_ranges or ()
    found = next((cidr for cidr in ranges if cidr_contains(cidr, packet.source)), None)
    if found is not None:
        return True, f"loadBalancerSourceRanges: {packet.source} is in {found}"
    if packet.where is Where.NODE and port.node_in_source_ranges:
        return True, "loadBalancerSourceRanges: the node is in them"
    listed = ", ".join(ranges[:5]) + (f" and {len(ranges) - 5} more" if len(ranges) > 5 else "")
    return False, f"loadBalancerSourceRanges: {packet.source} is not in {listed or 'any'}: dropped"


def _more_words(port: PortPlan, decision: _Decision, kind: FrontendKind, scheduler: str) -> Iterable[str]:
    if port.affinity_seconds is not None:
        yield f"sessionAffinity ClientIP: a known client keeps its endpoint for {port.affinity_seconds} s"
    if scheduler:
        yield f"scheduler {scheduler}"
    if len({endpoint.weight for endpoint in decision.endpoints}) > 1:
        yield "shares by kproxy.io/weights"
    if kind is not FrontendKind.CLUSTER_IP and port.external_local and port.health_check_node_port:
        result = "passes" if port.local else "fails"
        yield f"health check of load balancers at port {port.health_check_node_port}: {result} here"


def _ways(
    packet: Packet,
    port: PortPlan,
    ports: int,
    decision: _Decision,
    judged: Iterable[Judged],
    mode: ModeFacts,
) -> Iterable[Way]:
    endpoints, by_rules = decision.endpoints, decision.by_rules
    weights = effective(endpoints)
    exact = tuple(weight / sum(weights) for weight in weights)
    shares = exact if by_rules else mode.shares(port, endpoints, ports)
    anywhere = by_rules or mode.hairpin_anywhere
    by_packets = not decision.at_socket
    used = {each.text: each for each in judged if each.why is None}
    for endpoint, share in zip(endpoints, shares, strict=True):
        if not share:
            continue
        hairpin = by_packets and endpoint.ip == packet.source and (endpoint.may_be_here or anywhere)
        known = used.get(endpoint.address_port)
        yield Way(
            PacketVerdict.FORWARD,
            endpoint.address_port,
            decision.masquerade or hairpin,
            rounded(share),
            "hairpin: masqueraded" if hairpin and not decision.masquerade else UNSET,
            (known.pod if known is not None else "") or UNSET,
            (known.node if known is not None else "") or UNSET,
            (known.zone if known is not None else "") or UNSET,
        )


def _refusal(verdict: PacketVerdict, reason: str) -> Way:
    return Way(verdict, None, masquerade=False, probability=1.0, reason=reason or UNSET)


def _excluded(judged: Iterable[Judged]) -> Iterable[Excluded]:
    for each in judged:
        if each.why is not None:
            yield Excluded(each.text, each.pod, each.why.reason.value, each.why.detail, each.node, each.zone)


def _conflicts(resolved: Resolved, cluster: Cluster) -> tuple[str, ...]:
    """What the named Service asks for and does not have."""
    if resolved.service is None:
        return ()
    planner = cluster.planner(resolved.packet.family)
    if planner is None:
        return (f"{resolved.packet.family} is not served on this node",)
    plan = planner.preview(cluster.service(resolved.service), cluster.facts.view)
    return tuple(f"{p.field} {p.value}: {p.reason}" for p in plan.problems)


def _report(
    resolved: Resolved,
    cluster: Cluster,
    frontend: Frontend | None,
    desired: Desired,
    excluded: tuple[Excluded, ...] = (),
    conflicts: tuple[str, ...] = (),
) -> Report:
    packet = resolved.packet
    notes = resolved.notes
    mode = cluster.mode_facts(packet.family)
    desired, policies = with_policies(packet, desired, mode, cluster.routing, cluster.policies)
    owner = frontend.service if frontend is not None else None
    if resolved.service is not None and owner not in {None, resolved.service}:
        notes = (*notes, f"{owner} has this address and port, not {resolved.service}")
        conflicts = (*conflicts, *_conflicts(resolved, cluster))
    return Report(
        Source(packet.source, packet.where, packet.interface),
        packet.protocol,
        Destination(packet.destination, packet.port),
        frontend,
        desired,
        excluded=excluded,
        conflicts=conflicts,
        policies=policies,
        notes=notes,
        since=cluster.since(owner, packet.family) if owner is not None else None,
        node=cluster.facts.view.name,
        zone=cluster.facts.view.zone or "",
        mode=cluster.config.proxy_mode,
    )
