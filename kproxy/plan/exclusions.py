"""Say of every endpoint of a service port whether it is used and, if not, why.

A rule does not show which endpoints are missing from it, so the question "why does this pod get nothing?"
has no answer in the kernel. The answers here are those of the planning code: the endpoints are collected and
selected as for a plan, and each one of the slices is compared with the result. Nothing is recorded while a
plan is made, so a sync costs nothing more.
"""

from collections.abc import Iterator, Mapping

import msgspec

from kproxy.addresses import Family, join_host_port
from kproxy.plan.endpoints import PortKey, collect
from kproxy.plan.model import NodeView, PortPlan
from kproxy.plan.problem_list import ProblemList
from kproxy.plan.services import candidates_of, weights_of
from kproxy.plan.topology import Candidate, NotSelected, Reason, reasons
from kproxy.plan.weights import Weights, effective
from kproxy.state.tables import ServiceInput
from kproxy.state.wire import Endpoint, EndpointPort, EndpointSlice


class Judged(msgspec.Struct, frozen=True):
    """One endpoint of a slice: used, if `why` is None.

    `text` is `ip:port`, or the address alone where the slice has no number for the port. `pod` is
    `namespace/name`, or "" if the endpoint is no pod; unknown nodes and zones are "".
    """

    text: str
    pod: str = ""
    node: str = ""
    zone: str = ""
    why: NotSelected | None = None


class _Entry(msgspec.Struct, frozen=True):
    """An endpoint of a slice, and what planning makes of it alone."""

    piece: EndpointSlice
    endpoint: Endpoint
    text: str
    candidate: Candidate | None
    why: NotSelected | None = None


def judge(
    inputs: ServiceInput, family: Family, node: NodeView, port: PortPlan, *, local: bool
) -> tuple[Judged, ...]:
    """Judge every endpoint of a service for one port of its plan, under the policy Local or Cluster.

    The result is ordered by address text. Those without a reason are the port's `local` or `cluster`
    endpoints that have a share of the connections.
    """
    key = (port.name[len(inputs.key) + 1 :], port.protocol.value)
    known = {each.plan.address_port: each for each in candidates_of(inputs, family, node).get(key, ())}
    passed_over = reasons(list(known.values()), node, local=local)
    planned = port.local if local else port.cluster
    shares = {each.address_port: weight for each, weight in zip(planned, effective(planned), strict=True)}
    entries = list(_entries(inputs, key, family, node))
    winners = {
        each.text: each for each in entries if each.candidate and each.candidate == known.get(each.text)
    }
    judged = [
        Judged(
            each.text,
            pod_of(each.piece, each.endpoint),
            each.endpoint.node_name or "",
            each.endpoint.zone or "",
            each.why or _why(each, known, winners, passed_over, shares),
        )
        for each in entries
    ]
    return tuple(sorted(judged, key=lambda each: (each.text, each.why is not None)))


def pod_of(piece: EndpointSlice, endpoint: Endpoint) -> str:
    """`namespace/name` of an endpoint's pod, or "" if it names none."""
    target = endpoint.target_ref
    if target is None or not target.name or not is_pod(endpoint):
        return ""
    return f"{piece.metadata.namespace}/{target.name}"


def is_pod(endpoint: Endpoint) -> bool:
    """Whether what an endpoint refers to is a pod."""
    target = endpoint.target_ref
    return target is not None and target.kind in {None, "", "Pod"}


def _why(
    entry: _Entry,
    known: Mapping[str, Candidate],
    winners: Mapping[str, _Entry],
    passed_over: Mapping[str, NotSelected],
    shares: Mapping[str, int],
) -> NotSelected | None:
    text = entry.text
    if text not in known:
        return NotSelected(Reason.LIMIT, "limits.endpointsPerPort or limits.endpointsPerService")
    if entry is not winners.get(text):
        winner = winners.get(text)
        return NotSelected(Reason.DUPLICATE, f"of {winner.piece.key if winner else 'another slice'}")
    if text in passed_over:
        return passed_over[text]
    if text not in shares:
        return NotSelected(Reason.ADDRESS, "not an endpoint of default/kubernetes, whose address this is")
    return None if shares[text] else NotSelected(Reason.WEIGHT, "kproxy.io/weights")


def _entries(inputs: ServiceInput, key: PortKey, family: Family, node: NodeView) -> Iterator[_Entry]:
    """Every endpoint of every slice, with the reason if its slice or address is the cause."""
    weights = weights_of(inputs, family, node)
    for piece in inputs.slices:
        port = next((each for each in piece.ports or () if _key(each) == key), None)
        of_slice = _why_not_slice(piece, port, family)
        for endpoint in piece.endpoints or ():
            raw = endpoint.addresses[0] if endpoint.addresses else ""
            if of_slice is not None or port is None:
                yield _Entry(piece, endpoint, raw, None, of_slice)
                continue
            found, why = _alone(piece, endpoint, port, family, node, weights)
            text = join_host_port(raw, port.port or 0) if found is None else found.plan.address_port
            yield _Entry(piece, endpoint, text, found, why)


def _key(port: EndpointPort) -> PortKey | None:
    return None if port.name is None else (port.name, port.protocol or "TCP")


def _why_not_slice(piece: EndpointSlice, port: EndpointPort | None, family: Family) -> NotSelected | None:
    if piece.address_type != family.value:
        return NotSelected(Reason.FAMILY, piece.address_type)
    if port is None:
        names = sorted({f"{each.name or '(no name)'}/{each.protocol or 'TCP'}" for each in piece.ports or ()})
        return NotSelected(Reason.PORT_NAME, ", ".join(names) or "the slice has no ports")
    return None


def _alone(
    piece: EndpointSlice,
    endpoint: Endpoint,
    port: EndpointPort,
    family: Family,
    node: NodeView,
    weights: Weights,
) -> tuple[Candidate | None, NotSelected | None]:
    """What planning makes of a slice with this endpoint only, or why nothing."""
    problems = ProblemList(piece.key)
    lone = msgspec.structs.replace(piece, endpoints=(endpoint,), ports=(port,))
    found = [
        each
        for known in collect([lone], family, node, problems, None, weights).ports.values()
        for each in known
    ]
    if found:
        return found[0], None
    defect = next(iter(problems.result()), None)
    if defect is None:
        return None, NotSelected(Reason.PORT_NUMBER)
    reason = Reason.PORT_NUMBER if defect.field.startswith("ports") else Reason.ADDRESS
    return None, NotSelected(reason, f"{defect.value}: {defect.reason}")
