"""Turn a Service and its slices into a ServicePlan: addresses, policies, endpoints, and every defect found.

A defect costs as little as possible: a bad external IP only that address, a bad port only that port. A field
that cannot be read never admits more traffic than intended: if no source range is readable, no client is
admitted. Lists are cut where kproxy.plan.limits bounds them.
"""

import re
from collections.abc import Callable, Iterable, Sequence

from kproxy.addresses import Family, cidr_contains, parse_cidr, parse_ip
from kproxy.plan.endpoints import Collected, PortKey, collect
from kproxy.plan.limits import RANGES_BY_PORTS
from kproxy.plan.model import (
    AFFINITY_DEFAULT_SECONDS,
    EndpointPlan,
    NodeView,
    PortPlan,
    Protocol,
    ServicePlan,
    uses_cluster,
    uses_local,
)
from kproxy.plan.outside import refusal_of_address, refusal_of_external_ip
from kproxy.plan.problem_list import ProblemList
from kproxy.plan.schedulers import Scheduler, parse_scheduler
from kproxy.plan.topology import Candidate, select
from kproxy.plan.weights import Weights, WeightsBeyondLimitError, WeightsCache, WeightsError
from kproxy.state.tables import ServiceInput
from kproxy.state.wire import PORT_MAX, Service, ServicePort, ServiceSpec

AFFINITY_MAX_SECONDS = 86400
"""Upper bound of sessionAffinityConfig.clientIP.timeoutSeconds (core/v1 validation)."""

_NONE: frozenset[str] = frozenset()
_PORT_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_PROTOCOLS = {p.value: p for p in Protocol}


