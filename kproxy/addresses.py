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
        socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError, TypeError):
        return _parse_unusual(text)
    # inet_pton accepts four plain decimal octets and nothing else: accepted text is already canonical.
    return Family.IPV4, text


def _parse_unusual(text: str) -> tuple[Family, str]:
    if ":" in text and "%" not in text:
        try:
            address = ipaddress.IPv6Address(socket.inet_pton(socket.AF_INET6, text))
        except (OSError, ValueError):
            raise ValueError(_NOT_AN_ADDRESS) from None
        mapped = address.ipv4_mapped
        if mapped is not None:
            return Family.IPV4, str(mapped)
        return Family.IPV6, address.compressed
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
    return family, str(ipaddress.ip_network(f"{canonical}/{bits}", strict=False))


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
