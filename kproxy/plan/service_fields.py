"""Read the fields of a Service, one by one, with every defect found.

A defect costs as little as possible: a bad external IP only that address, a bad port only that port. A field
that cannot be read never admits more traffic than intended: if no source range is readable, no client is
admitted. Lists are cut where kproxy.plan.limits bounds them.
"""

import re
from collections.abc import Callable, Iterable

from kproxy.addresses import Family, parse_cidr, parse_ip
from kproxy.plan.endpoints import PortKey
from kproxy.plan.limits import RANGES_BY_PORTS
from kproxy.plan.model import (
    AFFINITY_DEFAULT_SECONDS,
    NodeView,
    Protocol,
)
from kproxy.plan.outside import refusal_of_address, refusal_of_external_ip
from kproxy.plan.problem_list import ProblemList
from kproxy.plan.schedulers import Scheduler, parse_scheduler
from kproxy.plan.weights import Weights, WeightsBeyondLimitError, WeightsCache, WeightsError
from kproxy.state.wire import PORT_MAX, Service, ServicePort, ServiceSpec

AFFINITY_MAX_SECONDS = 86400
"""Upper bound of sessionAffinityConfig.clientIP.timeoutSeconds (core/v1 validation)."""

_PORT_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_PROTOCOLS = {p.value: p for p in Protocol}


class ServiceFields:
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
        """Note a defect of a field; `refused`: something that was asked for is not served."""
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
        """The port; 0 if it is not set or not valid."""
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
