"""Collect a service's endpoints from its slices: one list per port, duplicates between slices resolved.

While an endpoint moves between slices it may be in two of them. Running wins over terminating, as in
kube-proxy, because an address may have a new owner; then ready over serving over neither, then an endpoint on
this node over others. So the result does not depend on the order of events.
"""

from collections.abc import Iterable

from kproxy.addresses import Family, join_host_port, parse_ip
from kproxy.plan.model import EndpointPlan, NodeView
from kproxy.plan.topology import Candidate
from kproxy.plan.weights import DEFAULT_WEIGHT, Weights, weight_of
from kproxy.state.problems import Problem, show
from kproxy.state.wire import PORT_MAX, Endpoint, EndpointConditions, EndpointSlice

PortKey = tuple[str, str]
"""(port name, protocol): what links an EndpointSlice port to a Service port."""

_NO_CONDITIONS = EndpointConditions()
_NO_HINTS: frozenset[str] = frozenset()


def collect(
    slices: Iterable[EndpointSlice],
    family: Family,
    node: NodeView,
    problems: list[Problem],
    weights: Weights = (),
) -> dict[PortKey, list[Candidate]]:
    """Return the candidates of each port, ordered by address text; defects are appended to `problems`.

    `weights` are those of the service's annotation.
    """
    found: dict[PortKey, dict[str, Candidate]] = {}
    for piece in slices:
        if piece.address_type != family.value or not piece.endpoints or not piece.ports:
            continue
        parsed = [p for i, e in enumerate(piece.endpoints) if (p := _parse(piece, i, e, family, problems))]
        for index, port in enumerate(piece.ports):
            number = port.port
            if not number or port.name is None:  # as kube-proxy; the API server always sets the name
                continue
            if not 0 < number <= PORT_MAX:
                problems.append(_problem(piece, f"ports[{index}].port", number, f"not a port (1-{PORT_MAX})"))
                continue
            into = found.setdefault((port.name, port.protocol or "TCP"), {})
            _add(into, parsed, number, node.name, weights)
    return {key: [candidates[text] for text in sorted(candidates)] for key, candidates in found.items()}


def _add(
    into: dict[str, Candidate],
    parsed: list[tuple[str, Endpoint]],
    port: int,
    node_name: str,
    weights: Weights,
) -> None:
    for ip, endpoint in parsed:
        text = join_host_port(ip, port)
        conditions = endpoint.conditions or _NO_CONDITIONS
        hints = endpoint.hints
        candidate = Candidate(
            EndpointPlan(
                ip,
                port,
                text,
                endpoint.node_name == node_name,
                bool(endpoint.node_name),
                _weight(endpoint, weights) if weights else DEFAULT_WEIGHT,
            ),
            conditions.ready is not False,
            conditions.serving is not False,
            conditions.terminating is True,
            frozenset(z.name for z in hints.for_zones) if hints and hints.for_zones else _NO_HINTS,
            frozenset(n.name for n in hints.for_nodes) if hints and hints.for_nodes else _NO_HINTS,
        )
        rival = into.get(text)
        if rival is None or _rank(candidate) >= _rank(rival):
            into[text] = candidate


def _weight(endpoint: Endpoint, weights: Weights) -> int:
    target = endpoint.target_ref
    pod = target.name if target is not None and target.kind in {None, "", "Pod"} else ""
    return weight_of(weights, pod=pod or "", node=endpoint.node_name or "", zone=endpoint.zone or "")


def _rank(candidate: Candidate) -> tuple[bool, bool, bool, bool, bool, int]:
    plan = candidate.plan
    return (
        not candidate.terminating,
        candidate.ready,
        candidate.serving,
        plan.local,
        plan.placed,
        plan.weight,
    )


def _parse(
    piece: EndpointSlice, index: int, endpoint: Endpoint, family: Family, problems: list[Problem]
) -> tuple[str, Endpoint] | None:
    if not endpoint.addresses:
        problems.append(_problem(piece, f"endpoints[{index}].addresses", [], "no address"))
        return None
    # Only the first address counts: since 1.32 the API requires consumers to ignore the others.
    text = endpoint.addresses[0]
    try:
        actual, ip = parse_ip(text)
    except ValueError as error:
        problems.append(_problem(piece, f"endpoints[{index}].addresses[0]", text, str(error)))
        return None
    if actual is not family:
        reason = f"an {actual} address in a slice of addressType {family}"
        problems.append(_problem(piece, f"endpoints[{index}].addresses[0]", text, reason))
        return None
    return ip, endpoint


def _problem(piece: EndpointSlice, field: str, value: object, reason: str) -> Problem:
    return Problem(f"EndpointSlice {piece.key}", field, show(value), reason)
