"""The kernel's nftables expressions as netlink attributes: one function for each expression that kproxy uses.

Layouts and numbers are those of the kernel's include/uapi/linux/netfilter/nf_tables.h. Registers are counted
in words of four bytes from the first (NFT_REG32_00); the kernel itself prints those at multiples of sixteen
bytes by their older numbers.
"""

import functools
import socket
import struct

from kproxy.addresses import Family
from kproxy.kernel.netlink.messages import attribute, nested

_LIST_ELEMENT = 1
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2
_DATA_VALUE, _DATA_VERDICT = 1, 2
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_FIRST_REGISTER = 8  # NFT_REG32_00
_VERDICT_REGISTER = 0
_U32 = struct.Struct("!I")

EQUAL, NOT_EQUAL, LESS, AT_MOST, AT_LEAST = 0, 1, 2, 3, 5
"""enum nft_cmp_ops."""
NETWORK_HEADER, TRANSPORT_HEADER = 1, 2
"""enum nft_payload_bases."""
META_MARK, META_IIFNAME, META_L4PROTO = 3, 6, 16
"""enum nft_meta_keys."""
CT_STATE, CT_STATUS = 0, 2
"""enum nft_ct_keys."""
UPDATE, DELETE = 1, 2
"""enum nft_dynset_ops."""
FULLY_RANDOM = 0x10
"""NF_NAT_RANGE_PROTO_RANDOM_FULLY."""

VERDICTS = {"drop": 0, "accept": 1, "continue": -1, "jump": -3, "goto": -4, "return": -5}
"""NF_DROP, NF_ACCEPT, and enum nft_verdicts."""
FAMILY_NUMBERS = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}

SET_ID = bytes(4)
"""Placeholder for the id of a rule's anonymous set."""

_BYTEORDER_TO_NETWORK = 1
_FIB_ADDRESS_TYPE, _FIB_SOURCE = 3, 1
_NUMGEN = {"inc": 0, "random": 1}
_DESTINATION_NAT = 1
_INVERTED = 1  # NFT_LOOKUP_F_INV
_UNREACHABLE = 0  # NFT_REJECT_ICMP_UNREACH
_PORT_UNREACHABLE = {Family.IPV4: b"\x03", Family.IPV6: b"\x04"}
"""ICMP_PORT_UNREACH and ICMPV6_PORT_UNREACH; for TCP the kernel sends a reset only with another type."""

_remembered = functools.lru_cache(maxsize=1024)
"""Rules consist of few different expressions; an affinity chain has ten for each of its endpoints."""


@_remembered
def payload(base: int, offset: int, length: int, register: int = 0) -> bytes:
    """Load `length` bytes of a packet's header."""
    return _expression(
        "payload", _register(1, register), number(2, base), number(3, offset), number(4, length)
    )


@_remembered
def load_meta(key: int, register: int = 0) -> bytes:
    """Load metadata of a packet."""
    return _expression("meta", number(2, key), _register(1, register))


def set_meta(key: int) -> bytes:
    """Set metadata of a packet from the first register."""
    return _expression("meta", number(2, key), _register(3, 0))


def load_ct(key: int) -> bytes:
    """Load a conntrack property of the packet's connection."""
    return _expression("ct", _register(1, 0), number(2, key))


def load_source_type() -> bytes:
    """Load the type of the packet's source address, from the routing tables."""
    return _expression("fib", _register(1, 0), number(2, _FIB_ADDRESS_TYPE), number(3, _FIB_SOURCE))


@_remembered
def numgen(kind: str, modulus: int, offset: int, register: int = 0) -> bytes:
    """Load a number from `offset` to `offset + modulus - 1`, in the machine's byte order."""
    return _expression(
        "numgen",
        _register(1, register),
        number(2, modulus),
        number(3, _NUMGEN[kind]),
        number(4, offset),
    )


def to_network_order() -> bytes:
    """Convert the first register to network order, so that a bytewise comparison compares numbers."""
    return _expression(
        "byteorder",
        *(_register(1, 0), _register(2, 0), number(3, _BYTEORDER_TO_NETWORK), number(4, 4), number(5, 4)),
    )


@_remembered
def compare(operator: int, value: bytes) -> bytes:
    """Continue only if the comparison of the first register with a value is true."""
    return _expression("cmp", _register(1, 0), number(2, operator), nested(3, attribute(_DATA_VALUE, value)))


def bitwise(mask: bytes, xor: bytes) -> bytes:
    """Replace the first register's value v with (v & mask) ^ xor."""
    return _expression(
        "bitwise",
        *(_register(1, 0), _register(2, 0), number(3, len(mask))),
        *(nested(4, attribute(_DATA_VALUE, mask)), nested(5, attribute(_DATA_VALUE, xor))),
    )


@_remembered
def lookup(name: str, *, inner: bool = False) -> bytes:
    """Continue only if a set holds the key in the registers; for an `inner` set it ends with SET_ID."""
    return _expression("lookup", string(1, name), _register(2, 0), _set_id(inner=inner))


