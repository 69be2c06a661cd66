"""Random Services, endpoints and packets, and a node that is programmed with them."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kproxy.addresses import Family
from kproxy.plan.model import PortPlan, Protocol, ServicePlan
from kproxy.state.decode import decode
from kproxy.state.kinds import Kind
from kproxy.state.tables import ServiceInput
from kproxy.state.wire import EndpointSlice, Service
from kproxy_lab.lab.topology import NODE
from tests.explain.policies import PolicyObjects, some
from tests.peer.objects import JSON, OTHER_TARGET, SPEC, TARGET, Ep, address, served, slices, vips
from tests.peer.objects import port as service_port
from tests.peer.objects import service as service_json

PLACES = ("local-0", "local-1", "local-2", "remote-0", "remote-1", "remote-2")
NODE_IPS = {Family.IPV4: "192.168.100.10", Family.IPV6: "fd00:192:168:100::10"}
CLIENT_RANGES = [
    ["192.0.2.0/28", "2001:db8:1::/124"],
    ["10.244.0.0/16", "fd00:10:244::/56"],
    ["192.0.2.13/32"],
]
NUMBERS = {Family.IPV4: 4, Family.IPV6: 6}


@dataclass
class World:
    """The objects of a cluster, as the sources decode them."""

    inputs: list[ServiceInput] = field(default_factory=list)
    policies: PolicyObjects = field(default_factory=dict)
    """Pods, Namespaces and NetworkPolicies, by kind and key."""

    @staticmethod
    def random(rng: random.Random, services: int) -> "World":
        """Some services of all kinds, with endpoints of all conditions, and some policies."""
        return World([_input(rng, number) for number in range(services)], some(rng))


def _input(rng: random.Random, number: int) -> ServiceInput:
    name = f"s{number}"
    service = _service(rng, name, number)
    return given(service, _slices(rng, name, service))


def given(service: JSON, parts: list[JSON]) -> ServiceInput:
    """A service and its slices, decoded as the sources do."""
    decoded = decode(Kind.SERVICE, json.dumps(service).encode())
    assert isinstance(decoded, Service)
    found = []
    for part in parts:
        each = decode(Kind.ENDPOINT_SLICE, json.dumps(part).encode())
        assert isinstance(each, EndpointSlice)
        found.append(each)
    return ServiceInput(decoded.key, 1, decoded, tuple(found))


def _service(rng: random.Random, name: str, number: int) -> JSON:
    kind = rng.choice(["ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer"])
    node_ports = kind != "ClusterIP"
    ports = [service_port(80, "web", **_node_port(rng, 30100 + number, node_ports))]
    if rng.random() < 0.5:
        ports.append(service_port(53, "dns", "UDP", **_node_port(rng, 30200 + number, node_ports)))
    if rng.random() < 0.3:
        ports.append(service_port(99, "sig", "SCTP", **_node_port(rng, 30300 + number, node_ports)))
    ips = [f"10.96.1.{number + 1}", f"fd00:10:96::1{number:02x}"]
    spec: dict[str, Any] = {"type": kind, "clusterIP": ips[0], "clusterIPs": ips}
    ingress: list[JSON] = []
    if rng.random() < 0.3:
        spec["externalIPs"] = vips(number + 20)
    if kind == "LoadBalancer":
        ingress = [{"ip": ip} for ip in vips(number + 60)]
        if rng.random() < 0.4:
            spec["loadBalancerSourceRanges"] = rng.choice(CLIENT_RANGES)
    if node_ports or spec.get("externalIPs"):
        spec["externalTrafficPolicy"] = rng.choice(["Cluster", "Local"])
    spec["internalTrafficPolicy"] = rng.choice(["Cluster", "Cluster", "Local"])
    if rng.random() < 0.25:
        spec["sessionAffinity"] = "ClientIP"
    made = service_json(name, *ports, ingress=ingress, created="2026-01-01T00:00:00Z", **spec)
    weights = rng.choice(
        [None, None, None, {"node:node-a": 3, "*": 1}, {"pod:local-0": 0, "*": 2}, {"node:node-b": 5}]
    )
    if weights is not None:
        made["metadata"]["annotations"] = {"kproxy.io/weights": json.dumps(weights)}
    return made


def _node_port(rng: random.Random, number: int, wanted: bool) -> dict[str, Any]:
    return {"nodePort": number} if wanted and rng.random() < 0.9 else {}


def _slices(rng: random.Random, name: str, service: JSON) -> list[JSON]:
    places = rng.sample(PLACES, rng.choice([0, 1, 2, 3, 4, 6]))
    hinted = rng.random() < 0.3
    endpoints = []
    for place in places:
        condition: dict[str, Any] = rng.choice(
            [{}, {}, {}, {}, {"ready": False}, {"ready": False, "serving": True, "terminating": True}]
        )
        zones = (rng.choice(["zone-a", "zone-b"]),) if hinted else ()
        endpoints.append(Ep(place, zones=zones, **condition))
    target = rng.choice([TARGET, OTHER_TARGET])
    ports = [served(target, each["name"], each["protocol"]) for each in service["spec"]["ports"]]
    made = slices(name, *endpoints, ports=ports)
    for each in made:
        for endpoint, place in zip(each["endpoints"], places, strict=True):
            endpoint["targetRef"] = {"kind": "Pod", "namespace": "default", "name": place}
    return made


@dataclass(frozen=True)
class Probe:
    """A packet to send: the name of its source, its address, and where it goes.

    `sticky` names the service port whose affinity it may change.
    """

    source: str
    address: str
    protocol: Protocol
    destination: str
    port: int
    sticky: str = ""


def sources(family: Family) -> dict[str, str]:
    """Addresses by the names of senders."""
    at = NUMBERS[family]
    found = {place: address(place, at) for place in PLACES}  # type: ignore[arg-type]
    clients = SPEC.client_ip4 if family is Family.IPV4 else SPEC.client_ip6
    found |= {"client": clients[0], "client/3": clients[3], "client/20": clients[20]}
    own = {"node": NODE_IPS[family], "node/pods": NODE.gateways[at == 6], "node/own": NODE_IPS[family]}
    return found | own


def probes(rng: random.Random, plans: list[ServicePlan], family: Family, count: int) -> list[Probe]:
    """Packets to frontends of services, and some beside them; few of a service with affinity at once."""
    senders = list(sources(family).items())
    frontends = [
        (port, ip, number) for plan in plans for port in plan.ports for ip, number in _frontends(port, family)
    ]
    found: list[Probe] = []
    stuck: set[tuple[str, str]] = set()
    while len(found) < count:
        name, source = rng.choice(senders)
        port, ip, number = rng.choice(frontends)
        protocol = port.protocol
        if rng.random() < 0.12:
            ip, number, protocol = rng.choice(
                [
                    (ip, number + 1, protocol),
                    (ip, number, rng.choice(list(Protocol))),
                    (_neighbour(rng, name, family), 8080, protocol),
                    (NODE_IPS[family], 7777, protocol),
                    (vips(200)[family is Family.IPV6], 80, protocol),
                ]
            )
        sticky = port.name if port.affinity_seconds is not None else ""
        if sticky:
            if (source, sticky) in stuck:
                continue
            stuck.add((source, sticky))
        found.append(Probe(name, source, protocol, ip, number, sticky))
    return found


def _neighbour(rng: random.Random, sender: str, family: Family) -> str:
    """The address of a pod that a sender reaches through the node."""
    near = sender.startswith(("local", "node"))
    places = [place for place in PLACES if place != sender and (near or place.startswith("local"))]
    return address(rng.choice(places), NUMBERS[family])  # type: ignore[arg-type]


def _frontends(port: PortPlan, family: Family) -> Iterator[tuple[str, int]]:
    yield port.cluster_ip, port.port
    for ip in (*port.external_ips, *port.load_balancer_ips):
        yield ip, port.port
    if port.node_port:
        yield NODE_IPS[family], port.node_port
        yield NODE.gateways[family is Family.IPV6], port.node_port
