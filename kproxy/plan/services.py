"""Turn a Service and its slices into a ServicePlan: addresses, policies, endpoints, and every defect."""

from collections.abc import Sequence

from kproxy.addresses import Family, cidr_contains
from kproxy.plan.endpoints import Collected, PortKey, collect
from kproxy.plan.model import (
    EndpointPlan,
    NodeView,
    PortPlan,
    Protocol,
    ServicePlan,
    uses_cluster,
    uses_local,
)
from kproxy.plan.problem_list import ProblemList
from kproxy.plan.service_fields import ServiceFields
from kproxy.plan.topology import Candidate, select
from kproxy.plan.weights import Weights, WeightsCache
from kproxy.state.tables import ServiceInput
from kproxy.state.wire import ServicePort

_NONE: frozenset[str] = frozenset()


def plan_service(
    inputs: ServiceInput, family: Family, node: NodeView, weights: WeightsCache | None = None
) -> ServicePlan:
    """Plan one service for one family on one node. Defects of the objects become problems, not exceptions.

    `weights` keeps the annotation between plans.
    """
    weights = WeightsCache() if weights is None else weights
    service = inputs.service
    if service is None:
        weights.forget(inputs.key)
        return ServicePlan(inputs.key, family)
    reader = ServiceFields(service, family, node, weights)
    created = service.metadata.creation_timestamp or ""
    cluster_ip = reader.cluster_ip()
    if cluster_ip is None:
        return ServicePlan(inputs.key, family, created, (), reader.problems.result())
    listed, found = _collect(reader, inputs, node)
    ports = _plan_ports(reader, cluster_ip, listed, found.ports, node)
    return ServicePlan(inputs.key, family, created, ports, reader.problems.result(), found.local_ready)


def candidates_of(inputs: ServiceInput, family: Family, node: NodeView) -> dict[PortKey, list[Candidate]]:
    """The endpoints of each port before any policy, as `plan_service` takes them."""
    if inputs.service is None:
        return {}
    reader = ServiceFields(inputs.service, family, node, WeightsCache())
    return _collect(reader, inputs, node)[1].ports


def weights_of(inputs: ServiceInput, family: Family, node: NodeView) -> Weights:
    """The selectors of a service's weights annotation, as `plan_service` reads them."""
    if inputs.service is None:
        return ()
    return ServiceFields(inputs.service, family, node, WeightsCache()).weights()


def _collect(
    reader: ServiceFields, inputs: ServiceInput, node: NodeView
) -> tuple[list[tuple[int, ServicePort, Protocol]], Collected]:
    """The valid ports of a service, and their candidates."""
    listed = reader.ports()
    wanted = frozenset((port.name or "", protocol.value) for _, port, protocol in listed)
    sticky = reader.spec.session_affinity == "ClientIP"
    weights, problems = reader.weights(), reader.problems
    return listed, collect(inputs.slices, reader.family, node, problems, wanted, weights, sticky=sticky)


def known_endpoints(inputs: ServiceInput, family: Family, node: NodeView) -> frozenset[tuple[str, int]]:
    """The (address, port) of every TCP endpoint of a service, ready or not, under any policy."""
    candidates = collect(inputs.slices, family, node, ProblemList(f"Service {inputs.key}")).ports
    tcp = Protocol.TCP.value
    return frozenset(
        (c.plan.ip, c.plan.port)
        for (_, protocol), known in candidates.items()
        if protocol == tcp
        for c in known
    )


def _plan_ports(
    reader: ServiceFields,
    cluster_ip: str,
    listed: Sequence[tuple[int, ServicePort, Protocol]],
    candidates: dict[PortKey, list[Candidate]],
    node: NodeView,
) -> tuple[PortPlan, ...]:
    spec, key = reader.spec, reader.service.key
    external_ips = reader.external_ips() if node.external_ips else ()
    load_balancer_ips = reader.load_balancer_ips()
    if external_ips or load_balancer_ips:
        room = _room(listed, candidates, node)
        load_balancer_ips = reader.first_addresses("status.loadBalancer.ingress", load_balancer_ips, room)
        external_ips = reader.first_addresses("spec.externalIPs", external_ips, room - len(load_balancer_ips))
    source_ranges = reader.source_ranges(len(listed))
    affinity = reader.affinity_seconds()
    scheduler = reader.scheduler()
    internal_local = reader.is_local("spec.internalTrafficPolicy", spec.internal_traffic_policy)
    external_local = reader.is_local("spec.externalTrafficPolicy", spec.external_traffic_policy) and (
        spec.type in {"LoadBalancer", "NodePort"} or bool(spec.external_ips)
    )
    health_check = 0
    if spec.type == "LoadBalancer" and external_local:
        health_check = reader.optional_port("spec.healthCheckNodePort", spec.health_check_node_port)
    own_address = node.addresses.get(reader.family)
    node_included = own_address is not None and any(
        cidr_contains(cidr, own_address) for cidr in source_ranges or ()
    )
    plans = []
    for index, port, protocol in listed:
        known = candidates.get((port.name or "", protocol.value), [])
        node_port = reader.optional_port(f"spec.ports[{index}].nodePort", port.node_port)
        outside = bool(node_port or external_ips or load_balancer_ips)
        usable = select(
            known,
            node,
            uses_cluster=uses_cluster(internal_local, outside),
            uses_local=uses_local(internal_local, external_local, outside),
        )
        plans.append(
            PortPlan(
                name=f"{key}:{port.name}" if port.name else key,
                protocol=protocol,
                cluster_ip=cluster_ip,
                port=port.port,
                node_port=node_port,
                external_ips=external_ips,
                load_balancer_ips=load_balancer_ips,
                source_ranges=source_ranges,
                node_in_source_ranges=node_included,
                health_check_node_port=health_check,
                internal_local=internal_local,
                external_local=external_local,
                affinity_seconds=affinity,
                scheduler=scheduler,
                cluster=usable.cluster,
                local=usable.local,
                reachable=usable.reachable,
                has_endpoints=usable.has_endpoints,
                endpoints=len(known),
                serving=_serving(known) if protocol is Protocol.UDP else _NONE,
                idle=_idle(known, usable.reachable) if affinity is not None else (),
            )
        )
    return tuple(plans)


def _room(
    listed: Sequence[tuple[int, ServicePort, Protocol]],
    candidates: dict[PortKey, list[Candidate]],
    node: NodeView,
) -> int:
    """The number of outside addresses that a service may have; its cluster IP and node ports come first."""
    limits = node.limits
    node_ports = sum(bool(port.node_port) for _, port, _ in listed)
    room = (limits.frontends_per_service - len(listed) - node_ports) // max(1, len(listed))
    endpoints = sum(map(len, candidates.values()))
    if node.outside.holds_addresses and endpoints:
        # IPVS has a destination for each pair of frontend and endpoint.
        room = min(room, limits.elements_per_service // endpoints - 1 - bool(node_ports))
    return max(0, room)


def _idle(known: Sequence[Candidate], reachable: tuple[EndpointPlan, ...]) -> tuple[EndpointPlan, ...]:
    used = {endpoint.address_port for endpoint in reachable}
    return tuple(c.plan for c in known if c.plan.address_port not in used)


def _serving(known: Sequence[Candidate]) -> frozenset[str]:
    return frozenset(c.plan.address_port for c in known if c.ready or c.serving)
