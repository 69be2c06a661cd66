"""Render a ServicePlan into the elements and chains of the table. Pure."""

import hashlib
import ipaddress
import socket
import sys
from collections.abc import Iterator, Sequence

import msgspec

from kproxy.backends.core.hashes import digest, port_hash
from kproxy.backends.core.shares import slots, slots_of_port
from kproxy.backends.nftables import chains, names
from kproxy.backends.nftables.affinity import Target, remembered_as, sticky
from kproxy.backends.nftables.chains import Chain, OwnList
from kproxy.backends.nftables.config import NftablesConfig
from kproxy.backends.nftables.runs import MOST_NUMBERS, Run, elements_of, run_of_values
from kproxy.backends.nftables.shares import in_order, scattered
from kproxy.plan.model import PortPlan, ServicePlan, Verdict
from kproxy.plan.weights import effective

SHARED_SLOTS = MOST_NUMBERS
"""Greatest length of a list of endpoints without chains of its own; it bounds the number of numbered maps."""

SHARED_COPIES = 64
"""Greatest number of elements that repeat a list of endpoints for further frontends of its port.

A list of its own takes about as much time to write: a chain or two with two rules each.
"""


class Element(msgspec.Struct, frozen=True, gc=False):
    """An element of a map, or with value "" of a set; or all elements of one frontend in a numbered map.

    For these the key is the frontend, and the value the run of their values.
    `late`: another service's element of the same key wins, as external addresses do over node ports.
    """

    container: str
    key: str
    value: str = ""
    late: bool = False


class ServiceObjects(msgspec.Struct, frozen=True, gc=False):
    """All objects of one service: its entries in maps and sets, and the chains that they need, by name.

    `entries`: those of one frontend in a numbered map are one.
    """

    entries: tuple[Element, ...] = ()
    chains: dict[str, Chain] = {}

    @property
    def elements(self) -> tuple[Element, ...]:
        """All elements one by one."""
        found: list[Element] = []
        for each in self.entries:
            if names.is_numbered(each.container):
                one_by_one = elements_of(each.key, each.value)
                found += [Element(each.container, key, value, each.late) for key, value in one_by_one]
            else:
                found.append(each)
        return tuple(found)


NOTHING = ServiceObjects()


def render_service(plan: ServicePlan, config: NftablesConfig) -> ServiceObjects:
    """Render one service."""
    entries: dict[tuple[str, str], Element] = {}
    needed: dict[str, Chain] = {}
    for port in plan.ports:
        for entry in _PortRenderer(port, plan, config, needed).entries():
            entries.setdefault((entry.container, entry.key), entry)
    restricted = [port for port in plan.ports if _is_restricted(port)]
    if restricted:
        of_service = digest(plan.key)
        name, rules = chains.firewall(config.family, of_service)
        needed[name] = rules
        container = names.ranges(of_service)
        for source in _sources(restricted):
            entries[container, source] = Element(container, source)
    return ServiceObjects(tuple(entries.values()), needed)


def _is_restricted(port: PortPlan) -> bool:
    """Whether source ranges restrict the load-balancer addresses of a port."""
    return port.source_ranges is not None and port.has_endpoints and bool(port.load_balancer_ips)


def _sources(ports: Sequence[PortPlan]) -> Iterator[str]:
    """The sources that are allowed at a service's load-balancer addresses; they do not overlap.

    The node's own packets may have such an address as source.
    """
    texts = {cidr for port in ports for cidr in port.source_ranges or ()}
    texts |= {ip for port in ports if port.node_in_source_ranges for ip in port.load_balancer_ips}
    for network in ipaddress.collapse_addresses(map(ipaddress.ip_network, texts)):  # type: ignore[type-var]
        ip = canonical(str(network.network_address))
        host = network.prefixlen == network.max_prefixlen
        yield ip if host else f"{ip}/{network.prefixlen}"


def canonical(ip: str) -> str:
    """Return an address as nft lists it: the C library prints the lowest IPv6 addresses with dots."""
    if ip.startswith("::"):
        return socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, ip))
    return ip


