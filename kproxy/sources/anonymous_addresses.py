"""Replace IP addresses so that rules keep their meaning: what shared a network before shares one after it.

Each bit of an address is flipped or not by a secret and by the bits before it (Xu et al., "Prefix-Preserving
IP Address Anonymization", 2002). So an address is in a CIDR exactly if the replaced one is in the replaced
CIDR. Ranges with a meaning of their own stay: loopback, link-local and multicast addresses are not changed,
and private addresses stay in their private range.
"""

import hashlib
from collections.abc import Collection, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from kproxy.addresses import parse_cidr, parse_ip

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address
Place = tuple[int, Network | None]
"""The version of an address and its range among ROOTS."""

FIXED: tuple[Network, ...] = (
    ip_network("0.0.0.0/8"),
    ip_network("127.0.0.0/8"),
    ip_network("169.254.0.0/16"),
    ip_network("224.0.0.0/3"),
    ip_network("::/96"),
    ip_network("64:ff9b::/96"),
    ip_network("fe80::/10"),
    ip_network("ff00::/8"),
)
"""Ranges whose addresses are not changed."""

ROOTS: tuple[Network, ...] = (
    ip_network("10.0.0.0/8"),
    ip_network("100.64.0.0/10"),
    ip_network("172.16.0.0/12"),
    ip_network("192.168.0.0/16"),
    ip_network("fc00::/7"),
    ip_network("2000::/3"),
)
"""Ranges whose addresses stay in their range."""

_TRIES = 256
_MOST_REPLACED = 400_000
"""Addresses that are replaced to find a good choice: about 10 s."""


class AddressMap:
    """Replaces addresses and CIDRs; the same text always by the same."""

    def __init__(self, secret: bytes, known: Collection[str] = ()) -> None:
        """`known`: canonical addresses; none is replaced by one of them if that can be avoided."""
        self._secret = secret
        self._salts: dict[Place, int] = {}
        self._flips: dict[tuple[Place, int], int] = {}
        groups: dict[Place, list[str]] = {}
        for each in known:
            if not is_fixed(each):
                groups.setdefault(_place(ip_address(each)), []).append(each)
        taken = frozenset(known)
        for place, members in groups.items():
            self._choose(place, members, taken)

    def address(self, text: str) -> str:
        """Replace one address; the result is canonical. Raises ValueError for other text."""
        address = ip_address(parse_ip(text)[1])
        return str(type(address)(self._mapped(address, address.max_prefixlen)))

    def cidr(self, text: str) -> str:
        """Replace one CIDR; the result is canonical. Raises ValueError for other text."""
        network = ip_network(parse_cidr(text)[1])
        first = network.network_address
        return f"{type(first)(self._mapped(first, network.prefixlen))}/{network.prefixlen}"

    def _choose(self, place: Place, members: Sequence[str], taken: frozenset[str]) -> None:
        """Find flips by which no member becomes a known address, if a few tries are enough for that."""
        for salt in range(max(1, min(_TRIES, _MOST_REPLACED // len(members)))):
            self._salts[place] = salt
            self._flips.clear()
            if taken.isdisjoint(map(self.address, members)):
                return

    def _mapped(self, address: Address, length: int) -> int:
        """The number of an address with its first `length` bits replaced."""
        number, bits = int(address), address.max_prefixlen
        if is_fixed(str(address)):
            return number
        place = _place(address)
        kept = place[1].prefixlen if place[1] is not None else 0
        flipped = number
        for depth in range(kept, length):
            flipped ^= self._flip(place, depth, number >> (bits - depth)) << (bits - depth - 1)
        return flipped

    def _flip(self, place: Place, depth: int, prefix: int) -> int:
        """Whether the bit after this prefix is flipped; not where the prefix leads to a range that stays."""
        if (place[0], depth, prefix) in _ABOVE:
            return 0
        at = (1 << depth) | prefix
        known = self._flips.get((place, at))
        if known is None:
            text = f"{place} {self._salts.get(place, 0)} {at}".encode()
            digest = hashlib.blake2b(text, key=self._secret, digest_size=1).digest()
            known = self._flips[place, at] = digest[0] & 1
        return known


def is_fixed(address: str) -> bool:
    """Whether a canonical address is not changed."""
    parsed = ip_address(address)
    return any(parsed in network for network in FIXED)


def _place(address: Address) -> Place:
    return address.version, next((root for root in ROOTS if address in root), None)


_ABOVE = frozenset(
    (network.version, depth, int(network.network_address) >> (network.max_prefixlen - depth))
    for network in (*FIXED, *ROOTS)
    for depth in range(network.prefixlen)
)
"""(version, length, bits) of each prefix of a range that stays."""
