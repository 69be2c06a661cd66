"""The fields of the Kubernetes API that service proxies need.

msgspec skips every other field, which keeps memory and time low for 100,000 endpoints. Labels and annotations
are structs too: only the keys that service proxies use are kept. No struct has a resourceVersion: if two
structs are equal, nothing relevant changed.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta, field

PORT_MAX = 65535

Count = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
"""An int32, like every number of these API types; ranges are checked where the value is used."""


class Wire(msgspec.Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """Base of all wire structs: immutable, and never part of a reference cycle."""


class ObjectMeta(Wire, frozen=True):
    """metadata of any object."""

    name: str


class NamespacedMeta(ObjectMeta, frozen=True):
    """metadata of an object that has a namespace."""

    namespace: str = "default"


class WireObject(Wire, frozen=True):
    """Base of all objects that have no namespace."""

    metadata: ObjectMeta

    @property
    def key(self) -> str:
        """The name."""
        return self.metadata.name


class NamespacedObject(WireObject, frozen=True):
    """Base of all objects that have a namespace."""

    metadata: NamespacedMeta

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.metadata.namespace}/{self.metadata.name}"


class ServiceLabels(Wire, frozen=True):
    """Labels of a Service that select or hide it."""

    service_proxy_name: str | None = field(name="service.kubernetes.io/service-proxy-name", default=None)


class ServiceAnnotations(Wire, frozen=True):
    """Annotations of a Service that change how it is balanced."""

    weights: str | None = field(name="kproxy.io/weights", default=None)
    scheduler: str | None = field(name="kproxy.io/scheduler", default=None)
    kube_router_scheduler: str | None = field(name="kube-router.io/service.scheduler", default=None)


class ServiceMeta(NamespacedMeta, frozen=True):
    """metadata of a Service."""

    creation_timestamp: str | None = None
    labels: ServiceLabels | None = None
    annotations: ServiceAnnotations | None = None


class ServicePort(Wire, frozen=True):
    """spec.ports[] of a Service."""

    port: Count
    name: str | None = None
    protocol: str = "TCP"
    node_port: Count | None = None


class ClientIPConfig(Wire, frozen=True):
    """spec.sessionAffinityConfig.clientIP."""

    timeout_seconds: Count | None = None


class SessionAffinityConfig(Wire, frozen=True):
    """spec.sessionAffinityConfig."""

    client_ip: ClientIPConfig | None = field(name="clientIP", default=None)


class ServiceSpec(Wire, frozen=True):
    """spec of a Service."""

    type: str = "ClusterIP"
    cluster_ip: str | None = field(name="clusterIP", default=None)
    cluster_ips: tuple[str, ...] | None = field(name="clusterIPs", default=None)
    ports: tuple[ServicePort, ...] | None = None
    external_ips: tuple[str, ...] | None = field(name="externalIPs", default=None)
    session_affinity: str | None = None
    session_affinity_config: SessionAffinityConfig | None = None
    load_balancer_source_ranges: tuple[str, ...] | None = None
    external_traffic_policy: str | None = None
    internal_traffic_policy: str | None = None
    health_check_node_port: Count | None = None


class LoadBalancerIngress(Wire, frozen=True):
    """status.loadBalancer.ingress[]."""

    ip: str | None = None
    ip_mode: str | None = None


class LoadBalancerStatus(Wire, frozen=True):
    """status.loadBalancer."""

    ingress: tuple[LoadBalancerIngress, ...] | None = None


class ServiceStatus(Wire, frozen=True):
    """status of a Service."""

    load_balancer: LoadBalancerStatus | None = None


class Service(NamespacedObject, frozen=True):
    """v1 Service."""

    metadata: ServiceMeta
    spec: ServiceSpec | None = None
    status: ServiceStatus | None = None


class SliceLabels(Wire, frozen=True):
    """Labels of an EndpointSlice: its Service, and whether service proxies must ignore it."""

    service_name: str | None = field(name="kubernetes.io/service-name", default=None)
    headless: str | None = field(name="service.kubernetes.io/headless", default=None)


class SliceAnnotations(Wire, frozen=True):
    """Annotations of an EndpointSlice: the time of the change of the pod or service (RFC 3339)."""

    trigger_time: str | None = field(name="endpoints.kubernetes.io/last-change-trigger-time", default=None)


class SliceMeta(NamespacedMeta, frozen=True):
    """metadata of an EndpointSlice."""

    labels: SliceLabels | None = None
    annotations: SliceAnnotations | None = None


class EndpointConditions(Wire, frozen=True):
    """endpoints[].conditions; an absent `ready` or `serving` means true (EndpointSlice API)."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class HintName(Wire, frozen=True):
    """endpoints[].hints.forZones[] or forNodes[]."""

    name: str


