"""Parse addresses and print them in canonical form, so that no raw text from the API reaches a rule.

Every address and CIDR kproxy writes is the output of this module. It accepts what kube-proxy accepts
(leading zeros in IPv4 octets, IPv4-mapped IPv6 as IPv4, host bits in a CIDR) and prints one canonical form,
which matters twice: endpoint chain names are hashes over it, and rules are compared as text.
"""

import enum
import ipaddress
import socket
from collections.abc import Iterable

_NOT_AN_ADDRESS = "not an IP address"
_MAPPED = bytes(10) + b"\xff\xff"
"""How an IPv4 address begins within IPv6 (RFC 4291, 2.5.5.2)."""


class Family(enum.StrEnum):
    """An IP family by its Kubernetes name (`spec.ipFamilies`, EndpointSlice `addressType`)."""

    IPV4 = "IPv4"
    IPV6 = "IPv6"

    @property
    def host_bits(self) -> int:
        """The prefix length of a single address: 32 or 128."""
        return 32 if self is Family.IPV4 else 128


def parse_ip(text: str) -> tuple[Family, str]:
    """Return the family and canonical form of one address.

    Raises ValueError for anything that is not exactly one address (zones, ports, blanks included).
    """
    try:
        if ":" in text:
            return _parse_ipv6(text)
        socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError, TypeError):
        return _parse_unusual(text)
    # inet_pton accepts four plain decimal octets and nothing else: accepted text is already canonical.
    return Family.IPV4, text


def _parse_ipv6(text: str) -> tuple[Family, str]:
    if "%" in text:
        raise ValueError(_NOT_AN_ADDRESS)
    packed = socket.inet_pton(socket.AF_INET6, text)
    if packed.startswith(_MAPPED):
        return Family.IPV4, socket.inet_ntop(socket.AF_INET, packed[len(_MAPPED) :])
    printed = _print_ipv6(packed)
    return Family.IPV6, text if printed == text else printed  # one object in memory instead of two


def _print_ipv6(packed: bytes) -> str:
    # inet_ntop prints some addresses in ::/8 in another form.
    return (
        socket.inet_ntop(socket.AF_INET6, packed) if packed[0] else ipaddress.IPv6Address(packed).compressed
    )


def _parse_unusual(text: str) -> tuple[Family, str]:
    octets = text.split(".")
    if len(octets) == 4 and all(o.isascii() and o.isdigit() and len(o) <= 16 for o in octets):
        values = [int(o) for o in octets]
        if max(values) <= 255:
            return Family.IPV4, ".".join(map(str, values))
    raise ValueError(_NOT_AN_ADDRESS)


def parse_cidr(text: str) -> tuple[Family, str]:
    """Return the family and canonical network (host bits cleared) of an `address/length` text.

    Raises ValueError for anything else; a bare address and a dotted netmask are not CIDRs.
    """
    address, slash, length = text.partition("/")
    if not slash or not (length.isascii() and length.isdigit() and len(length) <= 3):
        raise ValueError("not a CIDR")
    try:
        family, canonical = parse_ip(address)
    except ValueError:
        raise ValueError("not a CIDR") from None
    bits = int(length)
    if ":" in address and family is Family.IPV4:
        bits -= 96
    if not 0 <= bits <= family.host_bits:
        raise ValueError(f"prefix length {length} is out of range for {family}")
    number = to_number(canonical)
    host = number & ((1 << (family.host_bits - bits)) - 1)
    return family, f"{from_number(family, number - host) if host else canonical}/{bits}"


def to_number(address: str) -> int:
    """The bits of a canonical address."""
    return int.from_bytes(socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address))


def from_number(family: Family, number: int) -> str:
    """The canonical address of a family that has these bits."""
    if family is Family.IPV4:
        return socket.inet_ntop(socket.AF_INET, number.to_bytes(4))
    return _print_ipv6(number.to_bytes(16))


def cidr_interval(cidr: str) -> tuple[int, int]:
    """The bits of the first and of the last address of a canonical CIDR."""
    address, _, length = cidr.partition("/")
    first = to_number(address)
    return first, first + (1 << ((128 if ":" in address else 32) - int(length))) - 1


def collapse(cidrs: Iterable[str]) -> tuple[str, ...]:
    """CIDRs of one family that cover the same addresses: canonical, in order, none within another."""
    found = ipaddress.collapse_addresses(map(ipaddress.ip_network, cidrs))  # type: ignore[type-var]
    return tuple(map(str, found))


def cidr_contains(cidr: str, address: str) -> bool:
    """Whether a canonical CIDR contains a canonical address (False across families)."""
    return ipaddress.ip_address(address) in ipaddress.ip_network(cidr)


def host_cidr(address: str) -> str:
    """The CIDR of one address, as iptables-save prints it: `10.0.0.1/32`, `fd00::1/128`."""
    return f"{address}/128" if ":" in address else f"{address}/32"


def join_host_port(address: str, port: int) -> str:
    """`10.0.0.1:80` or `[fd00::1]:80`, the form of Go's net.JoinHostPort that chain names are hashed over."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def is_link_local(address: str) -> bool:
    """Whether a canonical address is an IPv6 one in fe80::/10: it means nothing without its interface."""
    return address.startswith(("fe8", "fe9", "fea", "feb"))


def is_loopback(address: str) -> bool:
    """Whether a canonical address is in 127.0.0.0/8 or is ::1."""
    return address == "::1" or address.startswith("127.")


def split_host_port(address: str) -> tuple[str, int]:
    """`0.0.0.0:10256` or `[::]:10256`. Raises ValueError."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{address!r} is not host:port")
    return host, int(port)
