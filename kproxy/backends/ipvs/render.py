"""Render a ServicePlan into kernel objects: virtual servers, set entries, addresses.

Objects are grouped by frontend, the address, protocol and port of a virtual server, because the frontend
decides which service owns an object when two services have the same.
"""

from collections.abc import Iterable, Iterator

import msgspec

from kproxy.backends.ipvs.config import IpvsConfig
from kproxy.backends.ipvs.names import sets
from kproxy.kernel.ipset.types import Entry, SetSpec
from kproxy.kernel.ipvs.types import PERSISTENT, SCHED1, SCHED2, DestinationId, ServerId, VirtualServer
from kproxy.plan.model import EndpointPlan, PortPlan, ServicePlan, Verdict
from kproxy.plan.schedulers import Scheduler
from kproxy.plan.weights import effective

Member = tuple[SetSpec, Entry]
"""An entry in a set."""


class Frontend(msgspec.Struct, frozen=True, gc=False):
    """One address, protocol and port of a service.

    `server` is None where traffic is rejected or dropped, by set entries. `address` is the address that the
    device must hold. A `node_port` frontend loses to another service with the same external address and port.
    """

    server: VirtualServer | None
    destinations: tuple[tuple[DestinationId, int], ...]
    entries: tuple[Member, ...]
    address: str | None = None
    node_port: bool = False


class ServiceObjects(msgspec.Struct, frozen=True, gc=False):
    """All objects of one service: its frontends, and the set entries of its endpoints."""

    frontends: dict[ServerId, Frontend] = {}
    entries: tuple[Member, ...] = ()


NOTHING = ServiceObjects()


def render_service(plan: ServicePlan, config: IpvsConfig) -> ServiceObjects:
    """Render one service."""
    frontends: dict[ServerId, Frontend] = {}
    entries: dict[Member, None] = {}
    for port in plan.ports:
        for server, frontend in _frontends(port, config):
            frontends.setdefault(server, frontend)
        entries |= dict.fromkeys(_loop_backs(port, config))
    return ServiceObjects(frontends, tuple(entries))


def server_settings(scheduler: Scheduler, affinity_seconds: int | None) -> VirtualServer:
    """Return the settings of a virtual server; IPVS calls session affinity persistence."""
    flags = SCHED1 * scheduler.fallback | SCHED2 * scheduler.hash_port
    if affinity_seconds is None:
        return VirtualServer(scheduler.name, flags)
    return VirtualServer(scheduler.name, flags | PERSISTENT, affinity_seconds)


def _frontends(port: PortPlan, config: IpvsConfig) -> Iterator[tuple[ServerId, Frontend]]:
    known = sets(config.family)
    protocol = port.protocol.value
    settings = server_settings(port.scheduler or config.scheduler, port.affinity_seconds)
    inside = _destinations(port.local if port.internal_local else port.cluster)
    outside = (
        inside
        if port.internal_local == port.external_local
        else (_destinations(port.local if port.external_local else port.cluster))
    )

    def frontend(
        ip: str, number: int, *, bound: bool, external: bool = True, more: Iterable[Member] = ()
    ) -> tuple[ServerId, Frontend]:
        verdict = port.external if external else port.internal
        entry = Entry(ip, protocol, number)
        owning_set = (
            (known.external_local if port.external_local else known.external)
            if external
            else known.cluster_ip
        )
        entries = [(owning_set, entry), *more]
        if verdict is not Verdict.FORWARD:
            refusal = known.no_endpoints if verdict is Verdict.REJECT else known.no_local_endpoints
            entries.append((refusal, entry))
        if bound:
            entries.append((known.addresses, Entry(ip)))
        forward = verdict is Verdict.FORWARD
        return ServerId(protocol, ip, number), Frontend(
            settings if forward else None,
            (outside if external else inside) if forward else (),
            tuple(entries),
            ip if bound else None,
            number == port.node_port and external and not bound,
        )

    yield frontend(port.cluster_ip, port.port, bound=True, external=False)
    for ip in dict.fromkeys((*port.external_ips, *port.load_balancer_ips)):
        more = _source_ranges(port, ip, config) if ip in port.load_balancer_ips else ()
        yield frontend(ip, port.port, bound=ip not in config.local_addresses, more=more)
    if port.node_port:
        for ip in config.node_addresses:
            yield frontend(ip, port.node_port, bound=False)


def _destinations(endpoints: tuple[EndpointPlan, ...]) -> tuple[tuple[DestinationId, int], ...]:
    return tuple(
        (DestinationId(endpoint.ip, endpoint.port), weight)
        for endpoint, weight in zip(endpoints, effective(endpoints), strict=True)
    )


def _source_ranges(port: PortPlan, ip: str, config: IpvsConfig) -> Iterator[Member]:
    """The entries for the allowed sources of a load-balancer address; none without endpoints.

    The node's own packets to an address of its device have the same address as source.
    """
    if port.source_ranges is None or not port.has_endpoints:
        return
    known, protocol = sets(config.family), port.protocol.value
    yield known.restricted, Entry(ip, protocol, port.port)
    for cidr in port.source_ranges:
        yield known.source_cidr, Entry(ip, protocol, port.port, cidr)
    if port.node_in_source_ranges:
        for own in port.load_balancer_ips:
            yield known.source_ip, Entry(ip, protocol, port.port, own)


def _loop_backs(port: PortPlan, config: IpvsConfig) -> Iterator[Member]:
    """The entries for hairpin masquerade: without it, a pod would answer itself directly."""
    known, protocol = sets(config.family), port.protocol.value
    for endpoint in port.reachable:
        if endpoint.may_be_here:
            yield known.loop_back, Entry(endpoint.ip, protocol, endpoint.port, endpoint.ip)
