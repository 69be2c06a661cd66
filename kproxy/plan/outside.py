"""Refuse outside addresses that would divert the node's own traffic.

Any author of a Service can write any address into `spec.externalIPs`, and every node applies it to its own
connections too. A loopback address, or that of the API server, would cut kproxy off from the API server, and
its health checks from kubelet and load balancers. The service keeps its other addresses. kube-proxy serves
them all (the API server's validation refuses some of them in `spec.externalIPs`, none in
`status.loadBalancer`).

The addresses of API servers (those that kproxy connects to, and the endpoints of default/kubernetes) are
refused at the API server's port only, because an ingress may have the same address at other ports. IPVS mode
assigns every outside address to the node, and then no packet for it leaves the node: there, all ports of an
API server on another host are refused. A Service whose endpoints are API servers, such as a control plane's
virtual address, is served with only those endpoints; Services of kube-system are trusted. Policy Local would
drop packets on nodes without an API server, so it is accepted for addresses of load balancers only.
"""

import ipaddress
from collections.abc import Iterable

import msgspec

from kproxy.addresses import cidr_contains, is_loopback
from kproxy.plan.model import OutsideLimits, PortPlan, Protocol, ServicePlan, without_unused_endpoints
from kproxy.plan.problem_list import ProblemList

API_SERVICE = "default/kubernetes"
"""The Service whose endpoints the API servers write themselves (pkg/controlplane/reconcilers)."""

TRUSTED_NAMESPACE = "kube-system"
"""Authors of Services in this namespace administer the cluster."""

ApiEndpoints = frozenset[tuple[str, int]]
"""The (address, port) of the endpoints of API_SERVICE."""

_SPECIAL = tuple(
    (ipaddress.ip_network(cidr), f"{kind} is not served: {why}")
    for kind, why, cidrs in (
        ("an unspecified address", "it stands for this host", ("0.0.0.0/8", "::/128")),
        (
            "a loopback address",
            "the node's connections to itself would be diverted",
            ("127.0.0.0/8", "::1/128"),
        ),
        ("a link-local address", "it means another host on each link", ("169.254.0.0/16", "fe80::/10")),
        ("a multicast address", "it is that of a group", ("224.0.0.0/4", "ff00::/8")),
        ("the broadcast address", "it is that of all hosts", ("255.255.255.255/32",)),
    )
    for cidr in cidrs
)
"""Networks whose addresses never belong to a single service.

These are the ranges of ValidateNonSpecialIP (k8s.io/kubernetes/pkg/apis/core/validation), and besides them
all of 0.0.0.0/8, all multicast and the limited broadcast address (RFC 1122, 3.2.1.3).
"""

_EXTERNAL, _BALANCER = "spec.externalIPs", "status.loadBalancer.ingress"


def refusal_of_address(address: str) -> str | None:
    """Return the reason why a canonical address cannot belong to one service, or None if it can."""
    parsed = ipaddress.ip_address(address)
    return next((reason for network, reason in _SPECIAL if parsed in network), None)


def refusal_of_external_ip(address: str, limits: OutsideLimits) -> str | None:
    """Return the reason why an address is not allowed in spec.externalIPs, or None if it is."""
    ranges = limits.external_ip_cidrs
    if not ranges or any(cidr_contains(cidr, address) for cidr in ranges):
        return None
    return f"not within the allowed ranges of external IPs ({', '.join(ranges[:8])})"


def concerns_api_servers(plan: ServicePlan, limits: OutsideLimits, endpoints: ApiEndpoints) -> bool:
    """Whether a frontend of the plan may conflict with an API server."""
    servers = limits.api_servers | endpoints
    addresses = {ip for ip, _ in servers} if limits.holds_addresses else frozenset()
    numbers = {port for _, port in servers}
    return any(
        port.node_port in numbers
        or any(
            (ip, port.port) in servers or ip in addresses
            for ip in (*port.external_ips, *port.load_balancer_ips)
        )
        for port in plan.ports
        if port.externally_accessible
    )


def restrict(plan: ServicePlan, limits: OutsideLimits, endpoints: ApiEndpoints) -> ServicePlan:
    """Return the plan without the frontends refused on this node; each is added as a problem."""
    if not any(port.externally_accessible for port in plan.ports):
        return plan
    problems = ProblemList(f"Service {plan.key}")
    servers = _Servers(limits, endpoints)
    ports = tuple(_Restriction(plan.key, port, servers, problems).port() for port in plan.ports)
    if not problems:
        return plan
    return msgspec.structs.replace(plan, ports=ports, problems=(*plan.problems, *problems.result()))


