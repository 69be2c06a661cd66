"""Estimate what a service costs, before it is planned, so that cheap changes can go before expensive ones.

One unit is the work for one endpoint of one port: about 5 us for its plan, and in the backends about the same
again for its rules or map elements. All other work is counted in these units. The estimate is a pure function
of the input, reads only the lengths of its lists, and obeys the limits as the plan does.
"""

from kproxy.plan.limits import (
    AFFINITY_COUNTS,
    ANNOTATION_CHARACTERS,
    DEFAULT_LIMITS,
    RANGES_BY_PORTS,
    SELECTORS,
    Limits,
)
from kproxy.state.tables import ServiceInput
from kproxy.state.wire import Service

_UNREAD_PER_UNIT = 10
"""List items that are compared and not used, such as ports of a slice that the Service does not have."""

_CHARACTERS_PER_UNIT = 50
_COMPARISONS_PER_UNIT = 20
"""Comparisons of an endpoint with a selector of kproxy.io/weights."""

_CHARACTERS_PER_SELECTOR = 8
"""The shortest entry: `"*": 10,`."""


def cost_of(inputs: ServiceInput, limits: Limits = DEFAULT_LIMITS) -> float:
    """The estimated cost of one service for one family in units; at least 1."""
    cost = 1.0 + len(inputs.slices)
    service = inputs.service
    if service is None or service.spec is None:
        return cost
    ports = min(len(service.spec.ports or ()), limits.ports_per_service)
    endpoints = pairs = 0
    for endpoint_slice in inputs.slices:
        known, numbers = len(endpoint_slice.endpoints or ()), len(endpoint_slice.ports or ())
        endpoints += known
        pairs += known * min(numbers, ports)
        cost += numbers / _UNREAD_PER_UNIT
    if service.spec.session_affinity == "ClientIP":
        pairs *= AFFINITY_COUNTS
    selectors = _selectors(service)
    return (
        cost
        + endpoints * (1 + selectors / _COMPARISONS_PER_UNIT)
        + min(pairs, limits.endpoints_per_service)
        + _frontends(service, ports, limits)
        + _annotation(service) / _CHARACTERS_PER_UNIT
    )


def _frontends(service: Service, ports: int, limits: Limits) -> float:
    """The units of addresses, ports and source ranges."""
    spec, status = service.spec, service.status
    if spec is None:
        return 0.0
    balancer = status.load_balancer if status is not None else None
    ingress = len(balancer.ingress or ()) if balancer is not None else 0
    addresses = 1 + len(spec.external_ips or ()) + ingress
    ranges = len(spec.load_balancer_source_ranges or ())
    listed = addresses + len(spec.ports or ()) + ranges
    used = min(ranges, limits.source_ranges_per_service) * ports if ingress else 0
    # Besides the pairs, each port may have a node port.
    return listed + ports + min(addresses * ports, limits.frontends_per_service) + min(used, RANGES_BY_PORTS)


def _annotation(service: Service) -> int:
    annotations = service.metadata.annotations
    text = annotations.weights if annotations is not None else None
    return min(len(text or ""), ANNOTATION_CHARACTERS)


def _selectors(service: Service) -> int:
    return min(_annotation(service) // _CHARACTERS_PER_SELECTOR, SELECTORS)
