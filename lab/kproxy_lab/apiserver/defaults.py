"""Values set by the server: field defaults of each kind, and a Service's addresses and ports.

The Service rules are those of the API reference (v1 ServiceSpec) and of the dual-stack KEP-563.
An update that leaves out what was allocated keeps it, so that applying a manifest without a
clusterIP over a stored Service changes nothing.
"""

from __future__ import annotations

from typing import Any

from kproxy_lab.apiserver.allocation import Allocations, canonical
from kproxy_lab.apiserver.errors import JSON
from kproxy_lab.apiserver.policies import default_pod, default_policy
from kproxy_lab.apiserver.resources import Resource

AFFINITY_TIMEOUT = 10_800
"""Default ClientIP session affinity timeout in seconds (three hours)."""

_NODE_PORT_TYPES = ("NodePort", "LoadBalancer")


def apply_defaults(resource: Resource, obj: JSON) -> None:
    """Fill in the static defaults of a kind, in place."""
    match resource.kind:
        case "Service":
            _default_service(obj.setdefault("spec", {}))
            obj.setdefault("status", {}).setdefault("loadBalancer", {})
        case "EndpointSlice":
            if not obj.get("endpoints"):
                obj["endpoints"] = []
            for port in obj.get("ports") or ():
                port.setdefault("name", "")
                port.setdefault("protocol", "TCP")
        case "NetworkPolicy":
            default_policy(obj)
        case "Pod":
            default_pod(obj)
        case "Namespace":
            obj.setdefault("spec", {}).setdefault("finalizers", ["kubernetes"])
            obj.setdefault("status", {}).setdefault("phase", "Active")
            labels = obj["metadata"].get("labels") or {}
            obj["metadata"]["labels"] = {**labels, "kubernetes.io/metadata.name": obj["metadata"]["name"]}


def keep_allocated(spec: JSON, old: JSON) -> None:
    """Carry allocated values of a stored Service spec over to its replacement, in place."""
    kind, old_kind = spec.get("type", "ClusterIP"), old.get("type", "ClusterIP")
    if kind == "ExternalName":
        if spec.get("clusterIP") == old.get("clusterIP"):
            for field in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
                spec.pop(field, None)
    elif old_kind != "ExternalName" and not spec.get("clusterIPs"):
        if spec.get("clusterIP") in (None, "", old.get("clusterIP")):
            spec.update({field: old[field] for field in ("clusterIP", "clusterIPs") if old.get(field)})
        spec.setdefault("ipFamilies", old.get("ipFamilies"))
        spec.setdefault("ipFamilyPolicy", old.get("ipFamilyPolicy"))
    held = {_port_key(port): port["nodePort"] for port in old.get("ports") or () if port.get("nodePort")}
    if kind in _NODE_PORT_TYPES:
        taken = {port["nodePort"] for port in spec.get("ports") or () if port.get("nodePort")}
        for port in spec.get("ports") or ():
            number = held.get(_port_key(port))
            if not port.get("nodePort") and number is not None and number not in taken:
                port["nodePort"] = number
    elif old_kind in _NODE_PORT_TYPES:
        for port in spec.get("ports") or ():
            if port.get("nodePort") in held.values():
                del port["nodePort"]
        if not spec.get("externalIPs"):
            spec.pop("externalTrafficPolicy", None)
    if kind != "LoadBalancer":
        for field in ("allocateLoadBalancerNodePorts", "healthCheckNodePort", "loadBalancerClass"):
            spec.pop(field, None)
    elif spec.get("externalTrafficPolicy") == "Local" and not spec.get("healthCheckNodePort"):
        spec["healthCheckNodePort"] = old.get("healthCheckNodePort", 0)
    elif spec.get("externalTrafficPolicy") != "Local":
        spec.pop("healthCheckNodePort", None)


