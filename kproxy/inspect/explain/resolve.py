"""Turn a question into a packet: the address of a pod or Service, and where the packet comes from."""

from collections.abc import Iterator

import msgspec

from kproxy.addresses import Family, cidr_contains, parse_cidr, parse_ip
from kproxy.inspect.explain.cluster import Cluster
from kproxy.inspect.explain.question import (
    NODE,
    OUTSIDE,
    AddressPort,
    PodName,
    Question,
    QuestionError,
    ServicePort,
    read_destination,
    read_source,
)
from kproxy.node.facts import pod_cidrs
from kproxy.plan.exclusions import is_pod
from kproxy.plan.model import Protocol
from kproxy.plan.outcomes import Packet, Where
from kproxy.state.compact_endpoints import columns_of, mentions
from kproxy.state.wire import Service

SOMEWHERE = {Family.IPV4: "192.0.2.1", Family.IPV6: "2001:db8::1"}
"""Addresses for "outside", which no host has (RFC 5737, RFC 3849)."""


class Resolved(msgspec.Struct, frozen=True):
    """The packet, the Service that was named (None: an address was), and what to say about the source."""

    packet: Packet
    service: str | None = None
    notes: tuple[str, ...] = ()


class _Source(msgspec.Struct, frozen=True):
    where: Where
    addresses: dict[Family, str] = {}
    notes: tuple[str, ...] = ()


def resolve(question: Question, cluster: Cluster) -> Resolved:
    """The packet that a question is about. Raises QuestionError."""
    asked = read_source(question.source)
    source = _source(asked, cluster)
    target = read_destination(question.destination)
    known = tuple(source.addresses) or tuple(Family)
    if isinstance(target, ServicePort):
        ip, port = _of_service(target, question.protocol, known, cluster)
    else:
        ip, port = target.ip, _port_at(target, question.protocol, cluster)
    family = Family.IPV6 if ":" in ip else Family.IPV4
    if family not in known:
        raise QuestionError(f"{question.source} has no {family} address, and {ip} is one")
    address = source.addresses.get(family) or _usual_source(source.where, ip, family, cluster)
    packet = Packet(
        address,
        question.protocol,
        ip,
        port,
        source.where,
        None if source.where is Where.NODE else _interface(address, cluster),
    )
    notes = source.notes
    if asked == OUTSIDE:
        notes = (*notes, f"outside stands for {address}: give the client's address if source ranges matter")
    return Resolved(packet, target.key if isinstance(target, ServicePort) else None, notes)


def _source(asked: PodName | str, cluster: Cluster) -> _Source:
    if isinstance(asked, PodName):
        return _pod(asked, cluster)
    if asked == NODE:
        return _Source(Where.NODE)
    if asked == OUTSIDE:
        return _Source(Where.OUTSIDE)
    family = Family.IPV6 if ":" in asked else Family.IPV4
    return _Source(_where(asked, cluster), {family: asked})


def _usual_source(where: Where, destination: str, family: Family, cluster: Cluster) -> str:
    """The address that the kernel chooses for the node's own packets, or any one outside."""
    if where is not Where.NODE:
        return SOMEWHERE[family]
    route = cluster.routing.route(destination)
    if route is not None and route.source:
        return route.source
    return cluster.facts.view.addresses[family]


def _pod(asked: PodName, cluster: Cluster) -> _Source:
    """The addresses of a pod, from the EndpointSlices that name it. Raises QuestionError."""
    name = f"{asked.namespace}/{asked.name}"
    found: dict[Family, str] = {}
    nodes: set[str] = set()
    for piece in cluster.slices():
        endpoints = piece.endpoints or ()
        if piece.metadata.namespace != asked.namespace or not mentions(endpoints, asked.name):
            continue
        for address, endpoint, pod in columns_of(endpoints):
            if pod != asked.name or not is_pod(endpoint):
                continue
            try:
                family, ip = parse_ip(address)
            except ValueError:
                continue
            found.setdefault(family, ip)
            nodes.add(endpoint.node_name or "")
    if not found:
        return _watched_pod(name, cluster)
    here = cluster.facts.view.name
    if nodes <= {"", here}:
        return _Source(Where.POD, found)
    elsewhere = ", ".join(sorted(nodes - {"", here}))
    note = f"pod {name} is on node {elsewhere}: its packets reach this node from outside"
    return _Source(Where.OUTSIDE, found, (note,))


