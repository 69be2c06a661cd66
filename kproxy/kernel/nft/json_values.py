"""Values of nft's JSON as the bytes that the kernel holds, and the elements of sets written so."""

import ipaddress
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from kproxy.kernel.nft.held_elements import Element, Target, fits

Json = Any

WIDTHS = {
    "ipv4_addr": 4,
    "ipv6_addr": 16,
    "inet_proto": 1,
    "inet_service": 2,
    "ifname": 16,
    "nf_proto": 1,
    "ether_type": 2,
    "pkt_type": 1,
    "ct_dir": 1,
    "tcp_flag": 1,
    "icmp_type": 1,
    "icmpv6_type": 1,
}
"""Sizes of data types in bytes; others are numbers of four bytes in the machine's order."""

BYTES = {
    ("tcp", "flags"): ("@th 13", "tcp_flag"),
    ("icmp", "type"): ("@th 0", "icmp_type"),
    ("icmpv6", "type"): ("@th 0", "icmpv6_type"),
}
"""Fields of one byte: the place, and the data type."""

_PROTOCOLS = {
    "tcp": 6,
    "udp": 17,
    "sctp": 132,
    "icmp": 1,
    "ipv6-icmp": 58,
    "icmpv6": 58,
    "dccp": 33,
    "udplite": 136,
    "esp": 50,
    "ah": 51,
    "gre": 47,
    "igmp": 2,
    "comp": 108,
}
_SYMBOLS: Mapping[str, Mapping[str, int]] = {
    "inet_proto": _PROTOCOLS,
    "nf_proto": {"ipv4": 2, "ipv6": 10},
    "ether_type": {"ip": 0x0800, "ip6": 0x86DD, "arp": 0x0806, "vlan": 0x8100},
    "pkt_type": {"host": 0, "unicast": 0, "broadcast": 1, "multicast": 2, "other": 3},
    "ct_dir": {"original": 0, "reply": 1},
    "tcp_flag": {
        "fin": 1,
        "syn": 2,
        "rst": 4,
        "psh": 8,
        "ack": 16,
        "urg": 32,
        "ecn": 64,
        "cwr": 128,
    },
    "ct_state": {"invalid": 1, "established": 2, "related": 4, "new": 8, "untracked": 64},
    "ct_status": {
        "expected": 1,
        "seen-reply": 2,
        "assured": 4,
        "confirmed": 8,
        "snat": 16,
        "dnat": 32,
        "dying": 512,
    },
    "icmp_type": {
        "echo-reply": 0,
        "destination-unreachable": 3,
        "source-quench": 4,
        "redirect": 5,
        "echo-request": 8,
        "router-advertisement": 9,
        "router-solicitation": 10,
        "time-exceeded": 11,
        "parameter-problem": 12,
        "timestamp-request": 13,
        "timestamp-reply": 14,
        "info-request": 15,
        "info-reply": 16,
        "address-mask-request": 17,
        "address-mask-reply": 18,
    },
    "icmpv6_type": {
        "destination-unreachable": 1,
        "packet-too-big": 2,
        "time-exceeded": 3,
        "parameter-problem": 4,
        "echo-request": 128,
        "echo-reply": 129,
        "mld-listener-query": 130,
        "mld-listener-report": 131,
        "mld-listener-done": 132,
        "mld-listener-reduction": 132,
        "nd-router-solicit": 133,
        "nd-router-advert": 134,
        "nd-neighbor-solicit": 135,
        "nd-neighbor-advert": 136,
        "nd-redirect": 137,
        "router-renumbering": 138,
        "ind-neighbor-solicit": 141,
        "ind-neighbor-advert": 142,
        "mld2-listener-report": 143,
    },
    "fib_addrtype": {
        "unspec": 0,
        "unicast": 1,
        "local": 2,
        "broadcast": 3,
        "anycast": 4,
        "multicast": 5,
        "blackhole": 6,
        "unreachable": 7,
        "prohibit": 8,
    },
}


def padded(size: int) -> int:
    """The size of a field in a concatenation."""
    return (size + 3) & ~3


def width(kind: str) -> int:
    """The size of a value of a data type, in bytes."""
    return WIDTHS.get(kind, 4)


def encode(kind: str, value: Json) -> bytes:
    """Encode one value of a data type. Raises ValueError, OSError or KeyError for what is not known."""
    if kind == "ipv4_addr":
        return socket.inet_pton(socket.AF_INET, value)
    if kind == "ipv6_addr":
        return socket.inet_pton(socket.AF_INET6, value)
    if kind == "ifname":
        return str(value).encode().ljust(16, b"\0")
    found = number(kind, value)
    size = width(kind)
    return struct.pack("=I", found) if size == 4 else found.to_bytes(size, "big")