@_remembered
def lookup_none(name: str) -> bytes:
    """Continue only if a set does not hold the key in the registers."""
    return _expression("lookup", string(1, name), _register(2, 0), number(5, _INVERTED))


@_remembered
def lookup_value(name: str, *, inner: bool = False) -> bytes:
    """Load the value of the key in the registers from a map; continue only if there is one."""
    return _expression("lookup", string(1, name), _register(2, 0), _register(3, 0), _set_id(inner=inner))


def lookup_verdict(name: str) -> bytes:
    """Apply the verdict of the key in the registers from a map, if there is one."""
    return _expression("lookup", string(1, name), _register(2, 0), number(3, _VERDICT_REGISTER))


def immediate(value: bytes, register: int = 0) -> bytes:
    """Load a constant."""
    return _expression("immediate", _register(1, register), nested(2, attribute(_DATA_VALUE, value)))


def verdict(word: str, chain: str = "") -> bytes:
    """End the rule with a verdict; `chain` is the target of `goto` and `jump`."""
    return _expression("immediate", number(1, _VERDICT_REGISTER), nested(2, verdict_data(word, chain)))


def verdict_data(word: str, chain: str = "") -> bytes:
    """The attribute for a verdict, in rules as in maps."""
    code = attribute(_VERDICT_CODE, struct.pack("!i", VERDICTS[word]))
    return nested(_DATA_VERDICT, code + string(_VERDICT_CHAIN, chain) if chain else code)


def reject(family: Family) -> bytes:
    """Reject the packet with "port unreachable"."""
    return _expression("reject", number(1, _UNREACHABLE), attribute(2, _PORT_UNREACHABLE[family]))


def masquerade(flags: int) -> bytes:
    """Translate the source to the address of the outgoing interface."""
    return _expression("masq", number(1, flags) if flags else b"")


@_remembered
def dnat(family: Family, port_register: int) -> bytes:
    """Translate the destination to the address and port that registers hold, the address in the first."""
    return _expression(
        "nat",
        number(1, _DESTINATION_NAT),
        number(2, FAMILY_NUMBERS[family]),
        _register(3, 0),
        _register(5, port_register),
    )


@_remembered
def change_set(operation: int, name: str, seconds: int) -> bytes:
    """Add, refresh or delete the key in the registers in a set that packets fill; 0 seconds: no timeout."""
    timeout = attribute(6, struct.pack("!Q", seconds * 1000)) if seconds else b""
    return _expression("dynset", string(1, name), number(3, operation), _register(4, 0), timeout)


@_remembered
def log(prefix: str, group: int) -> bytes:
    """Send the packet's head to the listeners of a group of nflog, with a prefix of at most 127 bytes."""
    return _expression("log", attribute(1, struct.pack("!H", group)), string(2, prefix))


@_remembered
def limit(rate: int, burst: int) -> bytes:
    """Continue only below a number of packets a second."""
    packed = attribute(1, struct.pack("!Q", rate)), attribute(2, struct.pack("!Q", 1))
    return _expression("limit", *packed, number(3, burst), number(4, 0), number(5, 0))


@_remembered
def queue(queue_number: int) -> bytes:
    """Give the packet to the program that reads a queue; without one, drop it."""
    words = (queue_number, 1, 0)
    return _expression("queue", *(attribute(kind, struct.pack("!H", n)) for kind, n in enumerate(words, 1)))


@_remembered
def queue_by_target(queue_number: int) -> bytes:
    """The same by a target of iptables, for kernels without the expression `queue` (CONFIG_NFT_QUEUE).

    The layout is that of struct xt_NFQ_info_v3 (include/uapi/linux/netfilter/xt_NFQUEUE.h).
    """
    info = struct.pack("=HHHxx", queue_number, 1, 0)
    return _expression("target", string(1, "NFQUEUE"), number(2, 3), attribute(3, info))


@_remembered
def count() -> bytes:
    """Count the packets that come here, from zero."""
    return nested(_LIST_ELEMENT, counter())


def counter() -> bytes:
    """A counter that starts at zero, as the attributes of a set's expression."""
    zero = bytes(8)
    return string(_EXPRESSION_NAME, "counter") + nested(
        _EXPRESSION_DATA, attribute(1, zero), attribute(2, zero)
    )


def number(kind: int, value: int) -> bytes:
    """An attribute with a number of 32 bits in network order."""
    return attribute(kind, _U32.pack(value))


def string(kind: int, text: str) -> bytes:
    """An attribute with a string that ends with a zero."""
    return attribute(kind, text.encode() + b"\0")


def _set_id(*, inner: bool) -> bytes:
    return attribute(4, SET_ID) if inner else b""


def _register(kind: int, words: int) -> bytes:
    return number(kind, _FIRST_REGISTER + words)


def _expression(name: str, *attributes: bytes) -> bytes:
    return nested(_LIST_ELEMENT, string(_EXPRESSION_NAME, name), nested(_EXPRESSION_DATA, *attributes))