class _Reader:
    """Reads the fields of one Service for one family and collects their defects in `problems`."""

    def __init__(self, service: Service, family: Family, node: NodeView, weights: WeightsCache) -> None:
        self.outside = node.outside
        self.limits = node.limits
        self.service = service
        self.spec = service.spec or ServiceSpec()
        self.family = family
        self.problems = ProblemList(f"Service {service.key}")
        self._weights = weights

    def problem(self, field: str, value: object, reason: str, *, refused: bool = False) -> None:
        self.problems.add(field, value, reason, refused=refused)

    def cluster_ip(self) -> str | None:
        """The cluster IP of this family; None if headless, ExternalName, or only of the other family."""
        spec = self.spec
        if not spec.cluster_ip and spec.cluster_ips:
            first: str | None = spec.cluster_ips[0]
        else:
            first = spec.cluster_ip
        if not first or first == "None" or spec.type == "ExternalName":
            return None
        addresses = spec.cluster_ips or (first,)
        for index, text in enumerate(addresses):
            try:
                family, ip = parse_ip(text)
            except ValueError as error:
                self.problem(
                    f"spec.clusterIPs[{index}]" if spec.cluster_ips else "spec.clusterIP", text, str(error)
                )
                continue
            if family is self.family:
                return ip
        return None

    def addresses(
        self, field: str, texts: Iterable[tuple[int, str]], refusal: Callable[[str], str | None]
    ) -> tuple[str, ...]:
        """Canonical addresses of this family, in order, without duplicates and without refused ones.

        `texts` are (index, address); `field` holds `{}` for the index. `refusal` returns the reason why an
        address is refused, or None.
        """
        found: dict[str, None] = {}
        for index, text in texts:
            try:
                family, ip = parse_ip(text)
            except ValueError as error:
                self.problem(field.format(index), text, str(error))
                continue
            if family is not self.family:
                continue
            reason = refusal(ip)
            if reason is None:
                found[ip] = None
            else:
                self.problem(field.format(index), text, reason, refused=True)
        return tuple(found)

    def external_ips(self) -> tuple[str, ...]:
        """The accepted addresses of spec.externalIPs."""

        def refusal(ip: str) -> str | None:
            return refusal_of_address(ip) or refusal_of_external_ip(ip, self.outside)

        texts = enumerate(self.spec.external_ips or ())
        return self.addresses("spec.externalIPs[{}]", texts, refusal)

    def load_balancer_ips(self) -> tuple[str, ...]:
        """Ingress addresses of ipMode VIP; the provider serves those of ipMode Proxy (KEP-1860)."""
        status = self.service.status
        ingress = (status.load_balancer.ingress if status and status.load_balancer else None) or ()
        texts = [(i, e.ip) for i, e in enumerate(ingress) if e.ip and e.ip_mode in {None, "VIP"}]
        return self.addresses("status.loadBalancer.ingress[{}].ip", texts, refusal_of_address)

    def first_addresses(self, field: str, addresses: tuple[str, ...], room: int) -> tuple[str, ...]:
        """The first `room` of a service's outside addresses; the others are a problem."""
        if len(addresses) <= room:
            return addresses
        reason = (
            f"addresses x ports beyond limits.frontendsPerService={self.limits.frontends_per_service} or "
            f"limits.elementsPerService={self.limits.elements_per_service}: the first {room} are served"
        )
        self.problem(field, len(addresses), reason, refused=True)
        return addresses[:room]

    def source_ranges(self, ports: int) -> tuple[str, ...] | None:
        """Allowed client CIDRs of this family, or None if clients are not restricted.

        `ports` is the number of ports that they apply to.
        """
        found: dict[str, None] = {}
        unreadable = False
        for index, text in enumerate(self.spec.load_balancer_source_ranges or ()):
            try:
                family, cidr = parse_cidr(text.strip())
            except ValueError as error:
                self.problem(f"spec.loadBalancerSourceRanges[{index}]", text, str(error))
                unreadable = True
                continue
            if family is self.family:
                found[cidr] = None
        if any(cidr.endswith("/0") for cidr in found):
            return None
        kept = min(self.limits.source_ranges_per_service, max(1, RANGES_BY_PORTS // max(1, ports)))
        if len(found) > kept:
            reason = (
                f"more than {kept} for {ports} ports (limits.sourceRangesPerService): only these are admitted"
            )
            self.problem("spec.loadBalancerSourceRanges", len(found), reason, refused=True)
        return tuple(found)[:kept] if found or unreadable else None

    def affinity_seconds(self) -> int | None:
        """Timeout of ClientIP affinity in seconds, or None without affinity."""
        spec = self.spec
        if spec.session_affinity in {None, "", "None"}:
            return None
        if spec.session_affinity != "ClientIP":
            self.problem("spec.sessionAffinity", spec.session_affinity, "neither None nor ClientIP")
            return None
        config = spec.session_affinity_config
        seconds = config.client_ip.timeout_seconds if config and config.client_ip else None
        if seconds is None:
            return AFFINITY_DEFAULT_SECONDS
        if not 0 < seconds <= AFFINITY_MAX_SECONDS:
            self.problem(
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                seconds,
                f"not in 1-{AFFINITY_MAX_SECONDS}",
            )
            return AFFINITY_DEFAULT_SECONDS
        return seconds

    def weights(self) -> Weights:
        """The selectors of the weights annotation; empty if it is missing or invalid."""
        annotations = self.service.metadata.annotations
        text = annotations.weights if annotations is not None else None
        if not text:
            self._weights.forget(self.service.key)
            return ()
        try:
            return self._weights.read(self.service.key, text)
        except WeightsError as error:
            beyond = isinstance(error, WeightsBeyondLimitError)
            self.problem("metadata.annotations[kproxy.io/weights]", text, str(error), refused=beyond)
            return ()

    def scheduler(self) -> Scheduler | None:
        """The scheduler of kproxy's annotation, else of kube-router's; None if missing or invalid."""
        annotations = self.service.metadata.annotations
        if annotations is None:
            return None
        for name, text in (
            ("kproxy.io/scheduler", annotations.scheduler),
            ("kube-router.io/service.scheduler", annotations.kube_router_scheduler),
        ):
            if not text:
                continue
            try:
                return parse_scheduler(text)
            except ValueError as error:
                self.problem(f"metadata.annotations[{name}]", text, str(error))
                return None
        return None

    def is_local(self, field: str, value: str | None) -> bool:
        """Whether a traffic policy is Local; anything unknown counts as Cluster."""
        if value not in {None, "", "Cluster", "Local"}:
            self.problem(field, value, "neither Cluster nor Local")
        return value == "Local"

    def optional_port(self, field: str, value: int | None) -> int:
        if not value:
            return 0
        if not 0 < value <= PORT_MAX:
            self.problem(field, value, f"not a port (1-{PORT_MAX})")
            return 0
        return value

    def ports(self) -> list[tuple[int, ServicePort, Protocol]]:
        """The valid ports with their index; each (name, protocol) and each (number, protocol) once."""
        usable: list[tuple[int, ServicePort, Protocol]] = []
        names: set[PortKey] = set()
        numbers: set[tuple[int, str]] = set()
        listed = self.spec.ports or ()
        for index, port in enumerate(listed):
            if len(usable) >= self.limits.ports_per_service:
                reason = f"more than {len(usable)} (limits.portsPerService): further ones are not served"
                self.problem("spec.ports", len(listed), reason, refused=True)
                break
            field = f"spec.ports[{index}]"
            protocol = _PROTOCOLS.get(port.protocol)
            name = port.name or ""
            if protocol is None:
                self.problem(f"{field}.protocol", port.protocol, "not TCP, UDP or SCTP")
            elif not 0 < port.port <= PORT_MAX:
                self.problem(f"{field}.port", port.port, f"not a port (1-{PORT_MAX})")
            elif name and _PORT_NAME.fullmatch(name) is None:
                self.problem(f"{field}.name", name, "not a DNS-1123 label")
            elif (name, protocol) in names:
                self.problem(f"{field}.name", name, f"a second {protocol} port of this name")
            elif (port.port, protocol) in numbers:
                self.problem(f"{field}.port", port.port, f"a second {protocol} port of this number")
            else:
                names.add((name, protocol))
                numbers.add((port.port, protocol))
                usable.append((index, port, protocol))
        return usable


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
    reader = _Reader(service, family, node, weights)
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
    reader = _Reader(inputs.service, family, node, WeightsCache())
    return _collect(reader, inputs, node)[1].ports


def weights_of(inputs: ServiceInput, family: Family, node: NodeView) -> Weights:
    """The selectors of a service's weights annotation, as `plan_service` reads them."""
    if inputs.service is None:
        return ()
    return _Reader(inputs.service, family, node, WeightsCache()).weights()


def _collect(
    reader: _Reader, inputs: ServiceInput, node: NodeView
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
    reader: _Reader,
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