def number(kind: str, value: Json) -> int:
    """The number of a value, which may be a symbol. Raises ValueError, KeyError."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int):
        return value
    if isinstance(value, list):  # of flags
        return sum(number(kind, each) for each in value)
    if not isinstance(value, str):
        raise ValueError(f"{kind}: {value!r}")  # noqa: TRY004 - one kind of error for all
    if kind in _SYMBOLS and value in _SYMBOLS[kind]:
        return _SYMBOLS[kind][value]
    return int(value, 0)


def bounds(kind: str, value: Json) -> tuple[bytes, bytes]:
    """The first and last of a value, a prefix or a range. Raises as `encode`."""
    if isinstance(value, dict) and "prefix" in value:
        prefix = value["prefix"]
        network = ipaddress.ip_network(f"{prefix['addr']}/{prefix['len']}", strict=False)
        return network.network_address.packed, network.broadcast_address.packed
    if isinstance(value, dict) and "range" in value:
        first, last = value["range"]
        return encode(kind, first), encode(kind, last)
    if kind in {"ipv4_addr", "ipv6_addr"} and isinstance(value, str) and "/" in value:
        addr, _, length = value.partition("/")
        return bounds(kind, {"prefix": {"addr": addr, "len": int(length)}})
    one = encode(kind, value)
    return one, one


class ListedElements(msgspec.Struct, frozen=True):
    """The elements of a map or set, decoded; see held_elements.Elements.

    `ranges` are (first, last of each field, value).
    """

    name: str
    key_length: int
    exact: Mapping[bytes, Element]
    ranges: tuple[tuple[tuple[tuple[bytes, bytes], ...], Element], ...] = ()
    otherwise: Element | None = None

    def find(self, key: bytes) -> Element | None:
        """The value of a key; None if the map or set does not have it."""
        found = self.exact.get(key)
        if found is not None:
            return found
        for fields, value in self.ranges:
            at = 0
            for first, last in fields:
                if not first <= key[at : at + len(first)] <= last:
                    break
                at += padded(len(first))
            else:
                return value
        return self.otherwise

    def may_find(self, words: Sequence[bytes | None]) -> bool:
        """Whether an element may have a key of these words of four bytes, of which some are not known."""
        if self.ranges or self.otherwise is not None:
            return True
        return any(fits(key, words) for key in self.exact)


def elements(name: str, kinds: Sequence[str], data: Sequence[str] | None, listed: Json) -> ListedElements:
    """Encode the elements of a set, or of a map to `data` types; ("verdict",) for verdicts.

    Raises as `encode`.
    """
    exact: dict[bytes, Element] = {}
    ranges: list[tuple[tuple[tuple[bytes, bytes], ...], Element]] = []
    otherwise: Element | None = None
    for each in [listed] if isinstance(listed, dict | str | int) else listed or ():
        key, value = each if data is not None and isinstance(each, list) else (each, None)
        if isinstance(key, dict) and "elem" in key:
            key = key["elem"]["val"]
        held: Element = b"" if data is None else _value(data, value)
        if key == "*":
            otherwise = held
            continue
        parts = key["concat"] if isinstance(key, dict) and "concat" in key else [key]
        fields = tuple(bounds(kind, part) for kind, part in zip(kinds, parts, strict=True))
        if all(first == last for first, last in fields):
            exact[joined([first for first, _ in fields])] = held
        else:
            ranges.append((fields, held))
    sizes = [width(kind) for kind in kinds]
    length = sizes[0] if len(sizes) == 1 else sum(map(padded, sizes))
    return ListedElements(name, length, exact, tuple(ranges), otherwise)


def joined(values: Sequence[bytes]) -> bytes:
    """A concatenation of values; one alone is not padded."""
    if len(values) == 1:
        return values[0]
    return b"".join(value.ljust(padded(len(value)), b"\0") for value in values)


def target(statement: Json) -> Target | None:
    """A verdict, if a statement is one."""
    word = next(iter(statement)) if isinstance(statement, dict) and statement else statement
    if word in {"accept", "drop", "return", "continue"}:
        return Target(word)
    if word in {"jump", "goto"}:
        return Target(word, statement[word]["target"])
    return None


def _value(kinds: Sequence[str], value: Json) -> Element:
    if tuple(kinds) == ("verdict",):
        found = target(value)
        if found is None:
            raise ValueError(f"not a verdict: {value!r}")
        return found
    parts = value["concat"] if isinstance(value, dict) and "concat" in value else [value]
    return joined([encode(kind, part) for kind, part in zip(kinds, parts, strict=True)])
