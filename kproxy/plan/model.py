"""What a backend needs to know of a service, on this node, for one IP family.

A plan holds decisions, not API objects: which addresses are accepted, which endpoints may be chosen for
internal and for external traffic, and what happens where there is none. All addresses in it are canonical.
"""

import enum
from collections.abc import Mapping

import msgspec

from kproxy.addresses import Family
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
    """What happens to traffic of one kind (internal or external) of a service port.

    Without any usable endpoint in the cluster, clients are told at once (REJECT); with endpoints elsewhere
    but a Local policy and none here, packets are dropped, so that a client whose load balancer has not yet
    noticed retries instead of failing (KEP-1669, kube-proxy since 1.24).
    """

    FORWARD = "FORWARD"
    REJECT = "REJECT"
    DROP = "DROP"


class OutsideLimits(msgspec.Struct, frozen=True):
    """What restricts the addresses that services have for outside clients; see kproxy.plan.outside.

    `external_ip_cidrs`: spec.externalIPs must be within one of these; empty: they may be any. `local` are the
    addresses of this node. `listeners` are the (address, port) of this process's TCP servers, with "" for all
    addresses of the node. `api_servers` are the (address, port) at which kproxy reaches the API server.
    `holds_addresses`: the node gets every outside address for its own (IPVS mode).
    """

    external_ip_cidrs: tuple[str, ...] = ()
    local: frozenset[str] = frozenset()
    listeners: frozenset[tuple[str, int]] = frozenset()
    api_servers: frozenset[tuple[str, int]] = frozenset()
    holds_addresses: bool = False


class NodeView(msgspec.Struct, frozen=True):
    """What planning needs to know of the node it plans for.

    `addresses` holds the node's primary address per family; it decides whether a source range includes
    the node itself. Without `external_ips`, spec.externalIPs are served nowhere (KEP-5707); `outside` says
    which addresses are not served here.
    """

    name: str
    zone: str | None = None
    addresses: Mapping[Family, str] = {}
    external_ips: bool = True
    outside: OutsideLimits = OutsideLimits()


class EndpointPlan(msgspec.Struct, frozen=True, gc=False):
    """One endpoint: `text` is `ip:port` as chain names and DNAT targets print it.

    `placed` is False for one that does not say which node it is on. `weight` (0-65535) is its share of new
    connections; see kproxy.plan.weights.effective for a list that has only zeroes.
    """

    ip: str
    port: int
    text: str
    local: bool = False
    placed: bool = True
    weight: int = 1

    @property
    def may_be_here(self) -> bool:
        """Whether it may be on this node, and so reach itself through its service."""
        return self.local or not self.placed


class PortPlan(msgspec.Struct, frozen=True, gc=False):
    """One service port. `name` is `namespace/service:port` (without `:port` if the port has no name).

    `cluster` are the endpoints under the Cluster policy, `local` those under Local, `reachable` the union
    that chains must exist for; each ordered by `text`. `endpoints` counts all known ones, usable or not.
    `serving` are, for UDP only, the `ip:port` of all that still answer, whatever the policies say.
    `idle` are, with affinity only, those that are known and not among `reachable`: a client may be remembered
    at one of them. `scheduler` is the one the service asks for, if any; only IPVS can choose.
    `source_ranges` is None where load-balancer traffic is not restricted; an empty tuple admits nobody.
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
        """Whether anything but the cluster IP leads here."""
        return bool(self.node_port or self.load_balancer_ips or self.external_ips)

    @property
    def uses_cluster(self) -> bool:
        """Whether any traffic follows the Cluster policy.

        A Local external policy still lets pods and the node itself use all endpoints.
        """
        return not self.internal_local or self.externally_accessible

    @property
    def uses_local(self) -> bool:
        """Whether any traffic follows the Local policy."""
        return self.internal_local or (self.external_local and self.externally_accessible)

    @property
    def internal(self) -> Verdict:
        """What happens to traffic for the cluster IP."""
        return self._verdict(self.internal_local)

    @property
    def external(self) -> Verdict:
        """What happens to traffic for node ports, external and load-balancer IPs from outside."""
        return self._verdict(self.external_local)

    def _verdict(self, local: bool) -> Verdict:
        if not self.has_endpoints:
            return Verdict.REJECT
        return Verdict.DROP if local and not self.local else Verdict.FORWARD


def without_unused_endpoints(port: PortPlan) -> PortPlan:
    """With fewer addresses a port may use fewer policies; endpoints that no policy uses need no chains."""
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
