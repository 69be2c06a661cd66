"""Services and EndpointSlices as JSON, with endpoints named by the lab's pods: `local-0`, `remote-1`, ...

Every lab has the same addresses, so one set of objects serves all contenders.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kproxy_lab.lab.topology import NODE, PEER, Family, LabSpec

JSON = dict[str, Any]

NAMESPACE = "default"
FAMILIES: tuple[Family, ...] = (4, 6)
FAMILY_NAMES: dict[Family, str] = {4: "IPv4", 6: "IPv6"}
SPEC = LabSpec(local_pods=3, remote_pods=3)
TARGET, OTHER_TARGET = 8080, 8081
"""The ports on which every pod answers, over TCP and UDP."""


def address(place: str, family: Family) -> str:
    """The address of a pod of the lab, `local-N` or `remote-N`, or of a node, `local` or `remote`."""
    side, _, index = place.partition("-")
    own, at = NODE if side == "local" else PEER, FAMILIES.index(family)
    return own.pod(int(index))[at] if index else (own.ip4[0], own.ip6[0])[at]


@dataclass(frozen=True, slots=True)
class Ep:
    """An endpoint in a pod, or in a node's own network; None leaves a field out."""

    place: str
    ready: bool | None = True
    serving: bool | None = None
    terminating: bool | None = None
    zones: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    node_name: str | None = ""

    def json(self, family: Family) -> JSON:
        """The entry of an EndpointSlice's endpoints; an empty `node_name` is that of its pod."""
        conditions = {"ready": self.ready, "serving": self.serving, "terminating": self.terminating}
        node = (
            (SPEC.node_name if self.place.startswith("local") else SPEC.peer_name)
            if self.node_name == ""
            else self.node_name
        )
        hints = {
            **({"forZones": [{"name": zone} for zone in self.zones]} if self.zones else {}),
            **({"forNodes": [{"name": name} for name in self.nodes]} if self.nodes else {}),
        }
        return {
            "addresses": [address(self.place, family)],
            "conditions": {name: value for name, value in conditions.items() if value is not None},
            **({"nodeName": node} if node is not None else {}),
            **({"hints": hints} if hints else {}),
        }


def port(number: int = 80, name: str = "", protocol: str = "TCP", **fields: Any) -> JSON:
    """One of a service's ports, which leads to TARGET unless `targetPort` says otherwise."""
    named = {"name": name} if name else {}
    return {"port": number, "protocol": protocol, "targetPort": TARGET, **named, **fields}


def service(
    name: str,
    *ports: JSON,
    labels: Mapping[str, str] | None = None,
    ingress: Sequence[JSON] = (),
    created: str | None = None,
    **spec: Any,
) -> JSON:
    """A Service, dual-stack unless `spec` says otherwise."""
    metadata: JSON = {"name": name, "namespace": NAMESPACE, "labels": dict(labels or {})}
    if created is not None:
        metadata["creationTimestamp"] = created
    families = {"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"]}
    if spec.get("type") == "ExternalName":
        families = {}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"type": "ClusterIP", "ports": list(ports or (port(),)), **families, **spec},
        "status": {"loadBalancer": {"ingress": list(ingress)}},
    }


def slices(
    owner: str,
    *endpoints: Ep | str,
    ports: Sequence[JSON] | None = ({"name": "", "protocol": "TCP", "port": TARGET},),
    suffix: str = "a",
    families: Sequence[Family] = FAMILIES,
    labels: Mapping[str, str] | None = None,
) -> list[JSON]:
    """The slices `suffix` of a service, one for each family."""
    return [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{owner}-{suffix}-{family}",
                "namespace": NAMESPACE,
                "labels": {"kubernetes.io/service-name": owner, **(labels or {})},
            },
            "addressType": FAMILY_NAMES[family],
            "endpoints": [(e if isinstance(e, Ep) else Ep(e)).json(family) for e in endpoints],
            "ports": None if ports is None else list(ports),
        }
        for family in families
    ]


def served(number: int | None = TARGET, name: str | None = "", protocol: str = "TCP") -> JSON:
    """One of a slice's ports; None leaves a field out."""
    return {
        "protocol": protocol,
        **({} if number is None else {"port": number}),
        **({} if name is None else {"name": name}),
    }


def vips(number: int) -> list[str]:
    """An address outside, of each family, that leads to the node."""
    return [f"203.0.113.{number}", f"2001:db8:2::{number:x}"]


def node(**metadata: Any) -> JSON:
    """The Node that all contenders run on."""
    ips = ("192.168.100.10", "fd00:192:168:100::10")
    labels = {"topology.kubernetes.io/zone": "zone-a", "kubernetes.io/hostname": SPEC.node_name}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": SPEC.node_name, "labels": labels, **metadata},
        "spec": {"podCIDR": NODE.pod_cidrs[0], "podCIDRs": list(NODE.pod_cidrs)},
        "status": {"addresses": [{"type": "InternalIP", "address": ip} for ip in ips]},
    }
