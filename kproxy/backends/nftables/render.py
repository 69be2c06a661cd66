"""Render a ServicePlan into the elements and chains of the table. Pure."""

import hashlib
import ipaddress
import math
import socket
from collections.abc import Iterator, Sequence

import msgspec

from kproxy.backends.core.hashes import port_hash
from kproxy.backends.nftables import chains, names
from kproxy.backends.nftables.chains import Chain, Target
from kproxy.backends.nftables.config import NftablesConfig
from kproxy.plan.model import EndpointPlan, PortPlan, ServicePlan, Verdict
from kproxy.plan.weights import effective

MAX_SLOTS = 1024
"""Greatest number of elements for the weighted endpoints of one frontend; shares are rounded to fit."""


class Element(msgspec.Struct, frozen=True, gc=False):
    """An element of a map, or with value "" of a set.

    `late`: another service's element of the same key wins, as external addresses do over node ports.
    """

    container: str
    key: str
    value: str = ""
    late: bool = False


class ServiceObjects(msgspec.Struct, frozen=True, gc=False):
    """All objects of one service: its elements, and the chains that they need, by name."""

    elements: tuple[Element, ...] = ()
    chains: dict[str, Chain] = {}


NOTHING = ServiceObjects()


def render_service(plan: ServicePlan, config: NftablesConfig) -> ServiceObjects:
    """Render one service."""
    elements: dict[tuple[str, str], Element] = {}
    needed: dict[str, Chain] = {}
    for port in plan.ports:
        for element in _PortRenderer(port, plan.created, config, needed).elements():
            elements.setdefault((element.container, element.key), element)
    return ServiceObjects(tuple(elements.values()), needed)


def slots(weights: Sequence[int]) -> list[int]:
    """Return how many of the numbers 0..N-1 each endpoint gets, in proportion to the weights.

    Exact up to MAX_SLOTS numbers; else rounded, but each endpoint of positive weight gets at least one.
    """
    divisor = math.gcd(*weights) or 1
    counts = [weight // divisor for weight in weights]
    total = sum(counts)
    most = max(MAX_SLOTS, len(counts))
    if total <= most:
        return counts
    return [max(1, round(count * most / total)) if count else 0 for count in counts]


def canonical(ip: str) -> str:
    """Return an address as nft lists it: the C library prints the lowest IPv6 addresses with dots."""
    if ip.startswith("::"):
        return socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, ip))
    return ip


