"""Validation: wrong types answer 400, wrong values 422 Invalid with one cause each.

Only fields that matter to a service proxy are checked. Two checks of the real server are omitted on
purpose: a cluster IP may lie outside the service CIDRs, and a namespace need not exist.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterator
from typing import Any

import msgspec

from kproxy_lab.apiserver.allocation import Allocations, canonical
from kproxy_lab.apiserver.errors import JSON, ApiError, Cause
from kproxy_lab.apiserver.policies import PodSpec, PolicySpec, policy_causes
from kproxy_lab.apiserver.resources import Resource

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_NAME = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_MAX_ENDPOINTS = 1000
"""Endpoints per slice, from the EndpointSlice API reference."""

_TYPES = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")
_PROTOCOLS = ("TCP", "UDP", "SCTP")
_FAMILIES = {"IPv4": socket.AF_INET, "IPv6": socket.AF_INET6}


class _Meta(msgspec.Struct, rename="camel"):
    name: str = ""
    generate_name: str = ""
    namespace: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    resource_version: str = ""
    uid: str = ""
    finalizers: list[str] | None = None


class _Any(msgspec.Struct, rename="camel"):
    metadata: _Meta


class _Port(msgspec.Struct, rename="camel"):
    port: int | None = None
    name: str | None = None
    protocol: str | None = None
    target_port: int | str | None = None
    node_port: int | None = None
    app_protocol: str | None = None


class _ClientIP(msgspec.Struct, rename="camel"):
    timeout_seconds: int | None = None


class _Affinity(msgspec.Struct):
    client_ip: _ClientIP | None = msgspec.field(default=None, name="clientIP")


class _ServiceSpec(msgspec.Struct, rename="camel"):
    type: str | None = None
    ports: list[_Port] | None = None
    selector: dict[str, str] | None = None
    cluster_ip: str | None = msgspec.field(default=None, name="clusterIP")
    cluster_ips: list[str] | None = msgspec.field(default=None, name="clusterIPs")
    external_ips: list[str] | None = msgspec.field(default=None, name="externalIPs")
    ip_families: list[str] | None = None
    ip_family_policy: str | None = None
    session_affinity: str | None = None
    session_affinity_config: _Affinity | None = None
    load_balancer_source_ranges: list[str] | None = None
    external_name: str | None = None
    external_traffic_policy: str | None = None
    internal_traffic_policy: str | None = None
    health_check_node_port: int | None = None
    allocate_load_balancer_node_ports: bool | None = None


class _Service(msgspec.Struct):
    metadata: _Meta
    spec: _ServiceSpec | None = None
    status: dict[str, Any] | None = None


class _Endpoint(msgspec.Struct, rename="camel"):
    addresses: list[str]
    conditions: dict[str, bool | None] | None = None
    node_name: str | None = None
    zone: str | None = None
    hints: dict[str, list[dict[str, str]] | None] | None = None


class _Slice(msgspec.Struct, rename="camel"):
    metadata: _Meta
    address_type: str = ""
    endpoints: list[_Endpoint] | None = None
    ports: list[_Port] | None = None


class _Policy(msgspec.Struct):
    metadata: _Meta
    spec: PolicySpec | None = None


class _Pod(msgspec.Struct):
    metadata: _Meta
    spec: PodSpec | None = None
    status: dict[str, Any] | None = None


_SCHEMAS: dict[str, type[msgspec.Struct]] = {
    "Service": _Service,
    "EndpointSlice": _Slice,
    "NetworkPolicy": _Policy,
    "Pod": _Pod,
}


def check_types(resource: Resource, obj: object) -> JSON:
    """Return ``obj`` as an object of this kind.

    Raises:
        ApiError: 400, a field has the wrong type or the kind is another.
    """
    if not isinstance(obj, dict):
        raise ApiError.bad_request(f"the body is not a {resource.kind}")
    obj = dict(obj)
    for field, expected in (("kind", resource.kind), ("apiVersion", resource.api_version)):
        if obj.setdefault(field, expected) != expected:
            raise ApiError.bad_request(f"{field} {obj[field]!r} does not match the expected {expected!r}")
    try:
        msgspec.convert(obj, _SCHEMAS.get(resource.kind, _Any))
    except msgspec.ValidationError as error:
        raise ApiError.bad_request(f"{resource.kind} cannot be handled: {error}") from error
    return obj


def check_values(resource: Resource, obj: JSON, owner: str, allocations: Allocations) -> None:
    """Refuse values the kind does not allow. ``obj`` is typed and defaulted.

    Raises:
        ApiError: 422 Invalid, naming every refused field.
    """
    causes = list(_metadata(resource, obj["metadata"]))
    if resource.kind == "Service":
        causes += _service(obj["spec"], owner, allocations)
    elif resource.kind == "EndpointSlice":
        causes += _slice(obj)
    elif resource.kind == "NetworkPolicy":
        causes += policy_causes(obj["spec"])
    if causes:
        raise ApiError.invalid(resource.group, resource.kind, obj["metadata"].get("name", ""), causes)


def check_update(resource: Resource, obj: JSON, old: JSON) -> None:
    """Refuse changes of immutable fields.

    Raises:
        ApiError: 422 Invalid.
    """
    causes = []
    if resource.kind == "EndpointSlice" and obj.get("addressType") != old.get("addressType"):
        causes.append(_bad("addressType", obj.get("addressType"), "field is immutable"))
    if resource.kind == "Service":
        new_spec, old_spec = obj["spec"], old.get("spec", {})
        both = "ExternalName" not in (new_spec.get("type"), old_spec.get("type"))
        held = old_spec.get("clusterIP")
        if both and held and new_spec.get("clusterIP") != held:
            causes.append(_bad("spec.clusterIPs[0]", new_spec.get("clusterIP"), "field is immutable"))
    if causes:
        raise ApiError.invalid(resource.group, resource.kind, obj["metadata"]["name"], causes)


def _metadata(resource: Resource, metadata: JSON) -> Iterator[Cause]:
    name = metadata.get("name", "")
    if not name:
        yield Cause("metadata.name", "FieldValueRequired", "Required value: name or generateName is required")
    elif resource.name_is_label and (len(name) > 63 or not _LABEL.fullmatch(name)):
        yield _bad("metadata.name", name, "a DNS-1123 label of at most 63 characters is needed")
    elif len(name) > 253 or not _SUBDOMAIN.fullmatch(name):
        yield _bad("metadata.name", name, "a DNS-1123 subdomain is needed")
    namespace = metadata.get("namespace", "")
    if resource.namespaced and (len(namespace) > 63 or not _LABEL.fullmatch(namespace)):
        yield _bad("metadata.namespace", namespace, "a DNS-1123 label is needed")
    for key, value in (metadata.get("labels") or {}).items():
        if not _LABEL_NAME.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
            yield _bad("metadata.labels", f"{key}={value}", "not a valid label")


def _service(spec: JSON, owner: str, allocations: Allocations) -> Iterator[Cause]:
    kind = spec["type"]
    yield from _one_of("spec.type", kind, _TYPES)
    ports = spec.get("ports") or []
    if not ports and kind != "ExternalName" and spec.get("clusterIP") != "None":
        yield Cause("spec.ports", "FieldValueRequired", "Required value")
    if kind == "ExternalName" and not _SUBDOMAIN.fullmatch(spec.get("externalName", "").rstrip(".").lower()):
        yield _bad("spec.externalName", spec.get("externalName"), "a DNS-1123 subdomain is needed")
    yield from _service_ports(ports, owner, allocations)
    yield from _cluster_ips(spec, owner, allocations)
    yield from _one_of("spec.sessionAffinity", spec["sessionAffinity"], ("None", "ClientIP"))
    if spec["sessionAffinity"] == "ClientIP":
        timeout = spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"]
        if not 0 < timeout <= 86_400:
            yield _bad("spec.sessionAffinityConfig.clientIP.timeoutSeconds", timeout, "1 to 86400 is needed")
    for field in ("internalTrafficPolicy", "externalTrafficPolicy"):
        if field in spec:
            yield from _one_of(f"spec.{field}", spec[field], ("Cluster", "Local"))
    policies = ("SingleStack", "PreferDualStack", "RequireDualStack")
    if spec.get("ipFamilyPolicy") is not None:
        yield from _one_of("spec.ipFamilyPolicy", spec["ipFamilyPolicy"], policies)
    for family in spec.get("ipFamilies") or ():
        yield from _one_of("spec.ipFamilies", family, allocations.families)
    for at, address in enumerate(spec.get("externalIPs") or ()):
        if canonical(address) is None:
            yield _bad(f"spec.externalIPs[{at}]", address, "an IP address is needed")
    for at, cidr in enumerate(spec.get("loadBalancerSourceRanges") or ()):
        if not _is_network(cidr.strip()):
            yield _bad(f"spec.loadBalancerSourceRanges[{at}]", cidr, "a CIDR is needed")


def _service_ports(ports: list[JSON], owner: str, allocations: Allocations) -> Iterator[Cause]:
    names: set[str] = set()
    pairs: set[tuple[int, str]] = set()
    for at, port in enumerate(ports):
        where = f"spec.ports[{at}]"
        name, number, protocol = port.get("name") or "", port.get("port"), port["protocol"]
        yield from _port_number(f"{where}.port", number)
        yield from _one_of(f"{where}.protocol", protocol, _PROTOCOLS)
        target = port.get("targetPort")
        if isinstance(target, int):
            yield from _port_number(f"{where}.targetPort", target)
        elif target is not None and (len(target) > 15 or not _LABEL.fullmatch(target)):
            yield _bad(f"{where}.targetPort", target, "a port number or name is needed")
        if not name and len(ports) > 1:
            yield Cause(f"{where}.name", "FieldValueRequired", "Required value")
        elif name and (len(name) > 63 or not _LABEL.fullmatch(name)):
            yield _bad(f"{where}.name", name, "a DNS-1123 label is needed")
        if name and name in names:
            yield Cause(f"{where}.name", "FieldValueDuplicate", f'Duplicate value: "{name}"')
        if isinstance(number, int) and (number, protocol) in pairs:
            yield Cause(where, "FieldValueDuplicate", f"Duplicate value: {number}/{protocol}")
        names.add(name)
        pairs.add((number or 0, protocol))
        node_port = port.get("nodePort") or 0
        if node_port and node_port not in allocations.node_ports:
            yield _bad(f"{where}.nodePort", node_port, "provided port is not in the valid range")
        elif node_port and allocations.owner_of(node_port) not in (None, owner):
            yield _bad(f"{where}.nodePort", node_port, "provided port is already allocated")


def _cluster_ips(spec: JSON, owner: str, allocations: Allocations) -> Iterator[Cause]:
    addresses = spec.get("clusterIPs") or []
    if len(addresses) > 2:
        yield _bad("spec.clusterIPs", addresses, "may hold two addresses at most")
    for at, address in enumerate(addresses):
        where = f"spec.clusterIPs[{at}]"
        text = canonical(address)
        if address == "None" and len(addresses) == 1:
            if spec["type"] != "ClusterIP":
                yield _bad(where, address, f"may not be None for a {spec['type']} service")
        elif text is None:
            yield _bad(where, address, "an IP address is needed")
        elif allocations.owner_of(text) not in (None, owner):
            yield _bad(where, address, "failed to allocate IP: provided IP is already allocated")
        elif spec["type"] == "ExternalName":
            yield _bad(where, address, "may not be set for ExternalName services")


def _slice(obj: JSON) -> Iterator[Cause]:
    kind = obj.get("addressType", "")
    yield from _one_of("addressType", kind, (*_FAMILIES, "FQDN"))
    endpoints = obj.get("endpoints") or ()
    if len(endpoints) > _MAX_ENDPOINTS:
        yield _bad("endpoints", len(endpoints), f"must have at most {_MAX_ENDPOINTS} items")
    for at, endpoint in enumerate(endpoints):
        if not 0 < len(endpoint["addresses"]) <= 100:
            yield _bad(f"endpoints[{at}].addresses", endpoint["addresses"], "1 to 100 are needed")
        for address in endpoint["addresses"]:
            if kind in _FAMILIES and not _is_address(_FAMILIES[kind], address):
                yield _bad(f"endpoints[{at}].addresses", address, f"an {kind} address is needed")
    names = [port["name"] for port in obj.get("ports") or ()]
    for at, port in enumerate(obj.get("ports") or ()):
        yield from _one_of(f"ports[{at}].protocol", port["protocol"], _PROTOCOLS)
        if port.get("port") is not None:
            yield from _port_number(f"ports[{at}].port", port["port"])
        if names.count(port["name"]) > 1:
            yield Cause(f"ports[{at}].name", "FieldValueDuplicate", f'Duplicate value: "{port["name"]}"')


def _port_number(where: str, number: Any) -> Iterator[Cause]:
    if not isinstance(number, int) or not 0 < number < 65_536:
        yield _bad(where, number, "must be between 1 and 65535, inclusive")


def _one_of(where: str, value: Any, known: tuple[str, ...]) -> Iterator[Cause]:
    if value not in known:
        listed = ", ".join(f'"{one}"' for one in known)
        yield Cause(where, "FieldValueNotSupported", f"Unsupported value: {value!r}: supported: {listed}")


def _is_address(family: int, text: str) -> bool:
    try:
        socket.inet_pton(family, text)
    except (OSError, ValueError):
        return False
    return True


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return "/" in text


def _bad(where: str, value: Any, why: str) -> Cause:
    return Cause(where, "FieldValueInvalid", f"Invalid value: {value!r}: {why}")
