"""Builders of API objects from the tests' descriptions of services and endpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kproxy_lab.lab import Pod, Protocol
from kproxy_lab.lab.topology import Family

JSON = dict[str, Any]

FAMILIES: tuple[Family, ...] = (4, 6)
FAMILY_NAMES: dict[Family, str] = {4: "IPv4", 6: "IPv6"}
NAMESPACE = "default"

TARGET = 8080
"""The port on which every pod of the lab answers; OTHER_TARGET is another one."""
OTHER_TARGET = 8081


@dataclass(frozen=True, slots=True)
class Port:
    """One port of a service; `node_port` 0 is one of its own where the type has node ports."""

    number: int = 80
    protocol: Protocol = "TCP"
    name: str = ""
    target: int = TARGET
    target_name: str = ""
    node_port: int = 0

    def in_service(self, node_port: int) -> JSON:
        """The entry of spec.ports."""
        fields: JSON = {
            "port": self.number,
            "protocol": self.protocol,
            "targetPort": self.target_name or self.target,
        }
        return (
            fields
            | ({"name": self.name} if self.name else {})
            | ({"nodePort": node_port} if node_port else {})
        )

    def in_slice(self) -> JSON:
        """The entry of an EndpointSlice's ports."""
        return {"name": self.name, "protocol": self.protocol, "port": self.target}


@dataclass(frozen=True, slots=True)
class Ep:
    """An endpoint with conditions and hints; None leaves a condition out."""

    pod: Pod
    ready: bool | None = True
    serving: bool | None = None
    terminating: bool | None = None
    zones: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()

    def json(self, family: Family) -> JSON:
        """The entry of an EndpointSlice's endpoints."""
        conditions = {"ready": self.ready, "serving": self.serving, "terminating": self.terminating}
        entry: JSON = {
            "addresses": [self.pod.ip(family)],
            "conditions": {name: value for name, value in conditions.items() if value is not None},
            "nodeName": self.pod.node_name,
            "targetRef": {"kind": "Pod", "namespace": NAMESPACE, "name": self.pod.name},
        }
        hints: JSON = {}
        if self.zones:
            hints["forZones"] = [{"name": zone} for zone in self.zones]
        if self.nodes:
            hints["forNodes"] = [{"name": node} for node in self.nodes]
        return entry | ({"hints": hints} if hints else {})


@dataclass(frozen=True, slots=True)
class Service:
    """A service as the API stored it."""

    name: str
    ports: tuple[Port, ...]
    ips: Mapping[Family, str]
    node_ports: Mapping[str, int] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """`namespace/name`, as logs have it."""
        return f"{NAMESPACE}/{self.name}"

    @property
    def port(self) -> int:
        """The number of its first port."""
        return self.ports[0].number

    @property
    def node_port(self) -> int:
        """The node port of its first port."""
        return self.node_ports[self.ports[0].name]

    def ip(self, family: Family) -> str:
        """Its cluster IP of a family."""
        return self.ips[family]


def slice_json(
    service: str,
    name: str,
    family: Family,
    endpoints: Sequence[Ep | Pod],
    ports: Sequence[Port],
    labels: Mapping[str, str],
) -> JSON:
    """An EndpointSlice of one family."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": service, **labels},
        },
        "addressType": FAMILY_NAMES[family],
        "endpoints": [(e if isinstance(e, Ep) else Ep(e)).json(family) for e in endpoints],
        "ports": [port.in_slice() for port in ports],
    }


def node_json(name: str, addresses: Sequence[str], pod_cidrs: Sequence[str], zone: str) -> JSON:
    """The Node object of the node under test."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
        "spec": {"podCIDR": pod_cidrs[0], "podCIDRs": list(pod_cidrs)},
        "status": {"addresses": [{"type": "InternalIP", "address": ip} for ip in addresses]},
    }
