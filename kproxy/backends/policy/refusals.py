"""What the kernel knows of refused flows: the sets of them, and the counters of groups."""

import ipaddress
import socket
import struct
from collections.abc import Collection

import msgspec

from kproxy.addresses import Family
from kproxy.backends.policy import names
from kproxy.kernel.nft.dump import rule_counts
from kproxy.kernel.nft.packet_sets import packet_elements

_KEYS = {Family.IPV4: struct.Struct("4s4sB3x2s2x"), Family.IPV6: struct.Struct("16s16sB3x2s2x")}
"""Source . destination . protocol . port; each field begins at a multiple of four bytes."""
_KINDS = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_DIRECTIONS = (names.EGRESS, names.INGRESS, names.UNKNOWN)
_WITH_PORTS = frozenset(names.PROTOCOL_NUMBERS.values())


class FlowKey(msgspec.Struct, frozen=True, gc=False):
    """A refused flow: canonical addresses, IANA protocol number, and `egress`, `ingress` or `unknown`.

    `port` is 0 for a protocol without ports.
    """

    source: str
    destination: str
    protocol: int
    port: int
    direction: str

    @property
    def family(self) -> Family:
        """The family of its addresses."""
        return Family.IPV6 if ":" in self.destination else Family.IPV4


class RefusedCount(msgspec.Struct, frozen=True, gc=False):
    """How often a flow was refused, and the seconds since the last time."""

    flow: FlowKey
    packets: int
    age: float


def refused_flows(family: Family) -> list[RefusedCount]:
    """The flows that were refused within the last minutes; none if there is no table. Raises OSError."""
    return [
        RefusedCount(flow, _refused(each.packets), each.age)
        for direction in _DIRECTIONS
        for each in packet_elements(family, names.TABLE, names.drops(direction), names.DROPS_SECONDS)
        if (flow := decode_key(family, direction, each.key)) is not None
    ]


def decode_key(family: Family, direction: str, key: bytes) -> FlowKey | None:
    """The flow of an element; None for one that kproxy's rules do not write."""
    layout = _KEYS[family]
    if len(key) != layout.size:
        return None
    source, destination, protocol, port = layout.unpack(key)
    number = int.from_bytes(port, "big") if protocol in _WITH_PORTS else 0
    return FlowKey(_address(family, source), _address(family, destination), protocol, number, direction)


def _refused(counted: int) -> int:
    """The number of refused packets: but for the first, each is counted twice.

    The rule for known flows looks the element up and updates it, and both count (net/netfilter/nft_lookup.c,
    nft_dynset.c).
    """
    return (counted + 1) // 2


def _address(family: Family, packed: bytes) -> str:
    """As kproxy.addresses prints it, but an IPv4 address in IPv6 stays one of IPv6, as the packet is."""
    if family is Family.IPV4 or packed[0]:
        return socket.inet_ntop(_KINDS[family], packed)
    return ipaddress.IPv6Address(packed).compressed


def direction_of(prefix: str) -> str:
    """The direction of a refusal by the prefix of its log: a group's name, or the word for unknown pods."""
    return {"i": names.INGRESS, "e": names.EGRESS}.get(prefix.partition("-")[0], names.UNKNOWN)


def refused_by_group(family: Family, groups: Collection[str]) -> dict[str, int]:
    """The packets that each of these groups has refused since its chain was written. Raises OSError.

    The second counter of a group's chain, or the first of the chain at its end, is that of its refusal.
    """
    chains = {chain: name for name in groups for chain in (name, names.end_of(name))}
    refused: dict[str, int] = {}
    for chain, counts in (rule_counts(family, names.TABLE, chains) or {}).items():
        name = chains.get(chain)
        if name is not None and (chain != name or len(counts) > 1):
            refused[name] = counts[0] if chain != name else counts[1]
    return refused
