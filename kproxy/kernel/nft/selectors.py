"""Selectors of packet data in rules, from nft's syntax to the expression that loads the data.

`typeof` declares maps and sets by selectors, too: nft stores them as user data of the set, which the kernel
does not read, and prints keys by them. The layout is that of libnftnl's include/udata.h and of the
`build_udata` functions in nftables' src.
"""

import functools
import re
import struct
from collections.abc import Callable, Sequence

import msgspec

from kproxy.addresses import Family
from kproxy.kernel.nft import expressions as x
from kproxy.kernel.nft.fields import INTEGER, IPV4, IPV6, PORT, PROTOCOL, Field

SELECTOR = re.compile(
    r"(?P<ip>ip6?) (?P<side>saddr|daddr)|meta (?P<meta>l4proto|mark)"
    r"|th (?P<port>dport|sport)|(?P<icmp>icmpv6 type)|(?P<hops>ip6 hoplimit)"
    r"|ct (?P<ct>state|status)|(?P<interface>iifname)|(?P<fib>fib saddr type)"
    r"|numgen (?P<numgen>random|inc) mod (?P<mod>\d+)(?: offset (?P<offset>\d+))?"
)

MARK = Field(19, 4, 1, INTEGER.encode)
INTERFACE = Field(41, 16, 1, lambda text: text.encode().ljust(16, b"\0"))
ICMP_TYPE = Field(29, 1, 2, PROTOCOL.encode)
HOP_LIMIT = Field(4, 1, 2, PROTOCOL.encode)
BITS = Field(26, 4, 1, INTEGER.encode)
"""Bit masks of connection tracking, and types of addresses: numbers in the machine's byte order."""

_TYPEOF_EXPRESSION, _TYPEOF_DATA = 0, 1
_PAYLOAD, _META, _CONCAT, _NUMGEN = 7, 9, 13, 23  # enum expr_types of nftables' include/expression.h
_PORTS = {"sport": (1, 0), "dport": (2, 2)}
"""Template numbers of nftables' src/proto.c, and offsets."""
_HEADERS = {  # protocol and template numbers, then offsets and lengths, of nftables' src/proto.c
    ("ip", "saddr"): (12, 11, 12, 4),
    ("ip", "daddr"): (12, 12, 16, 4),
    ("ip6", "saddr"): (13, 8, 8, 16),
    ("ip6", "daddr"): (13, 9, 24, 16),
}
_NUMGEN_NUMBERS = {"inc": 0, "random": 1}


class Selector(msgspec.Struct, frozen=True):
    """A selector: its type, the loading expression by register, and its user data for `typeof`.

    `words`: nft's syntax, without numbers.
    """

    words: str
    field: Field
    load: Callable[[int], bytes]
    typeof: bytes = b""


def selector(found: re.Match[str]) -> Selector:
    """The selector that SELECTOR matched."""
    return _selector(found[0])


@functools.lru_cache(maxsize=1024)
def _selector(text: str) -> Selector:
    found = SELECTOR.fullmatch(text)
    assert found is not None  # noqa: S101 - it has matched this text
    words = text.partition(" mod ")[0]
    if found["ip"]:
        return _address(words, found["ip"], found["side"])
    if found["port"]:
        template, offset = _PORTS[found["port"]]
        return Selector(
            words,
            PORT,
            lambda register: x.payload(x.TRANSPORT_HEADER, offset, 2, register),
            _typeof(_PAYLOAD, userdata_number(0, 11) + userdata_number(1, template)),
        )
    if found["icmp"]:
        return Selector(words, ICMP_TYPE, lambda register: x.payload(x.TRANSPORT_HEADER, 0, 1, register))
    if found["hops"]:
        return Selector(words, HOP_LIMIT, lambda register: x.payload(x.NETWORK_HEADER, 7, 1, register))
    if found["numgen"]:
        return _generator(words, found["numgen"], int(found["mod"]), int(found["offset"] or 0))
    if found["meta"] == "l4proto":
        data = userdata_number(0, x.META_L4PROTO)
        return Selector(
            words, PROTOCOL, lambda register: x.load_meta(x.META_L4PROTO, register), _typeof(_META, data)
        )
    if found["meta"]:
        return Selector(words, MARK, lambda register: x.load_meta(x.META_MARK, register))
    if found["interface"]:
        return Selector(words, INTERFACE, lambda register: x.load_meta(x.META_IIFNAME, register))
    if found["fib"]:
        return Selector(words, BITS, lambda _: x.load_source_type())
    key = x.CT_STATE if found["ct"] == "state" else x.CT_STATUS
    return Selector(words, BITS, lambda _: x.load_ct(key))


def _address(words: str, protocol: str, side: str) -> Selector:
    kind, template, offset, length = _HEADERS[protocol, side]
    data = userdata_number(0, kind) + userdata_number(1, template)
    return Selector(
        words,
        IPV4 if protocol == "ip" else IPV6,
        lambda register: x.payload(x.NETWORK_HEADER, offset, length, register),
        _typeof(_PAYLOAD, data),
    )


def _generator(words: str, kind: str, modulus: int, start: int) -> Selector:
    values = (_NUMGEN_NUMBERS[kind], modulus, start)
    data = b"".join(userdata_number(place, value) for place, value in enumerate(values))
    return Selector(
        words, INTEGER, lambda register: x.numgen(kind, modulus, start, register), _typeof(_NUMGEN, data)
    )


def typeof(parts: Sequence[bytes]) -> bytes:
    """The user data of `typeof` for a selector, or for a concatenation of several."""
    if len(parts) == 1:
        return parts[0]
    return _typeof(_CONCAT, b"".join(userdata(place, part) for place, part in enumerate(parts)))


def bare_concatenation() -> bytes:
    """The user data of a concatenation declared by `type`; all versions of nft use the type."""
    return _typeof(_CONCAT, b"")


def userdata(kind: int, value: bytes) -> bytes:
    """One attribute of user data, of at most 255 bytes."""
    return struct.pack("=BB", kind, len(value)) + value


def userdata_number(kind: int, value: int) -> bytes:
    """An attribute of user data that holds a number, in the machine's byte order."""
    return userdata(kind, struct.pack("=I", value))


def address_family(word: str) -> Family:
    """The family that nft calls `ip` or `ip6`."""
    return Family.IPV4 if word == "ip" else Family.IPV6


def _typeof(expression: int, data: bytes) -> bytes:
    return userdata_number(_TYPEOF_EXPRESSION, expression) + userdata(_TYPEOF_DATA, data)
