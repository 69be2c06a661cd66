"""Find the service port that has a packet's destination, and what becomes of a destination that none has."""

import msgspec

from kproxy.addresses import cidr_contains, is_loopback
from kproxy.inspect.explain.cluster import Cluster
from kproxy.plan.claims import Frontend
from kproxy.plan.model import PortPlan, Protocol, ServicePlan, Verdict
from kproxy.plan.outcomes import FrontendKind, ModeFacts, Packet, PacketVerdict

KIND_WORDS = {
    FrontendKind.CLUSTER_IP: "cluster IP",
    FrontendKind.NODE_PORT: "node port",
    FrontendKind.LOAD_BALANCER: "load-balancer IP",
    FrontendKind.EXTERNAL_IP: "external IP",
}


class Found(msgspec.Struct, frozen=True):
    """The service port that has a destination, and the kind of the destination."""

    plan: ServicePlan
    port: PortPlan
    kind: FrontendKind


def find(packet: Packet, named: str | None, mode: ModeFacts, cluster: Cluster) -> Found | None:
    """The service port that has the destination; an address of a Service beats a node port.

    `named` is the Service that was asked for; no sync may have taken it yet.
    """
    protocol = packet.protocol.value
    found = _at((packet.destination, packet.port, protocol), packet, mode, cluster, named)
    if found is None and _takes_node_ports(packet.destination, mode, cluster):
        found = _at(("", packet.port, protocol), packet, mode, cluster)
    return found


def without_service(packet: Packet, mode: ModeFacts, cluster: Cluster) -> tuple[PacketVerdict, str]:
    """What becomes of a packet to an address and port that no Service has, and why."""
    planner = cluster.planner(packet.family)
    held = [] if planner is None else planner.frontends_at(packet.destination)
    kinds = {found.kind for each in held if (found := _at(each, packet, mode, cluster)) is not None}
    if packet.destination in cluster.facts.view.outside.local:
        kinds &= {FrontendKind.CLUSTER_IP}  # an address that the node has anyway is not a Service's alone
    for kind in FrontendKind:
        if kind in kinds & mode.refuses_unallocated:
            reason = f"no Service has port {packet.port}/{packet.protocol} of this {KIND_WORDS[kind]}"
            return PacketVerdict.REJECT, reason
    if mode.node_port_refusals_everywhere and cluster.routing.is_local(packet.destination):
        found = _at(("", packet.port, packet.protocol.value), packet, mode, cluster)
        if found is not None and found.port.external is not Verdict.FORWARD:
            drops = found.port.external is Verdict.DROP
            reason = f"a node port of {found.plan.key}, which has no {'local ' if drops else ''}endpoint"
            return PacketVerdict.DROP if drops else PacketVerdict.REJECT, reason
    ranges = cluster.facts.families[packet.family].service_ranges
    if FrontendKind.CLUSTER_IP not in kinds and any(
        cidr_contains(cidr, packet.destination) for cidr in ranges
    ):
        return PacketVerdict.DROP, "an address of the service IP ranges that no Service has"
    return PacketVerdict.UNTOUCHED, "no Service has this address and port"


def _at(
    frontend: Frontend, packet: Packet, mode: ModeFacts, cluster: Cluster, named: str | None = None
) -> Found | None:
    """The service port that has a frontend; `named` has it if it wants it and no other has it."""
    planner = cluster.planner(packet.family)
    key = planner.owner(frontend) or named if planner is not None else None
    if planner is None or key is None:
        return None
    address, number, protocol = frontend
    plan = planner.preview(cluster.service(key), cluster.facts.view)
    for port in plan.ports:
        if port.protocol is not Protocol(protocol):
            continue
        if not address and port.node_port == number:
            return Found(plan, port, FrontendKind.NODE_PORT)
        kind = _kind(port, address, mode)
        if port.port == number and kind is not None:
            return Found(plan, port, kind)
    return None


def _kind(port: PortPlan, ip: str, mode: ModeFacts) -> FrontendKind | None:
    """As what a port has an address. One that is both an external and a load-balancer IP differs by mode."""
    if ip == port.cluster_ip:
        return FrontendKind.CLUSTER_IP
    if ip in port.load_balancer_ips and not (mode.admits_external_ips and ip in port.external_ips):
        return FrontendKind.LOAD_BALANCER
    return FrontendKind.EXTERNAL_IP if ip in port.external_ips else None


def _takes_node_ports(ip: str, mode: ModeFacts, cluster: Cluster) -> bool:
    if is_loopback(ip) and not mode.loopback_node_ports:
        return False
    if mode.node_port_addresses is not None:
        return ip in mode.node_port_addresses
    return cluster.routing.is_local(ip)
