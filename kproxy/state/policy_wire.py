"""The fields of Pods, Namespaces and NetworkPolicies that the enforcement of policies needs.

As with services, other fields are skipped while decoding, and no struct has a resourceVersion: if two structs
are equal, nothing relevant changed. So the many changes of a pod's conditions are no change here. A Pod of
the API has about 13 kB; 10,000 of them are kept, so equal parts are shared (sharing_policies.py).
"""

from typing import TYPE_CHECKING

import msgspec
from msgspec import field

from kproxy.state.wire import Count, NamespacedMeta, NamespacedObject, ObjectMeta, Wire, WireObject

if TYPE_CHECKING:
    Labels = dict[str, str]
else:
    Labels = dict[str, str] | None
"""metadata.labels; null is decoded, and becomes {} before anything else sees the object. Never changed."""


class PodMeta(NamespacedMeta, frozen=True):
    """metadata of a Pod. Times are RFC 3339."""

    uid: str = ""
    labels: Labels = field(default_factory=dict)
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None


class ContainerPort(Wire, frozen=True):
    """spec.containers[].ports[]."""

    container_port: Count
    name: str | None = None
    protocol: str | None = None


class Container(Wire, frozen=True):
    """spec.containers[] or spec.initContainers[]; among the latter, a sidecar has `restart_policy` Always."""

    ports: tuple[ContainerPort, ...] | None = None
    restart_policy: str | None = None


class PodSpec(Wire, frozen=True):
    """spec of a Pod."""

    node_name: str | None = None
    host_network: bool | None = None
    containers: tuple[Container, ...] | None = None
    init_containers: tuple[Container, ...] | None = None


class PodIP(Wire, frozen=True):
    """status.podIPs[]."""

    ip: str | None = None


class PodStatus(Wire, frozen=True):
    """status of a Pod."""

    phase: str | None = None
    pod_ip: str | None = field(name="podIP", default=None)
    pod_ips: tuple[PodIP, ...] | None = field(name="podIPs", default=None)


class Pod(NamespacedObject, frozen=True):
    """v1 Pod."""

    metadata: PodMeta
    spec: PodSpec | None = None
    status: PodStatus | None = None

    @property
    def node(self) -> str | None:
        """The node that it runs on, or None before it has one."""
        return self.spec.node_name or None if self.spec is not None else None

    @property
    def host_network(self) -> bool:
        """Whether it uses the addresses of its node."""
        return self.spec is not None and bool(self.spec.host_network)

    @property
    def finished(self) -> bool:
        """Whether all its containers have ended for good: then its address may be another pod's."""
        return self.status is not None and self.status.phase in ("Succeeded", "Failed")

    @property
    def addresses(self) -> tuple[str, ...]:
        """Its addresses as the API has them, at most one of each family; status.podIP is the first."""
        if self.status is None:
            return ()
        named = tuple(each.ip for each in self.status.pod_ips or () if each.ip)
        return named or ((self.status.pod_ip,) if self.status.pod_ip else ())


class NamespaceMeta(ObjectMeta, frozen=True):
    """metadata of a Namespace."""

    labels: Labels = field(default_factory=dict)


class Namespace(WireObject, frozen=True):
    """v1 Namespace."""

    metadata: NamespaceMeta


class NetworkPolicyMeta(NamespacedMeta, frozen=True):
    """metadata of a NetworkPolicy."""

    creation_timestamp: str | None = None


class NetworkPolicy(NamespacedObject, frozen=True):
    """networking.k8s.io/v1 NetworkPolicy.

    `spec` is JSON of any type, empty where the object has none. It is decoded by planning: a policy that
    cannot be understood must close its pods, so it may not be rejected here.
    """

    metadata: NetworkPolicyMeta
    spec: msgspec.Raw = msgspec.Raw()
