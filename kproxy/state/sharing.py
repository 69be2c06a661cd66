"""Share equal values of decoded objects in memory: names of namespaces, policies, conditions, ports.

100,000 endpoints on 1,000 nodes have few different conditions and ports, and 10,000 services few different
ports and policies, but each decoded object has its own copies. Long lists of ports are not shared: they are
rare, and the cache would keep those of a tenant.
"""

import sys
from functools import lru_cache

import msgspec
from msgspec.structs import force_setattr

from kproxy.state.compact_endpoints import compact
from kproxy.state.wire import EndpointPort, EndpointSlice, Service, ServicePort, ServiceSpec

_LONGEST_SHARED = 64
"""Most ports of a list that is shared; the API allows 20,000."""

_POLICIES = ("type", "session_affinity", "external_traffic_policy", "internal_traffic_policy")


def share_slice(decoded: EndpointSlice) -> None:
    """Replace parts of a newly decoded slice by equal shared ones; nothing else may refer to it yet."""
    intern(decoded.metadata, "namespace")
    intern(decoded, "address_type")
    if decoded.metadata.labels is not None:
        intern(decoded.metadata.labels, "service_name")
    if decoded.ports is not None and len(decoded.ports) <= _LONGEST_SHARED:
        force_setattr(decoded, "ports", _ports(decoded.ports))
    if isinstance(decoded.endpoints, tuple):
        force_setattr(decoded, "endpoints", compact(decoded.endpoints))


def share_service(decoded: Service) -> None:
    """Replace parts of a newly decoded Service by equal shared ones; nothing else may refer to it yet."""
    intern(decoded.metadata, "namespace")
    intern(decoded.metadata, "name")
    spec = decoded.spec
    if spec is None:
        return
    for policy in _POLICIES:
        intern(spec, policy)
    if spec.cluster_ips and spec.cluster_ip == spec.cluster_ips[0]:
        force_setattr(spec, "cluster_ip", spec.cluster_ips[0])
    if spec.ports is not None and len(spec.ports) <= _LONGEST_SHARED:
        _share_ports(spec, spec.ports)


def _share_ports(spec: ServiceSpec, ports: tuple[ServicePort, ...]) -> None:
    if any(port.node_port for port in ports):  # a node port belongs to one service
        for port in ports:
            intern(port, "name")
            intern(port, "protocol")
    else:
        force_setattr(spec, "ports", _service_ports(ports))


def intern(owner: msgspec.Struct, name: str) -> None:
    """Replace the text of a field by an equal one that is shared by all."""
    value = getattr(owner, name)
    if value is not None:
        force_setattr(owner, name, sys.intern(value))


@lru_cache(maxsize=4096)
def _ports(ports: tuple[EndpointPort, ...]) -> tuple[EndpointPort, ...]:
    return ports


@lru_cache(maxsize=4096)
def _service_ports(ports: tuple[ServicePort, ...]) -> tuple[ServicePort, ...]:
    return ports
