"""From a ServicePlan to the elements and chains that it needs in the table. Pure."""

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
"""Elements that the weighted endpoints of one frontend take at most; shares are rounded to fit."""


class Element(msgspec.Struct, frozen=True, gc=False):
    """An element of a map, or with value "" of a set.

    `late`: gives way to another service's element of the same key, as node ports do to external addresses.
    """

    container: str
    key: str
    value: str = ""
    late: bool = False


class ServiceObjects(msgspec.Struct, frozen=True, gc=False):
    """All of one service: its elements, and the chains that they need, by name."""

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
    """How many of the numbers 0..N-1 each endpoint gets, so that each gets its share of a fair draw.

    Exact as far as MAX_SLOTS allows; else rounded, but nobody of positive weight is left out.
    """
    divisor = math.gcd(*weights) or 1
    counts = [weight // divisor for weight in weights]
    total = sum(counts)
    most = max(MAX_SLOTS, len(counts))
    if total <= most:
        return counts
    return [max(1, round(count * most / total)) if count else 0 for count in counts]


def canonical(ip: str) -> str:
    """An address as nft lists it: the C library prints the lowest of IPv6 with dots."""
    if ip.startswith("::"):
        return socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, ip))
    return ip


class _PortRenderer:
    """Renders one service port; chains that it needs are added to `needed`.

    `created` tells its service from an earlier one of the same name.
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
        """Whether not everybody may use the load-balancer addresses."""
        return self.port.source_ranges is not None and self.port.has_endpoints

    def _frontend(self, ip: str, port: int) -> str:
        return f"{canonical(ip)} . {self.number} . {port}"

    def _need(self, chain: tuple[str, Chain]) -> str:
        self._needed[chain[0]] = chain[1]
        return chain[0]

    def _cluster_ip(self) -> Iterator[Element]:
        port = self.port
        asked = self._frontend(port.cluster_ip, port.port)
        if port.internal is not Verdict.FORWARD:
            yield self._refusal(asked, port.internal)
            return
        endpoints = port.local if port.internal_local else port.cluster
        target = self._spread(endpoints, policy_local=port.internal_local)
        chain = self._need(chains.internal(self.config, target))
        yield from self._leading(
            asked, chain, restricted=self._restricted and port.cluster_ip in port.load_balancer_ips
        )
        yield from self._numbered(asked, endpoints)

    def _external(self, asked: str, *, restricted: bool = False, late: bool = False) -> Iterator[Element]:
        port = self.port
        if port.has_endpoints:
            everywhere = self._spread(port.cluster, policy_local=False)
            yield from self._numbered(asked, port.cluster, late=late)
            if port.external_local:
                here = ""
                if port.local:
                    here = self._spread(port.local, policy_local=True, apart=True)
                    yield from self._numbered(asked, port.local, apart=True, late=late)
                chain = self._need(chains.external_local(self.config, everywhere, here))
            else:
                chain = self._need(chains.external(self.config, everywhere))
            yield from self._leading(asked, chain, restricted=restricted, late=late)
        if port.external is not Verdict.FORWARD:
            yield self._refusal(asked, port.external, late=late)

    def _leading(self, asked: str, chain: str, *, restricted: bool, late: bool = False) -> Iterator[Element]:
        """What leads to a chain: all packets, or those of the sources that are admitted."""
        if restricted:
            yield Element(names.SERVICES, asked, f"goto {chains.FIREWALL}")
            yield Element(names.ADMITTED, asked, f"goto {chain}")
        else:
            yield Element(names.SERVICES, asked, f"goto {chain}", late)

    def _refusal(self, asked: str, verdict: Verdict, *, late: bool = False) -> Element:
        value = "drop" if verdict is Verdict.DROP else f"goto {chains.REFUSE}"
        return Element(names.REFUSALS, asked, value, late)

    def _spread(self, endpoints: Sequence[EndpointPlan], *, policy_local: bool, apart: bool = False) -> str:
        """The chain that picks one of these; `apart`: the local of a frontend's two lists."""
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
        """31 bits that stand for one endpoint of this port in the affinity set.

        Entries there end with their time, not with their service: another of its name has other numbers.
        """
        text = f"{self.port.name} {self._created} {self.port.protocol} {endpoint.text}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1

    def _numbered(
        self, asked: str, endpoints: Sequence[EndpointPlan], *, apart: bool = False, late: bool = False
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
        yield Element(first, asked, chosen[0], late)
        container = names.numbered(len(chosen), local=apart)
        for number, endpoint in enumerate(chosen[1:], 1):
            yield Element(container, f"{asked} . {number}", endpoint, late)

    def _admissions(self, asked: str) -> Iterator[Element]:
        """Who may use a load-balancer address. The node reaches one that it holds from that very address."""
        port = self.port
        ranges = [ipaddress.ip_network(cidr) for cidr in port.source_ranges or ()]
        if port.node_in_source_ranges:
            ranges += [ipaddress.ip_network(ip) for ip in port.load_balancer_ips]
        for network in ipaddress.collapse_addresses(ranges):  # type: ignore[type-var]
            ip = canonical(str(network.network_address))
            host = network.prefixlen == network.max_prefixlen
            yield Element(names.SOURCE_RANGES, f"{asked} . {ip if host else f'{ip}/{network.prefixlen}'}")