class _PortRenderer:
    """Renders one service port; chains that it needs are added to `needed`.

    `created` distinguishes its service from an earlier one of the same name.
    """

    def __init__(
        self, port: PortPlan, created: str, config: NftablesConfig, needed: dict[str, Chain]
    ) -> None:
        self.port = port
        self._created = created
        self.config = config
        self.number = names.PROTOCOL_NUMBERS[port.protocol]
        self._needed = needed

    def elements(self) -> Iterator[Element]:
        """All elements of the port; of two with the same key, the first counts."""
        port = self.port
        yield Element(names.CLUSTER_IPS, canonical(port.cluster_ip))
        yield from self._cluster_ip()
        for ip in port.external_ips:
            if ip not in port.load_balancer_ips:
                yield from self._external(self._frontend(ip, port.port))
        for ip in port.load_balancer_ips:
            yield from self._external(self._frontend(ip, port.port), restricted=self._restricted)
            if self._restricted:
                yield from self._admissions(self._frontend(ip, port.port))
        if port.node_port:
            for ip in self.config.node_addresses:
                yield from self._external(self._frontend(ip, port.node_port), late=True)
        for endpoint in port.reachable:
            if endpoint.may_be_here:
                ip = canonical(endpoint.ip)
                yield Element(names.HAIRPIN, f"{ip} . {ip} . {self.number} . {endpoint.port}")

    @property
    def _restricted(self) -> bool:
        """Whether source ranges restrict the load-balancer addresses."""
        return self.port.source_ranges is not None and self.port.has_endpoints

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
        endpoints = port.local if port.internal_local else port.cluster
        target = self._spread(endpoints, policy_local=port.internal_local)
        chain = self._need(chains.internal(self.config, target))
        yield from self._leading(
            frontend, chain, restricted=self._restricted and port.cluster_ip in port.load_balancer_ips
        )
        yield from self._numbered(frontend, endpoints)

    def _external(self, frontend: str, *, restricted: bool = False, late: bool = False) -> Iterator[Element]:
        port = self.port
        if port.has_endpoints:
            everywhere = self._spread(port.cluster, policy_local=False)
            yield from self._numbered(frontend, port.cluster, late=late)
            if port.external_local:
                here = ""
                if port.local:
                    here = self._spread(port.local, policy_local=True, apart=True)
                    yield from self._numbered(frontend, port.local, apart=True, late=late)
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
            yield Element(names.SERVICES, frontend, f"goto {chains.FIREWALL}")
            yield Element(names.ADMITTED, frontend, f"goto {chain}")
        else:
            yield Element(names.SERVICES, frontend, f"goto {chain}", late)

    def _refusal(self, frontend: str, verdict: Verdict, *, late: bool = False) -> Element:
        value = "drop" if verdict is Verdict.DROP else f"goto {chains.REFUSE}"
        return Element(names.REFUSALS, frontend, value, late)

    def _spread(self, endpoints: Sequence[EndpointPlan], *, policy_local: bool, apart: bool = False) -> str:
        """Return the chain that picks one of these; `apart`: the local one of a frontend's two lists."""
        port = self.port
        if port.affinity_seconds is None:
            count = sum(slots(effective(endpoints)))
            return self._need(chains.pick(self.config.family, count, local=apart))
        digest = port_hash(port.name, port.protocol.value.lower())
        name = f"{'here' if policy_local else 'all'}-{digest}"
        if name not in self._needed:
            targets = [
                Target(canonical(e.ip), e.port, weight, self._remembered_as(e))
                for e, weight in zip(endpoints, effective(endpoints), strict=True)
                if weight
            ]
            idle = [self._remembered_as(endpoint) for endpoint in port.idle]
            self._needed[name] = chains.sticky(
                self.config.family, self.number, targets, port.affinity_seconds, idle
            )
        return name

    def _remembered_as(self, endpoint: EndpointPlan) -> int:
        """The 31-bit number that stands for one endpoint of this port in the affinity set.

        Entries expire with their timeout, not with their service; so a new service of the same name has other
        numbers.
        """
        text = f"{self.port.name} {self._created} {self.port.protocol} {endpoint.text}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1

    def _numbered(
        self, frontend: str, endpoints: Sequence[EndpointPlan], *, apart: bool = False, late: bool = False
    ) -> Iterator[Element]:
        if self.port.affinity_seconds is not None:
            return
        shares = slots(effective(endpoints))
        chosen = [
            f"{canonical(e.ip)} . {e.port}"
            for e, share in zip(endpoints, shares, strict=True)
            for _ in range(share)
        ]
        first = names.LOCAL_ENDPOINT_0 if apart else names.ENDPOINT_0
        yield Element(first, frontend, chosen[0], late)
        container = names.numbered(len(chosen), local=apart)
        for number, endpoint in enumerate(chosen[1:], 1):
            yield Element(container, f"{frontend} . {number}", endpoint, late)

    def _admissions(self, frontend: str) -> Iterator[Element]:
        """The sources allowed at a load-balancer address; the node's own packets may have it as source."""
        port = self.port
        ranges = [ipaddress.ip_network(cidr) for cidr in port.source_ranges or ()]
        if port.node_in_source_ranges:
            ranges += [ipaddress.ip_network(ip) for ip in port.load_balancer_ips]
        for network in ipaddress.collapse_addresses(ranges):  # type: ignore[type-var]
            ip = canonical(str(network.network_address))
            host = network.prefixlen == network.max_prefixlen
            yield Element(names.SOURCE_RANGES, f"{frontend} . {ip if host else f'{ip}/{network.prefixlen}'}")