class _PortRenderer:
    """Renders one port of a service; chains that it needs are added to `needed`."""

    def __init__(
        self, port: PortPlan, plan: ServicePlan, config: NftablesConfig, needed: dict[str, Chain]
    ) -> None:
        self.port = port
        self._plan = plan
        self.config = config
        self.number = names.PROTOCOL_NUMBERS[port.protocol]
        self._needed = needed
        self._restricted = _is_restricted(port)
        self._part = names.shard(port.name, port.protocol.value)
        self._lists: dict[bool, _List] = {}

    def entries(self) -> Iterator[Element]:
        """All elements of the port; of two with the same key, the first counts."""
        port = self.port
        yield Element(names.CLUSTER_IPS, canonical(port.cluster_ip))
        yield from self._cluster_ip()
        for ip in port.external_ips:
            if ip not in port.load_balancer_ips:
                yield from self._external(self._frontend(ip, port.port))
        for ip in port.load_balancer_ips:
            yield from self._external(self._frontend(ip, port.port), restricted=self._restricted)
        if port.node_port:
            for ip in self.config.node_addresses:
                yield from self._external(self._frontend(ip, port.node_port), late=True)
        for endpoint in port.reachable:
            if endpoint.may_be_here:
                ip = canonical(endpoint.ip)
                yield Element(names.HAIRPIN, f"{ip} . {ip} . {self.number} . {endpoint.port}")
        for listed in {each.own: each for each in self._lists.values()}.values():
            if listed.own is not None:
                container = names.slots(listed.own.part)
                for slot, target in enumerate(listed.targets):
                    yield Element(container, listed.own.key(slot), target)

    def _frontend(self, ip: str, port: int) -> str:
        return f"{canonical(ip)} . {self.number} . {port}"

    def _need(self, chain: tuple[str, Chain]) -> str:
        self._needed[chain[0]] = chain[1]
        return chain[0]

    def _cluster_ip(self) -> Iterator[Element]:
        port = self.port
        frontend = self._frontend(port.cluster_ip, port.port)
        if port.internal is not Verdict.FORWARD:
            yield self._refusal(frontend, port.internal)
            return
        target = self._spread(local=port.internal_local)
        chain = self._need(chains.internal(self.config, target))
        yield from self._leading(
            frontend, chain, restricted=self._restricted and port.cluster_ip in port.load_balancer_ips
        )
        yield from self._endpoints(frontend, local=port.internal_local)

    def _external(self, frontend: str, *, restricted: bool = False, late: bool = False) -> Iterator[Element]:
        port = self.port
        if port.has_endpoints:
            everywhere = self._spread(local=False)
            yield from self._endpoints(frontend, local=False, late=late)
            if port.external_local:
                here = ""
                if port.local:
                    here = self._spread(local=True, apart=True)
                    yield from self._endpoints(frontend, local=True, apart=True, late=late)
                chain = self._need(chains.external_local(self.config, everywhere, here))
            else:
                chain = self._need(chains.external(self.config, everywhere))
            yield from self._leading(frontend, chain, restricted=restricted, late=late)
        if port.external is not Verdict.FORWARD:
            yield self._refusal(frontend, port.external, late=late)

    def _leading(
        self, frontend: str, chain: str, *, restricted: bool, late: bool = False
    ) -> Iterator[Element]:
        """The elements that lead all packets to a chain, or if `restricted`, those of admitted sources."""
        if restricted:
            yield Element(names.SERVICES, frontend, f"goto firewall-{digest(self._plan.key)}")
            yield Element(names.ADMITTED, frontend, sys.intern(f"goto {chain}"))
        else:
            yield Element(names.SERVICES, frontend, sys.intern(f"goto {chain}"), late)

    def _refusal(self, frontend: str, verdict: Verdict, *, late: bool = False) -> Element:
        value = "drop" if verdict is Verdict.DROP else f"goto {chains.REFUSE}"
        return Element(names.REFUSALS, frontend, value, late)

    def _spread(self, *, local: bool, apart: bool = False) -> str:
        """Return the chain that picks an endpoint; `apart`: the local one of a frontend's two lists."""
        port = self.port
        if port.affinity_seconds is not None:
            return self._sticky(local=local)
        listed = self._list(local=local)
        if listed.own is None:
            return self._need(chains.pick(self.config.family, len(listed.targets), self._part, local=apart))
        name = f"{'here' if local else 'all'}-{port_hash(port.name, port.protocol.value.lower())}"
        if name not in self._needed:
            first = [True] * (local and port.external_local) + [False] * (not local or port.internal_local)
            self._needed[name] = chains.own(self.config.family, self.number, listed.own, first)
        return name

    def _list(self, *, local: bool) -> "_List":
        found = self._lists.get(local)
        if found is None:
            found = self._lists[local] = self._new_list(local=local)
        return found

    def _new_list(self, *, local: bool) -> "_List":
        port = self.port
        endpoints = port.local if local else port.cluster
        texts = [f"{canonical(endpoint.ip)} . {endpoint.port}" for endpoint in endpoints]
        counts = slots(effective(endpoints), slots_of_port(len(self._plan.ports)))
        targets = in_order(texts, counts)
        copies = (self._frontends(local=local) - 1) * (len(targets) - 1)
        if len(targets) <= SHARED_SLOTS and copies <= SHARED_COPIES:
            return _List(targets, targets[0], None, run_of_values(["", *targets[1:]]))
        if local and port.local == port.cluster:
            other = self._lists.get(False)
            if other is not None and other.own is not None:
                return other
        kind = "here" if local else "all"
        hashed = hashlib.sha256(f"{port.name} {port.protocol} {kind}".encode()).digest()
        numbers = (int.from_bytes(hashed[:4], "big") >> 1, int.from_bytes(hashed[4:8], "big") >> 1)
        own = OwnList(numbers, len(targets), names.slot_shard(port.name, port.protocol.value))
        return _List(scattered(texts, counts), targets[0], own)

    def _frontends(self, *, local: bool) -> int:
        """The number of frontends that lead to one of the port's two lists."""
        port = self.port
        outside = len({*port.external_ips, *port.load_balancer_ips})
        if port.node_port:
            outside += len(self.config.node_addresses)
        inside = local == port.internal_local and port.internal is Verdict.FORWARD
        return inside + (outside if not local or port.external_local else 0)

    def _sticky(self, *, local: bool) -> str:
        port = self.port
        endpoints = port.local if local else port.cluster
        hashed = port_hash(port.name, port.protocol.value.lower())
        name = f"{'here' if local else 'all'}-{hashed}"
        if name not in self._needed:
            targets = [
                Target(canonical(e.ip), e.port, weight, remembered_as(port, self._plan.created, e))
                for e, weight in zip(endpoints, effective(endpoints), strict=True)
                if weight
            ]
            idle = [remembered_as(port, self._plan.created, endpoint) for endpoint in port.idle]
            self._needed[name] = sticky(
                self.config.family, hashed, self.number, targets, port.affinity_seconds or 0, idle
            )
        return name

    def _endpoints(
        self, frontend: str, *, local: bool, apart: bool = False, late: bool = False
    ) -> Iterator[Element]:
        """The elements of a frontend for its endpoints; those of lists of their own are not repeated."""
        if self.port.affinity_seconds is not None:
            return
        listed = self._list(local=local)
        first = names.LOCAL_ENDPOINT_0 if apart else names.ENDPOINT_0
        yield Element(first, frontend, listed.first, late)
        if listed.run:
            container = names.numbered(len(listed.targets), self._part, local=apart)
            yield Element(container, frontend, listed.run, late)


class _List(msgspec.Struct, frozen=True):
    """A list of endpoints: the target of each slot, the first of them by name, and its numbers, if any.

    `run`: the elements of each frontend in a numbered map, if the list has no chain of its own.
    """

    targets: Sequence[str]
    first: str
    own: OwnList | None
    run: Run = ""
