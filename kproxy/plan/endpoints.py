"""Collect a service's endpoints from its slices: one list per port, duplicates between slices resolved.

While an endpoint moves between slices it may be in two of them. Running wins over terminating, as in
kube-proxy, because an address may have a new owner; then ready over serving over neither, then an endpoint on
this node over others. So the result does not depend on the order of events.

Each endpoint is read and weighed once, and only the ports of the Service are looked at. Endpoints x ports is
the one product here; before it is made, endpoints beyond the limits are left out, the most useful ones last.
"""

from collections.abc import Collection, Iterable, Iterator

import msgspec

from kproxy.addresses import Family, parse_ip
from kproxy.plan.limits import AFFINITY_COUNTS, Limits
from kproxy.plan.model import EndpointPlan, NodeView
from kproxy.plan.problem_list import ProblemList
from kproxy.plan.topology import Candidate
from kproxy.plan.weights import DEFAULT_WEIGHT, Weights, weight_of
from kproxy.state.compact_endpoints import columns_of
from kproxy.state.wire import PORT_MAX, Endpoint, EndpointConditions, Endpoints, EndpointSlice

PortKey = tuple[str, str]
"""(port name, protocol): what links an EndpointSlice port to a Service port."""

_NO_CONDITIONS = EndpointConditions()
_NO_HINTS: frozenset[str] = frozenset()


class _Traits(msgspec.Struct, frozen=True, gc=False):
    """All that planning needs of an endpoint besides its address; endpoints of a slice share most of them."""

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
    def useless(self) -> tuple[bool, bool, bool]:
        """The order in which endpoints beyond a limit are left out, before their address: the greatest first.

        Those of this node count for policy Local, so they precede others.
        """
        usable = self.ready or (self.serving and self.terminating)
        return not usable, not self.local, not self.ready


_Found = tuple[str, _Traits]
"""The address of an endpoint of a slice, before it is combined with ports, and its traits."""


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
    *,
    sticky: bool = False,
) -> Collected:
    """Return the candidates of the `wanted` ports (None: of all); defects are added to `problems`.

    `weights` are those of the service's annotation; `sticky`: the service has session affinity.
    """
    read_slices: list[_ReadSlice] = []
    reader = _Reader(family, node.name, weights, problems)
    for endpoint_slice in slices:
        if (
            endpoint_slice.address_type != family.value
            or not endpoint_slice.endpoints
            or not endpoint_slice.ports
        ):
            continue
        read_slices.append(
            _ReadSlice(
                reader.read(endpoint_slice, endpoint_slice.endpoints),
                list(_numbers(endpoint_slice, problems)),
            )
        )
    local_ready = _local_ready(read_slices) if reader.any_local_ready else 0
    if wanted is not None:
        for known in read_slices:
            known.ports = [port for port in known.ports if port[0] in wanted]
    _limit(read_slices, node.limits, problems, sticky=sticky)
    into: dict[PortKey, dict[str, tuple[str, int, _Traits]]] = {}
    for known in read_slices:
        for key, number in known.ports:
            _add(into.setdefault(key, {}), known.endpoints, number, family)
    return Collected(
        {key: [_candidate(*entry) for _, entry in sorted(entries.items())] for key, entries in into.items()},
        local_ready,
    )