class _Servers:
    """What outside addresses must not divert on this node, ready to be looked up for each frontend."""

    def __init__(self, limits: OutsideLimits, endpoints: ApiEndpoints) -> None:
        self.limits = limits
        self.endpoints = endpoints
        self.api = limits.api_servers | endpoints
        self.api_addresses = frozenset(ip for ip, _ in self.api)


class _Restriction:
    """Restricts one port; adds each refused frontend to `problems`."""

    def __init__(
        self,
        key: str,
        port: PortPlan,
        servers: _Servers,
        problems: ProblemList,
    ) -> None:
        self._port = port
        self._limits = servers.limits
        self._endpoints = servers.endpoints
        self._servers = servers.api
        self._api_addresses = servers.api_addresses
        self._problems = problems
        self._trusted = key.startswith(f"{TRUSTED_NAMESPACE}/")
        self._narrowed = False

    def port(self) -> PortPlan:
        """Return the port without its refused frontends and endpoints."""
        port = self._port
        external = self._allowed(_EXTERNAL, port.external_ips)
        balancer = self._allowed(_BALANCER, port.load_balancer_ips)
        node_port = port.node_port
        if node_port and (reason := self._refusal_of_node_port(node_port)) is not None:
            self._refuse("nodePort", node_port, reason)
            node_port = 0
        if (external, balancer, node_port) != (port.external_ips, port.load_balancer_ips, port.node_port):
            port = without_unused_endpoints(
                msgspec.structs.replace(
                    port, external_ips=external, load_balancer_ips=balancer, node_port=node_port
                )
            )
        return _with_endpoints(port, self._endpoints) if self._narrowed else port

    def _allowed(self, field: str, addresses: Iterable[str]) -> tuple[str, ...]:
        return tuple(ip for ip in addresses if self._is_allowed(field, ip))

    def _is_allowed(self, field: str, ip: str) -> bool:
        number, limits = self._port.port, self._limits
        is_tcp = self._port.protocol is Protocol.TCP
        if is_tcp and _is_listener(ip, number, limits):
            self._refuse(field, ip, f"TCP port {number} at this node's address is a server of kproxy itself")
            return False
        if is_tcp and (ip, number) in self._servers:
            return self._leads_to_api_server(field, ip)
        may_hold = self._trusted or not limits.holds_addresses or ip in limits.local
        if not may_hold and ip in self._api_addresses:
            reason = "the API server's address is not served in IPVS mode: the node would hold it itself"
            self._refuse(field, ip, reason)
            return False
        return True

    def _leads_to_api_server(self, field: str, ip: str) -> bool:
        if self._trusted:
            return True
        reachable = self._port.reachable
        known = [each for each in reachable if (each.ip, each.port) in self._endpoints]
        if not known or (field == _EXTERNAL and self._port.external_local):
            reason = (
                f"the API server's address and port: only a Service with endpoints of {API_SERVICE} and "
                f"without a Local policy, or one in {TRUSTED_NAMESPACE}, may serve it"
            )
            self._refuse(field, ip, reason)
            return False
        if len(known) < len(reachable):
            self._narrowed = True
            reason = f"the API server's address and port: only its endpoints that {API_SERVICE} has are used"
            self._refuse(field, ip, reason)
        return True

    def _refusal_of_node_port(self, number: int) -> str | None:
        limits = self._limits
        if self._port.protocol is not Protocol.TCP:
            return None
        if any(number == port for _, port in limits.listeners):
            return f"TCP port {number} is a server of kproxy itself"
        if any(number == port and _is_here(ip, limits) for ip, port in self._servers):
            return f"TCP port {number} is the API server's on this node"
        return None

    def _refuse(self, field: str, value: object, reason: str) -> None:
        self._problems.add_similar((field, reason), field, value, reason, refused=True)


def _is_listener(ip: str, number: int, limits: OutsideLimits) -> bool:
    return any(
        number == port and (ip == address or (not address and ip in limits.local))
        for address, port in limits.listeners
    )


def _is_here(ip: str, limits: OutsideLimits) -> bool:
    return is_loopback(ip) or ip in limits.local


def _with_endpoints(port: PortPlan, allowed: ApiEndpoints) -> PortPlan:
    """Return the port with only those of its endpoints that are in `allowed`."""
    kept = {
        name: tuple(each for each in getattr(port, name) if (each.ip, each.port) in allowed)
        for name in ("cluster", "local", "reachable", "idle")
    }
    return msgspec.structs.replace(port, has_endpoints=bool(kept["reachable"]), **kept)