def allocate(spec: JSON, allocations: Allocations) -> None:
    """Give a defaulted and valid Service spec its addresses and ports, in place.

    Nothing is reserved: the caller records the claims when it stores the object.

    Raises:
        ApiError: 500, a range is full.
    """
    if spec["type"] == "ExternalName":
        return
    _families(spec, allocations)
    if spec.get("clusterIP") != "None":
        addresses = [a for a in spec.get("clusterIPs") or () if a][: len(spec["ipFamilies"])]
        addresses += [allocations.free_address(f) for f in spec["ipFamilies"][len(addresses) :]]
        spec["clusterIPs"], spec["clusterIP"] = addresses, addresses[0]
    else:
        spec["clusterIPs"] = ["None"]
    wants_ports = spec["type"] == "NodePort" or (
        spec["type"] == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts", True)
    )
    given = [port["nodePort"] for port in spec.get("ports") or () if port.get("nodePort")]
    by_number: dict[int, int] = {}
    for port in spec.get("ports") or () if wants_ports else ():
        if not port.get("nodePort"):
            # The same number with another protocol shares its node port, as kube-apiserver does it.
            port["nodePort"] = by_number.get(port["port"]) or allocations.free_node_port(given)
        given.append(port["nodePort"])
        by_number[port["port"]] = port["nodePort"]
    needs_check = spec["type"] == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"
    if needs_check and not spec.get("healthCheckNodePort"):
        spec["healthCheckNodePort"] = allocations.free_node_port(given)


def _default_service(spec: JSON) -> None:
    spec.setdefault("type", "ClusterIP")
    spec.setdefault("sessionAffinity", "None")
    if spec["sessionAffinity"] == "ClientIP":
        config = spec["sessionAffinityConfig"] = dict(spec.get("sessionAffinityConfig") or {})
        given = (config.get("clientIP") or {}).get("timeoutSeconds")
        config["clientIP"] = {"timeoutSeconds": AFFINITY_TIMEOUT if given is None else given}
    for port in spec.get("ports") or ():
        if not port.get("protocol"):
            port["protocol"] = "TCP"
        if port.get("targetPort") in (None, 0, ""):
            port["targetPort"] = port.get("port")
    if spec["type"] in (*_NODE_PORT_TYPES, "ClusterIP"):
        spec.setdefault("internalTrafficPolicy", "Cluster")
    if spec["type"] in _NODE_PORT_TYPES or (spec["type"] == "ClusterIP" and spec.get("externalIPs")):
        spec.setdefault("externalTrafficPolicy", "Cluster")
    if spec["type"] == "LoadBalancer":
        spec.setdefault("allocateLoadBalancerNodePorts", True)
    if spec.get("clusterIP") and not spec.get("clusterIPs"):
        spec["clusterIPs"] = [spec["clusterIP"]]
    elif spec.get("clusterIPs") and not spec.get("clusterIP"):
        spec["clusterIP"] = spec["clusterIPs"][0]


def _families(spec: JSON, allocations: Allocations) -> None:
    """Set ipFamilies and ipFamilyPolicy from the spec and the cluster's families."""
    stated = [family for a in spec.get("clusterIPs") or () if (family := _family(a))]
    families: list[str] = list(spec.get("ipFamilies") or ())
    families += [family for family in stated if family not in families]
    headless = spec.get("clusterIP") == "None"
    policy = spec.get("ipFamilyPolicy")
    if policy is None:
        dual = len(families) == 2 or (headless and not spec.get("selector") and not families)
        policy = spec["ipFamilyPolicy"] = "RequireDualStack" if dual else "SingleStack"
    if not families:
        families = [allocations.families[0]]
    if policy == "SingleStack":
        families = families[:1]
    else:
        families += [family for family in allocations.families if family not in families]
    spec["ipFamilies"] = families


def _family(address: Any) -> str | None:
    text = canonical(address)
    if text is None:
        return None
    return "IPv6" if ":" in text else "IPv4"


def _port_key(port: JSON) -> tuple[Any, str]:
    return port.get("port"), port.get("protocol") or "TCP"