class _Reader:
    """Reads endpoints of one service; those that differ in address and pod only share their traits."""

    def __init__(self, family: Family, node: str, weights: Weights, problems: ProblemList) -> None:
        self.any_local_ready = False
        self._family = family
        self._node = node
        self._weights = weights
        self._problems = problems
        self._known: dict[tuple[int, str], _Traits] = {}
        """By identity of the shared part, because to hash one takes longer; the slices keep them alive."""

    def read(self, endpoint_slice: EndpointSlice, endpoints: Endpoints) -> list[_Found]:
        """The endpoints of a slice that can be used."""
        found: list[_Found] = []
        last: Endpoint | None = None
        traits: _Traits | None = None
        for index, (text, common, pod) in enumerate(columns_of(endpoints)):
            ip = self._address(endpoint_slice, index, text)
            if ip is None:
                continue
            if traits is None or common is not last or self._weights:
                traits, last = self._traits(common, pod), common
            found.append((ip, traits))
        return found

    def _traits(self, common: Endpoint, pod: str) -> _Traits:
        key = (id(common), pod if self._weights else "")
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._new_traits(common, pod)
            self.any_local_ready |= known.local and known.ready
        return known

    def _new_traits(self, common: Endpoint, pod: str) -> _Traits:
        conditions = common.conditions or _NO_CONDITIONS
        hints = common.hints
        return _Traits(
            common.node_name == self._node,
            bool(common.node_name),
            self._weight(common, pod) if self._weights else DEFAULT_WEIGHT,
            conditions.ready is not False,
            conditions.serving is not False,
            conditions.terminating is True,
            frozenset(z.name for z in hints.for_zones) if hints and hints.for_zones else _NO_HINTS,
            frozenset(n.name for n in hints.for_nodes) if hints and hints.for_nodes else _NO_HINTS,
        )

    def _weight(self, common: Endpoint, pod: str) -> int:
        target = common.target_ref
        is_pod = target is not None and target.kind in {None, "", "Pod"}
        return weight_of(
            self._weights,
            pod=pod if is_pod else "",
            node=common.node_name or "",
            zone=common.zone or "",
        )

    def _address(self, endpoint_slice: EndpointSlice, index: int, text: str) -> str | None:
        if not text:
            _report(self._problems, endpoint_slice, f"endpoints[{index}].addresses", [], "no address")
            return None
        try:
            actual, ip = parse_ip(text)
        except ValueError as error:
            _report(self._problems, endpoint_slice, f"endpoints[{index}].addresses[0]", text, str(error))
            return None
        if actual is not self._family:
            reason = f"an {actual} address in a slice of addressType {self._family}"
            _report(self._problems, endpoint_slice, f"endpoints[{index}].addresses[0]", text, reason)
            return None
        return ip


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
    here = {ip for ip, traits in entries if traits.local and traits.ready}
    if len({ip for ip, _ in entries}) == len(entries):
        return len(here)
    best: dict[str, _Traits] = {}
    for ip, traits in entries:
        if ip in here and (ip not in best or traits.rank >= best[ip].rank):
            best[ip] = traits
    return sum(each.local and each.ready for each in best.values())


def _limit(read_slices: list[_ReadSlice], limits: Limits, problems: ProblemList, *, sticky: bool) -> None:
    """Leave out endpoints, so that no port and no sum of all ports is beyond its limit."""
    read_slices[:] = [read_slice for read_slice in read_slices if read_slice.ports and read_slice.endpoints]
    of_port: dict[PortKey, int] = {}
    for read_slice in read_slices:
        for key, _ in read_slice.ports:
            of_port[key] = of_port.get(key, 0) + len(read_slice.endpoints)
    total, greatest = sum(of_port.values()), max(of_port.values(), default=0)
    most_of_port, most, of_all = limits.endpoints_per_port, limits.endpoints_per_service, "of all ports"
    named = "limits.endpointsPerService"
    if sticky:
        most //= AFFINITY_COUNTS
        of_all += " with session affinity"
        named += f" / {AFFINITY_COUNTS}"
    if total <= most and greatest <= most_of_port:
        return
    ports = max(len(read_slice.ports) for read_slice in read_slices)
    kept = max(1, min(most_of_port, most // ports))
    entries = sorted(
        (*traits.useless, ip, number, index)
        for number, read_slice in enumerate(read_slices)
        for index, (ip, traits) in enumerate(read_slice.endpoints)
    )
    chosen: dict[int, list[_Found]] = {}
    for *_, number, index in entries[:kept]:
        chosen.setdefault(number, []).append(read_slices[number].endpoints[index])
    for number, read_slice in enumerate(read_slices):
        read_slice.endpoints = chosen.get(number, [])
    if greatest > most_of_port:
        value, reason = greatest, f"more than {most_of_port} of one port (limits.endpointsPerPort)"
    else:
        value, reason = total, f"more than {most} {of_all} ({named})"
    problems.add("endpoints", _about(value), f"{reason}: {kept} are used, ready ones first", refused=True)


def _about(number: int) -> str:
    """A number without its last digits, so that it does not change with every endpoint."""
    unit = int("1" + "0" * (len(str(number)) - 2)) if number > 99 else 1
    return f"{number // unit * unit}" + "+" * (unit > 1)


def _add(
    into: dict[str, tuple[str, int, _Traits]], endpoints: Iterable[_Found], number: int, family: Family
) -> None:
    form = "%s:%d" if family is Family.IPV4 else "[%s]:%d"  # as join_host_port
    for ip, traits in endpoints:
        text = form % (ip, number)
        rival = into.get(text)
        if rival is None or traits.rank >= rival[2].rank:
            into[text] = (ip, number, traits)


def _candidate(ip: str, number: int, traits: _Traits) -> Candidate:
    return Candidate(
        EndpointPlan(ip, number, traits.local, traits.has_node, traits.weight),
        traits.ready,
        traits.serving,
        traits.terminating,
        traits.zones,
        traits.nodes,
    )


def _report(
    problems: ProblemList, endpoint_slice: EndpointSlice, field: str, value: object, reason: str
) -> None:
    problems.add(field, value, reason, owner=f"EndpointSlice {endpoint_slice.key}")
