"""Small factories for the JSON of Services and EndpointSlices, and for the plans made of them.

Objects are built as the API sends them and pass through the decoder, so that tests see what users send.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kproxy.addresses import Family
from kproxy.plan.model import NodeView, PortPlan, ServicePlan
from kproxy.plan.planner import Planner
from kproxy.state.decode import decode
from kproxy.state.kinds import Kind
from kproxy.state.tables import ServiceInput
from kproxy.state.wire import EndpointSlice, Service

Json = dict[str, Any]

NODE = NodeView("node1", "zone-a", {Family.IPV4: "192.168.0.2", Family.IPV6: "fd00:168::2"})
CREATED = "2026-01-01T00:00:00Z"


def port(number: int = 80, name: str | None = "p80", protocol: str = "TCP", **fields: object) -> Json:
    """One of spec.ports."""
    named = {} if name is None else {"name": name}
    return {"port": number, "protocol": protocol, **named, **fields}


def service(
    name: str = "svc1",
    ip: str | Sequence[str] = "10.96.0.1",
    *,
    namespace: str = "ns1",
    ports: Sequence[Json] | None = None,
    created: str | None = CREATED,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    ingress: Iterable[str | Json] = (),
    **spec: object,
) -> Json:
    """A Service; keyword arguments are fields of its spec, `ingress` its load balancer's addresses."""
    ips = [ip] if isinstance(ip, str) else list(ip)
    metadata: Json = {"name": name, "namespace": namespace, "labels": dict(labels or {})}
    if annotations:
        metadata["annotations"] = dict(annotations)
    if created is not None:
        metadata["creationTimestamp"] = created
    addresses = [{"ip": each} if isinstance(each, str) else each for each in ingress]
    return {
        "metadata": metadata,
        "spec": {
            "clusterIP": ips[0],
            "clusterIPs": ips,
            "ports": [port()] if ports is None else list(ports),
            **spec,
        },
        "status": {"loadBalancer": {"ingress": addresses}},
    }


def endpoint(
    ip: str,
    *,
    node: str | None = None,
    zones: Sequence[str] = (),
    nodes: Sequence[str] = (),
    **conditions: bool | None,
) -> Json:
    """One of a slice's endpoints; keyword arguments are its conditions."""
    built: Json = {"addresses": [ip], "conditions": conditions}
    if node is not None:
        built["nodeName"] = node
    if zones or nodes:
        built["hints"] = {
            "forZones": [{"name": z} for z in zones],
            "forNodes": [{"name": n} for n in nodes],
        }
    return built


def endpoint_slice(
    *endpoints: str | Json,
    service: str | None = "svc1",
    name: str | None = None,
    namespace: str = "ns1",
    ports: Sequence[Json] | None = None,
    labels: Mapping[str, str] | None = None,
    address_type: str | None = None,
) -> Json:
    """An EndpointSlice; a bare address becomes a ready endpoint on no particular node.

    A port without a name gets "", as from the API server.
    """
    built = [endpoint(e) if isinstance(e, str) else e for e in endpoints]
    if address_type is None:
        address_type = "IPv6" if built and ":" in built[0]["addresses"][0] else "IPv4"
    owner = {} if service is None else {"kubernetes.io/service-name": service}
    return {
        "metadata": {
            "name": name or f"{service}-1",
            "namespace": namespace,
            "labels": {**owner, **(labels or {})},
        },
        "addressType": address_type,
        "endpoints": built,
        "ports": [port()] if ports is None else [{"name": "", **each} for each in ports],
    }


def raw(document: object) -> bytes:
    """The document as the API sends it."""
    return json.dumps(document).encode()


def as_service(document: Json) -> Service:
    """The decoded Service."""
    decoded = decode(Kind.SERVICE, raw(document))
    assert isinstance(decoded, Service)
    return decoded


def as_slice(document: Json) -> EndpointSlice:
    """The decoded EndpointSlice."""
    decoded = decode(Kind.ENDPOINT_SLICE, raw(document))
    assert isinstance(decoded, EndpointSlice)
    return decoded


def given(document: Json, *slices: Json) -> ServiceInput:
    """What the tables would hold of a service and its slices."""
    decoded = as_service(document)
    return ServiceInput(decoded.key, 1, decoded, tuple(as_slice(s) for s in slices))


def plan_of(
    document: Json, *slices: Json, family: Family = Family.IPV4, node: NodeView = NODE
) -> ServicePlan:
    """The plan of a service that is alone in its cluster."""
    return plans_of([given(document, *slices)], family, node)[0]


def port_of(document: Json, *slices: Json, family: Family = Family.IPV4, node: NodeView = NODE) -> PortPlan:
    """The plan of the only port of a service without problems."""
    plan = plan_of(document, *slices, family=family, node=node)
    assert plan.problems == ()
    (only,) = plan.ports
    return only


def plans_of(
    inputs: Iterable[ServiceInput], family: Family = Family.IPV4, node: NodeView = NODE
) -> list[ServicePlan]:
    """The settled plans of a cluster, by service key."""
    plans = Planner(family).update(inputs, node)
    return [plans[key] for key in sorted(plans)]
