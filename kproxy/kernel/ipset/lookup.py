"""Whether sets have the addresses and ports of a packet, as iptables' match `set` asks."""

import ipaddress
from collections.abc import Collection, Mapping, Sequence

import msgspec

from kproxy.kernel.ipset.types import Entry, Ipset, IpsetError, SetKind, SetSpec


class Side(msgspec.Struct, frozen=True):
    """One end of a packet, as a set sees it; "" is an address that is not known."""

    address: str
    port: int


class Members:
    """The entries of sets at one moment, of the types that are known."""

    def __init__(self, held: Mapping[SetSpec, Collection[Entry]]) -> None:
        self._held = {spec.name: (spec.kind, frozenset(entries)) for spec, entries in held.items()}
        self._networks: dict[str, dict[tuple[str, str, int], list[str]]] = {}

    def has(self, name: str, protocol: str, ends: Mapping[str, Side], sides: Sequence[str]) -> bool | None:
        """Whether a set has a packet's `sides`, such as ("dst", "dst", "src"); None if that is not known."""
        kind, entries = self._held.get(name, (None, frozenset[Entry]()))
        picked = [ends[side] for side in sides if side in ends]
        if kind is None or len(picked) < _DIMENSIONS[kind] or not all(end.address for end in picked):
            return None
        ip = picked[0].address
        if kind is SetKind.IP:
            return Entry(ip) in entries
        port = picked[1].port
        if kind is SetKind.IP_PORT:
            return Entry(ip, protocol, port) in entries
        other = picked[2].address
        if kind is SetKind.IP_PORT_IP:
            return Entry(ip, protocol, port, other) in entries
        address = ipaddress.ip_address(other)
        ranges = self._ranges(name, entries).get((ip, protocol, port), ())
        return any(address in ipaddress.ip_network(cidr) for cidr in ranges)

    def _ranges(self, name: str, entries: Collection[Entry]) -> Mapping[tuple[str, str, int], Sequence[str]]:
        found = self._networks.get(name)
        if found is None:
            found = self._networks[name] = {}
            for entry in entries:
                found.setdefault((entry.ip, entry.protocol, entry.port), []).append(entry.other)
        return found


_DIMENSIONS = {SetKind.IP: 1, SetKind.IP_PORT: 2, SetKind.IP_PORT_IP: 3, SetKind.IP_PORT_NET: 3}


def read(ipset: Ipset, names: Collection[str]) -> Members:
    """Read the sets of these names; those of other types stay unknown, and missing ones too."""
    if not names:
        return Members({})
    try:
        headers = ipset.headers()
    except IpsetError:
        return Members({})
    kinds = {str(kind): kind for kind in SetKind}
    held = {}
    for name in names:
        header = headers.get(name)
        if header is None or header.type not in kinds or header.family is None:
            continue
        spec = SetSpec(name, kinds[header.type], header.family)
        try:
            held[spec] = ipset.entries(spec)
        except IpsetError:
            continue
    return Members(held)
