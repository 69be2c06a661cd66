"""Collect a service's endpoints from its slices: one list per port, duplicates between slices resolved.

While an endpoint moves between slices it may be in two of them. Running wins over terminating, as in
kube-proxy, because an address may have a new owner; then ready over serving over neither, then an endpoint on
this node over others. So the result does not depend on the order of events.

Each endpoint is read and weighed once, and only the ports of the Service are looked at. Endpoints x ports is
the one product here; before it is made, endpoints beyond the limits are left out, the most useful ones last.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator

import msgspec

from kproxy.addresses import Family, join_host_port, parse_ip
from kproxy.plan.limits import Limits
from kproxy.plan.model import EndpointPlan, NodeView
from kproxy.plan.problem_list import ProblemList
from kproxy.plan.topology import Candidate
from kproxy.plan.weights import DEFAULT_WEIGHT, Weights, weight_of
from kproxy.state.wire import PORT_MAX, Endpoint, EndpointConditions, EndpointSlice

PortKey = tuple[str, str]
"""(port name, protocol): what links an EndpointSlice port to a Service port."""

_NO_CONDITIONS = EndpointConditions()
_NO_HINTS: frozenset[str] = frozenset()


class _Found(msgspec.Struct, frozen=True, gc=False):
    """An endpoint of a slice before it is combined with ports."""

    ip: str
    local: bool
    has_node: bool
    weight: int
    ready: bool
    serving: bool
    terminating: bool
    zones: frozenset[str]
    nodes: frozenset[str]

    @property
    def rank(self) -> tuple[bool, bool, bool, bool, bool, int]:
        """Of two entries for one address the greater counts."""
        return not self.terminating, self.ready, self.serving, self.local, self.has_node, self.weight

    @property
    def useless(self) -> tuple[bool, bool, bool, str]:
        """The order in which endpoints beyond a limit are left out: the greatest first.

        Those of this node count for policy Local, so they precede others.
        """
        usable = self.ready or (self.serving and self.terminating)
        return not usable, not self.local, not self.ready, self.ip


class _ReadSlice(msgspec.Struct, gc=False):
    """The endpoints of one slice, and its ports that matter with their numbers."""

    endpoints: list[_Found]
    ports: list[tuple[PortKey, int]]


class Collected(msgspec.Struct, frozen=True, gc=False):
    """The candidates of each port, ordered by address text; the addresses of ready endpoints on this node."""

    ports: dict[PortKey, list[Candidate]]
    local_ready: int = 0


def collect(
    slices: Iterable[EndpointSlice],
    family: Family,
    node: NodeView,
    problems: ProblemList,
    wanted: Collection[PortKey] | None = None,
    weights: Weights = (),
) -> Collected:
    """Return the candidates of the `wanted` ports (None: of all); defects are added to `problems`.

    `weights` are those of the service's annotation.
    """
    read_slices: list[_ReadSlice] = []
    for endpoint_slice in slices:
        if (
            endpoint_slice.address_type != family.value
            or not endpoint_slice.endpoints
            or not endpoint_slice.ports
        ):
            continue
        found = [
            each
            for index, endpoint in enumerate(endpoint_slice.endpoints)
            if (each := _read(endpoint_slice, index, endpoint, family, node.name, weights, problems))
            is not None
        ]
        read_slices.append(_ReadSlice(found, list(_numbers(endpoint_slice, problems))))
    local_ready = _local_ready(read_slices)
    if wanted is not None:
        for known in read_slices:
            known.ports = [port for port in known.ports if port[0] in wanted]
    _limit(read_slices, node.limits, problems)
    into: dict[PortKey, dict[str, tuple[_Found, int]]] = {}
    for known in read_slices:
        for key, number in known.ports:
            _add(into.setdefault(key, {}), known.endpoints, number)
    return Collected(
        {
            key: [_candidate(*entries[text], text) for text in sorted(entries)]
            for key, entries in into.items()
        },
        local_ready,
    )


def _read(
    endpoint_slice: EndpointSlice,
    index: int,
    endpoint: Endpoint,
    family: Family,
    node_name: str,
    weights: Weights,
    problems: ProblemList,
) -> _Found | None:
    ip = _address(endpoint_slice, index, endpoint, family, problems)
    if ip is None:
        return None
    conditions = endpoint.conditions or _NO_CONDITIONS
    hints = endpoint.hints
    return _Found(
        ip,
        endpoint.node_name == node_name,
        bool(endpoint.node_name),
        _weight(endpoint, weights) if weights else DEFAULT_WEIGHT,
        conditions.ready is not False,
        conditions.serving is not False,
        conditions.terminating is True,
        frozenset(z.name for z in hints.for_zones) if hints and hints.for_zones else _NO_HINTS,
        frozenset(n.name for n in hints.for_nodes) if hints and hints.for_nodes else _NO_HINTS,
    )


def _numbers(endpoint_slice: EndpointSlice, problems: ProblemList) -> Iterator[tuple[PortKey, int]]:
    for index, port in enumerate(endpoint_slice.ports or ()):
        number = port.port
        if not number or port.name is None:  # as kube-proxy; the API server always sets the name
            continue
        if not 0 < number <= PORT_MAX:
            _report(problems, endpoint_slice, f"ports[{index}].port", number, f"not a port (1-{PORT_MAX})")
            continue
        yield (port.name, port.protocol or "TCP"), number


def _local_ready(read_slices: Iterable[_ReadSlice]) -> int:
    """The number of addresses of ready endpoints on this node, whatever their ports."""
    entries = [each for read_slice in read_slices if read_slice.ports for each in read_slice.endpoints]
    here = {each.ip for each in entries if each.local and each.ready}
    best: dict[str, _Found] = {}
    for each in entries:
        if each.ip in here and (each.ip not in best or each.rank >= best[each.ip].rank):
            best[each.ip] = each
    return sum(each.local and each.ready for each in best.values())


def _limit(read_slices: list[_ReadSlice], limits: Limits, problems: ProblemList) -> None:
    """Leave out endpoints, so that no port and no sum of all ports is beyond its limit."""
    read_slices[:] = [read_slice for read_slice in read_slices if read_slice.ports and read_slice.endpoints]
    of_port: Counter[PortKey] = Counter()
    for read_slice in read_slices:
        for key, _ in read_slice.ports:
            of_port[key] += len(read_slice.endpoints)
    total, greatest = of_port.total(), max(of_port.values(), default=0)
    if total <= limits.endpoints_per_service and greatest <= limits.endpoints_per_port:
        return
    ports = max(len(read_slice.ports) for read_slice in read_slices)
    kept = max(1, min(limits.endpoints_per_port, limits.endpoints_per_service // ports))
    entries = sorted(
        (each.useless, number, index)
        for number, read_slice in enumerate(read_slices)
        for index, each in enumerate(read_slice.endpoints)
    )
    chosen: dict[int, list[_Found]] = {}
    for _, number, index in entries[:kept]:
        chosen.setdefault(number, []).append(read_slices[number].endpoints[index])
    for number, read_slice in enumerate(read_slices):
        read_slice.endpoints = chosen.get(number, [])
    if greatest > limits.endpoints_per_port:
        value, reason = (
            greatest,
            f"more than {limits.endpoints_per_port} of one port (limits.endpointsPerPort)",
        )
    else:
        value = total
        reason = f"more than {limits.endpoints_per_service} of all ports (limits.endpointsPerService)"
    problems.add("endpoints", _about(value), f"{reason}: {kept} are used, ready ones first", refused=True)


def _about(number: int) -> str:
    """A number without its last digits, so that it does not change with every endpoint."""
    unit = int("1" + "0" * (len(str(number)) - 2)) if number > 99 else 1
    return f"{number // unit * unit}" + "+" * (unit > 1)


def _add(into: dict[str, tuple[_Found, int]], endpoints: Iterable[_Found], number: int) -> None:
    for each in endpoints:
        text = join_host_port(each.ip, number)
        rival = into.get(text)
        if rival is None or each.rank >= rival[0].rank:
            into[text] = (each, number)


def _candidate(found: _Found, number: int, text: str) -> Candidate:
    return Candidate(
        EndpointPlan(found.ip, number, text, found.local, found.has_node, found.weight),
        found.ready,
        found.serving,
        found.terminating,
        found.zones,
        found.nodes,
    )


def _weight(endpoint: Endpoint, weights: Weights) -> int:
    target = endpoint.target_ref
    pod = target.name if target is not None and target.kind in {None, "", "Pod"} else ""
    return weight_of(weights, pod=pod or "", node=endpoint.node_name or "", zone=endpoint.zone or "")


def _address(
    endpoint_slice: EndpointSlice, index: int, endpoint: Endpoint, family: Family, problems: ProblemList
) -> str | None:
    if not endpoint.addresses:
        _report(problems, endpoint_slice, f"endpoints[{index}].addresses", [], "no address")
        return None
    # Only the first address counts: since 1.32 the API requires consumers to ignore the others.
    text = endpoint.addresses[0]
    try:
        actual, ip = parse_ip(text)
    except ValueError as error:
        _report(problems, endpoint_slice, f"endpoints[{index}].addresses[0]", text, str(error))
        return None
    if actual is not family:
        reason = f"an {actual} address in a slice of addressType {family}"
        _report(problems, endpoint_slice, f"endpoints[{index}].addresses[0]", text, reason)
        return None
    return ip


def _report(
    problems: ProblemList, endpoint_slice: EndpointSlice, field: str, value: object, reason: str
) -> None:
    problems.add(field, value, reason, owner=f"EndpointSlice {endpoint_slice.key}")
