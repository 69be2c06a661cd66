"""Make clusters of any size: N services with E ready endpoints each, as plain API objects."""

import ipaddress
from typing import Any

Object = dict[str, Any]

_CLUSTER_IPS = int(ipaddress.ip_address("10.96.0.0"))
_PODS = int(ipaddress.ip_address("10.128.0.0"))

_GENERATION, GENERATIONS = 1_000_000, 7

CLUSTER_CIDR = "10.128.0.0/9"
SERVICE_CIDR = "10.96.0.0/12"


def service(index: int) -> Object:
    """The ClusterIP service number `index`."""
    address = cluster_ip(index)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"svc-{index}", "namespace": "bench"},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}],
        },
    }


def cluster_ip(index: int) -> str:
    """The address of service `index`."""
    return str(ipaddress.ip_address(_CLUSTER_IPS + 256 + index))


def pods(index: int, endpoints: int, *, moved: int = 0, generation: int = 0) -> list[str]:
    """The pods of service `index`; each generation has others, and the last may have `moved` elsewhere."""
    first = _PODS + generation % GENERATIONS * _GENERATION + index * endpoints
    hosts = list(range(first, first + endpoints))
    if moved:
        hosts[-1] = _PODS + GENERATIONS * _GENERATION + moved
    return [str(ipaddress.ip_address(host)) for host in hosts]


def endpoint_slice(
    index: int, endpoints: int, *, moved: int = 0, gone: int = 0, generation: int = 0
) -> Object:
    """The slice of service `index` with its `pods`, the last `gone` left out."""
    hosts = pods(index, endpoints, moved=moved, generation=generation)
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"svc-{index}-1",
            "namespace": "bench",
            "labels": {"kubernetes.io/service-name": f"svc-{index}"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [
            {
                "addresses": [host],
                "nodeName": f"node-{k % 3}",
                "conditions": {"ready": True, "serving": True, "terminating": False},
            }
            for k, host in enumerate(hosts[: endpoints - gone])
        ],
    }