class EndpointHints(Wire, frozen=True):
    """endpoints[].hints."""

    for_zones: tuple[HintName, ...] | None = None
    for_nodes: tuple[HintName, ...] | None = None


class TargetRef(Wire, frozen=True):
    """endpoints[].targetRef."""

    kind: str | None = None
    name: str | None = None


class Endpoint(Wire, frozen=True):
    """endpoints[] of an EndpointSlice."""

    addresses: tuple[str, ...] | None = None
    conditions: EndpointConditions | None = None
    node_name: str | None = None
    zone: str | None = None
    hints: EndpointHints | None = None
    target_ref: TargetRef | None = None


if TYPE_CHECKING:
    Endpoints = Sequence[Endpoint]
else:
    Endpoints = tuple[Endpoint, ...]
"""endpoints of an EndpointSlice: decoded as a tuple, kept in the form of kproxy.state.compact_endpoints."""


class EndpointPort(Wire, frozen=True):
    """ports[] of an EndpointSlice."""

    name: str | None = None
    protocol: str | None = None
    port: Count | None = None


class EndpointSlice(NamespacedObject, frozen=True):
    """discovery.k8s.io/v1 EndpointSlice."""

    metadata: SliceMeta
    address_type: str = "IPv4"
    endpoints: Endpoints | None = None
    ports: tuple[EndpointPort, ...] | None = None

    @property
    def service_key(self) -> str | None:
        """`namespace/name` of the Service it belongs to, or None if it belongs to none."""
        labels = self.metadata.labels
        if labels is None or not labels.service_name:
            return None
        return f"{self.metadata.namespace}/{labels.service_name}"


class ServiceCIDRMeta(ObjectMeta, frozen=True):
    """metadata of a ServiceCIDR."""


class ServiceCIDRSpec(Wire, frozen=True):
    """spec of a ServiceCIDR."""

    cidrs: tuple[str, ...] | None = None


class ServiceCIDR(WireObject, frozen=True):
    """networking.k8s.io/v1 ServiceCIDR; one that is being deleted counts until it is gone."""

    metadata: ServiceCIDRMeta
    spec: ServiceCIDRSpec | None = None


class NodeLabels(Wire, frozen=True):
    """Labels of a Node."""

    zone: str | None = field(name="topology.kubernetes.io/zone", default=None)


class NodeMeta(ObjectMeta, frozen=True):
    """metadata of a Node."""

    labels: NodeLabels | None = None
    deletion_timestamp: str | None = None


class Taint(Wire, frozen=True):
    """spec.taints[]."""

    key: str


class NodeSpec(Wire, frozen=True):
    """spec of a Node."""

    pod_cidr: str | None = field(name="podCIDR", default=None)
    pod_cidrs: tuple[str, ...] | None = field(name="podCIDRs", default=None)
    taints: tuple[Taint, ...] | None = None


class NodeAddress(Wire, frozen=True):
    """status.addresses[]."""

    type: str
    address: str


class NodeStatus(Wire, frozen=True):
    """status of a Node."""

    addresses: tuple[NodeAddress, ...] | None = None


class Node(WireObject, frozen=True):
    """v1 Node."""

    metadata: NodeMeta
    spec: NodeSpec | None = None
    status: NodeStatus | None = None
