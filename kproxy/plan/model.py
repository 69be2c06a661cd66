"""Plans: the node-local facts of a service that a backend needs, for one IP family.

A plan holds decisions, not API objects: which addresses are served, which endpoints may be chosen for
internal and for external traffic, and the verdict where there is none. All addresses are in canonical form.
"""

import enum
from collections.abc import Mapping

import msgspec

from kproxy.addresses import Family
from kproxy.plan.limits import DEFAULT_LIMITS, Limits
from kproxy.plan.schedulers import Scheduler
from kproxy.state.problems import Problem

AFFINITY_DEFAULT_SECONDS = 10800
"""Default of sessionAffinityConfig.clientIP.timeoutSeconds (core/v1 API)."""


class Protocol(enum.StrEnum):
    """Transport protocols of a ServicePort."""

    TCP = "TCP"
    UDP = "UDP"
    SCTP = "SCTP"


class Verdict(enum.StrEnum):
    """Verdict for the internal or the external traffic of a service port.

    REJECT: no usable endpoint in the cluster; clients fail immediately. DROP: policy Local and endpoints on
    other nodes only; a client retries while its load balancer has not yet noticed (KEP-1669, kube-proxy since
    1.24).
    """

    FORWARD = "FORWARD"
    REJECT = "REJECT"
    DROP = "DROP"


class OutsideLimits(msgspec.Struct, frozen=True):
    """Restrictions on the addresses that services have for outside clients; see kproxy.plan.outside.

    `external_ip_cidrs`: spec.externalIPs must be within one of these; empty: no restriction. `local`: the
    addresses of this node. `listeners`: the (address, port) of this process's TCP servers, with "" for all
    addresses of the node. `api_servers`: the (address, port) at which kproxy reaches the API server.
    `holds_addresses`: every outside address is assigned to the node (IPVS mode).
    """

    external_ip_cidrs: tuple[str, ...] = ()
    local: frozenset[str] = frozenset()
    listeners: frozenset[tuple[str, int]] = frozenset()
    api_servers: frozenset[tuple[str, int]] = frozenset()
    holds_addresses: bool = False


class NodeView(msgspec.Struct, frozen=True):
    """The facts of the node that planning needs.

    `addresses` holds the node's primary address per family; it decides whether a source range includes
    the node itself. With `external_ips` False, spec.externalIPs are not served (KEP-5707). `outside`
    restricts the addresses for outside clients, `limits` what one service may cost.
    """

    name: str
    zone: str | None = None
    addresses: Mapping[Family, str] = {}
    external_ips: bool = True
    outside: OutsideLimits = OutsideLimits()
    limits: Limits = DEFAULT_LIMITS


class EndpointPlan(msgspec.Struct, frozen=True, gc=False):
    """One endpoint.

    `has_node` is False if the EndpointSlice names no node. `weight` (0-65535) is its share of new
    connections; see kproxy.plan.weights.effective for a list that has only zeroes.
    """

    ip: str
    port: int
    local: bool = False
    has_node: bool = True
    weight: int = 1

    @property
    def address_port(self) -> str:
        """As join_host_port, as chain names and DNAT targets print it; made on demand, as there are many."""
        ip = self.ip
        return f"[{ip}]:{self.port}" if ":" in ip else f"{ip}:{self.port}"

    @property
    def may_be_here(self) -> bool:
        """Whether it may be on this node, so that it can reach itself through its service (hairpin)."""
        return self.local or not self.has_node


def uses_cluster(internal_local: bool, externally_accessible: bool) -> bool:
    """Whether any traffic of a port follows the Cluster policy.

    A Local external policy still lets pods and the node itself use all endpoints.
    """
    return not internal_local or externally_accessible


def uses_local(internal_local: bool, external_local: bool, externally_accessible: bool) -> bool:
    """Whether any traffic of a port follows the Local policy."""
    return internal_local or (external_local and externally_accessible)


class PortPlan(msgspec.Struct, frozen=True, gc=False):
    """One service port. `name` is `namespace/service:port` (without `:port` if the port has no name).

    `cluster` are the endpoints under the Cluster policy, `local` those under Local, `reachable` the union
    of both; each ordered by `address_port`. `endpoints` counts all known ones, usable or not.
    `serving` are, for UDP only, the `ip:port` of all that still answer, under any policy.
    `idle` are, with affinity only, the known endpoints that are not in `reachable`: affinity entries may
    still name them. `scheduler` is the one that the service's annotation names, or None; only IPVS uses it.
    `source_ranges` is None where load-balancer traffic is not restricted; an empty tuple admits no client.
    """

    name: str
    protocol: Protocol
    cluster_ip: str
    port: int
    node_port: int = 0
    external_ips: tuple[str, ...] = ()
    load_balancer_ips: tuple[str, ...] = ()
    source_ranges: tuple[str, ...] | None = None
    node_in_source_ranges: bool = False
    health_check_node_port: int = 0
    internal_local: bool = False
    external_local: bool = False
    affinity_seconds: int | None = None
    scheduler: Scheduler | None = None
    cluster: tuple[EndpointPlan, ...] = ()
    local: tuple[EndpointPlan, ...] = ()
    reachable: tuple[EndpointPlan, ...] = ()
    has_endpoints: bool = False
    endpoints: int = 0
    serving: frozenset[str] = frozenset()
    idle: tuple[EndpointPlan, ...] = ()

    @property
    def externally_accessible(self) -> bool:
        """Whether the port has a frontend besides its cluster IP."""
        return bool(self.node_port or self.load_balancer_ips or self.external_ips)

    @property
    def uses_cluster(self) -> bool:
        """Whether any traffic follows the Cluster policy."""
        return uses_cluster(self.internal_local, self.externally_accessible)

    @property
    def uses_local(self) -> bool:
        """Whether any traffic follows the Local policy."""
        return uses_local(self.internal_local, self.external_local, self.externally_accessible)

    @property
    def internal(self) -> Verdict:
        """Verdict for traffic to the cluster IP."""
        return self._verdict(self.internal_local)

    @property
    def external(self) -> Verdict:
        """Verdict for traffic from outside to node ports, external and load-balancer IPs."""
        return self._verdict(self.external_local)

    def _verdict(self, local: bool) -> Verdict:
        if not self.has_endpoints:
            return Verdict.REJECT
        return Verdict.DROP if local and not self.local else Verdict.FORWARD


def without_unused_endpoints(port: PortPlan) -> PortPlan:
    """Return the port without endpoints of policies that none of its (remaining) frontends uses."""
    if not port.uses_cluster:
        return msgspec.structs.replace(port, cluster=(), reachable=port.local)
    if not port.uses_local:
        return msgspec.structs.replace(port, local=(), reachable=port.cluster)
    return port


class ServicePlan(msgspec.Struct, frozen=True, gc=False):
    """All ports of one service in one family; no ports if the service has no address in that family.

    `created` is the creationTimestamp (RFC 3339, sorts as text) or "" where the object has none.
    `local_ready` counts the addresses of ready endpoints on this node, over all ports.
    """

    key: str
    family: Family
    created: str = ""
    ports: tuple[PortPlan, ...] = ()
    problems: tuple[Problem, ...] = ()
    local_ready: int = 0
