"""Builders of what an adversarial tenant writes: large or strange, but within the API's own limits.

Addresses lie in ranges of their own, so that no object of a tenant shares one with the victim.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Any, Final

JSON = dict[str, Any]

SPACE: Final = "attacker"
"""The namespace in which the attacker may write; further ones begin with it."""

PODS_IN_SLICE: Final = 1000
"""Endpoints of a slice at most (EndpointSlice API). The number of its ports has no limit of its own."""

_CLUSTER_IPS = int(ipaddress.ip_address("10.100.0.0"))
_PODS = int(ipaddress.ip_address("10.128.0.0"))
_OUTSIDE = int(ipaddress.ip_address("198.18.0.0"))


def cluster_ip(number: int) -> str:
    return str(ipaddress.ip_address(_CLUSTER_IPS + number))


def pod_ips(count: int, first: int = 0) -> list[str]:
    return [str(ipaddress.ip_address(_PODS + first + n)) for n in range(count)]


def outside_ips(count: int, first: int = 0) -> list[str]:
    """Addresses for spec.externalIPs, which nothing routes."""
    return [str(ipaddress.ip_address(_OUTSIDE + first + n)) for n in range(count)]


def ports(count: int, first: int = 1000) -> list[JSON]:
    """The ports of a service, named p0, p1, ..., each with a target port of its own number."""
    return [
        {"name": f"p{n}", "port": first + n, "protocol": "TCP", "targetPort": first + n} for n in range(count)
    ]


def service(
    name: str,
    number: int,
    ports: Sequence[JSON],
    *,
    space: str = SPACE,
    annotations: JSON | None = None,
    labels: JSON | None = None,
    **spec: Any,
) -> JSON:
    """A single-stack service with cluster IP number `number`; `spec` holds further fields of its spec."""
    ip = cluster_ip(number)
    metadata: JSON = {
        "name": name,
        "namespace": space,
        "uid": f"{space}-{name}",
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }
    metadata |= {"annotations": annotations} if annotations else {}
    metadata |= {"labels": labels} if labels else {}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "type": "ClusterIP",
            "clusterIP": ip,
            "clusterIPs": [ip],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "ports": list(ports),
            **spec,
        },
    }


def endpoint(ip: str, *, ready: bool = True, pod: str = "", node: str = "node-b") -> JSON:
    return {
        "addresses": [ip],
        "conditions": {"ready": ready, "serving": ready, "terminating": False},
        "nodeName": node,
        "targetRef": {"kind": "Pod", "namespace": SPACE, "name": pod or f"pod-{ip}"},
    }


def slice_of(
    service: str,
    endpoints: Iterable[JSON],
    ports: Sequence[JSON],
    *,
    name: str = "a",
    space: str = SPACE,
    labels: JSON | None = None,
) -> JSON:
    """One IPv4 slice of a service; `ports` are those of the service."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{service}-{name}",
            "namespace": space,
            "labels": {"kubernetes.io/service-name": service, **(labels or {})},
        },
        "addressType": "IPv4",
        "endpoints": list(endpoints),
        "ports": [
            {"name": each["name"], "protocol": each["protocol"], "port": each["targetPort"]} for each in ports
        ],
    }


def slices_of(
    service: str, ips: Sequence[str], ports: Sequence[JSON], *, unready: Iterable[str] = ()
) -> list[JSON]:
    """As many full slices as the endpoints need."""
    down = set(unready)
    return [
        slice_of(
            service,
            [endpoint(ip, ready=ip not in down) for ip in ips[at : at + PODS_IN_SLICE]],
            ports,
            name=f"{at // PODS_IN_SLICE}",
        )
        for at in range(0, len(ips), PODS_IN_SLICE)
    ]