def _watched_pod(name: str, cluster: Cluster) -> _Source:
    """The addresses of a pod that no EndpointSlice names, where pods are watched. Raises QuestionError."""
    enforced = cluster.policies
    if enforced is None:
        raise QuestionError(
            f"pod {name} is not known: kproxy watches no pods, and no EndpointSlice names it. Give its IP"
        )
    known = enforced.view.policies_of(name)
    if known is None or not known.addresses:
        why = f"has no address of its own: {known.note}" if known is not None else "is not known"
        raise QuestionError(f"pod {name} {why}")
    addresses = {parse_ip(ip)[0]: ip for ip in reversed(known.addresses)}
    if known.local:
        return _Source(Where.POD, addresses)
    return _Source(
        Where.OUTSIDE,
        addresses,
        (f"pod {name} is on another node: its packets reach this node from outside",),
    )


def _where(ip: str, cluster: Cluster) -> Where:
    """Where an address is: on the node, a pod of the node, or outside."""
    if cluster.routing.is_local(ip):
        return Where.NODE
    if any(cidr_contains(cidr, ip) for cidr in _pod_ranges(cluster)):
        return Where.POD
    if _is_watched_pod(ip, cluster):
        return Where.POD
    here = cluster.facts.view.name
    for piece in cluster.slices():
        endpoints = piece.endpoints or ()
        if not mentions(endpoints, ip):
            continue
        for address, endpoint, _ in columns_of(endpoints):
            if address == ip and endpoint.node_name == here:
                return Where.POD
    return Where.OUTSIDE


def _is_watched_pod(ip: str, cluster: Cluster) -> bool:
    """Whether it is the address of a pod of this node, as far as pods are watched."""
    enforced = cluster.policies
    pod = None if enforced is None else enforced.view.pod_at(ip)
    known = None if enforced is None or pod is None else enforced.view.policies_of(pod)
    return known is not None and known.local


def _pod_ranges(cluster: Cluster) -> Iterator[str]:
    for text in pod_cidrs(cluster.node):
        try:
            yield parse_cidr(text)[1]
        except ValueError:
            continue


def _interface(source: str, cluster: Cluster) -> str | None:
    """The interface on which packets from an address arrive: that of the route back to it."""
    route = cluster.routing.route(source)
    return route.interface or None if route is not None and not route.local else None


def _of_service(
    target: ServicePort, protocol: Protocol, families: tuple[Family, ...], cluster: Cluster
) -> tuple[str, int]:
    """The cluster IP and port of a Service. Raises QuestionError."""
    service = cluster.service(target.key).service
    if service is None:
        raise QuestionError(f"Service {target.key} is not known")
    listed = _cluster_ips(service)
    ip = next((ip for family in families for known, ip in listed if known is family), None)
    if len(families) > 1 and listed:
        ip = listed[0][1]
    if ip is None:
        what = f"no cluster IP of {families[0]}" if listed else "no cluster IP: kproxy does not serve it"
        raise QuestionError(f"Service {target.key} has {what}")
    return ip, _service_port(service, target, protocol)


def _cluster_ips(service: Service) -> list[tuple[Family, str]]:
    """The cluster IPs, the primary one first."""
    spec = service.spec
    if spec is None or spec.type == "ExternalName":
        return []
    found = []
    for text in spec.cluster_ips or (spec.cluster_ip or "",):
        try:
            found.append(parse_ip(text))
        except ValueError:
            continue
    return found


def _service_port(service: Service, target: ServicePort, protocol: Protocol) -> int:
    ports = (service.spec.ports if service.spec is not None else None) or ()
    fitting = [each for each in ports if each.protocol == protocol.value]
    wanted = target.port
    chosen = [each for each in fitting if not wanted or wanted in {str(each.port), each.name or ""}]
    if len(chosen) == 1:
        return chosen[0].port
    listed = ", ".join(
        f"{each.port}/{each.protocol}" + (f" ({each.name})" if each.name else "") for each in ports
    )
    if wanted:
        raise QuestionError(
            f"Service {target.key} has no {protocol} port {wanted!r}; it has {listed or 'none'}"
        )
    few = "more than one" if chosen else "no"
    raise QuestionError(f"Service {target.key} has {few} {protocol} port: it has {listed or 'none'}")


def _port_at(target: AddressPort, protocol: Protocol, cluster: Cluster) -> int:
    """The port of an address: the given one, or the only one that a Service has there; 0: none has one.

    Raises QuestionError.
    """
    if target.port is not None:
        return target.port
    family = Family.IPV6 if ":" in target.ip else Family.IPV4
    planner = cluster.planner(family)
    known = [] if planner is None else planner.frontends_at(target.ip)
    ports = [port for _, port, of in known if of == protocol.value]
    if len(ports) > 1:
        raise QuestionError(f"{target.ip} has several {protocol} ports: {', '.join(map(str, ports[:20]))}")
    return ports[0] if ports else 0
