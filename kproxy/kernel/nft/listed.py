"""Rules in the form in which the kernel lists them, so that rules found in a table can be recognised.

The kernel lists a rule in other bytes than it was sent: with older numbers of registers, with attributes that
were left out, and without the flag of nested ones. A rule that does not look as expected, because it was
changed or because another kernel lists it in another way, counts as unknown, and unknown rules are written
again. So this need not know every kernel; equal bytes are always equal rules. Orders and defaults are those
of the `dump` functions in the kernel's net/netfilter/nft_*.c.
"""

import functools
import hashlib
import re
import struct
from collections.abc import Sequence

from kproxy.addresses import Family
from kproxy.kernel.netlink.messages import attribute, attributes, every_attribute
from kproxy.kernel.nft.hooks import parse_hook
from kproxy.kernel.nft.rules import compile_rule

_NAME, _CONTENT = 1, 2  # of an expression
_ELEMENT = 1  # NFTA_LIST_ELEM
_FIRST_REGISTER, _FIRST_OLD_REGISTER = 8, 1  # NFT_REG32_00, NFT_REG_1
_WORDS = 4
"""Registers of NFT_REG32_* in one with an older number."""
_NAT_FLAGS = struct.pack("!I", 1 | 2)  # NF_NAT_RANGE_MAP_IPS, NF_NAT_RANGE_PROTO_SPECIFIED
_ZERO = bytes(4)
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2  # NFTA_HOOK_*
_ACCEPT = struct.pack("!I", 1)  # the policy NF_ACCEPT

_COUNTERS = re.compile(rb"(\x0c\0\x01\0counter\0\x1c\0\x02\0\x0c\0\x01\0).{8}(\x0c\0\x02\0).{8}", re.DOTALL)
"""A counter in a listed rule, on machines that need no attribute for alignment."""

_REGISTERS = {
    "payload": (1,),
    "meta": (1, 3),
    "ct": (1,),
    "fib": (1,),
    "numgen": (1,),
    "byteorder": (1, 2),
    "cmp": (1,),
    "bitwise": (1, 2),
    "lookup": (2, 3),
    "immediate": (1,),
    "nat": (3, 5),
    "dynset": (4,),
}
"""The attributes that hold registers, by expression."""

_ADDED = {"lookup": {5: _ZERO}, "bitwise": {6: _ZERO}, "dynset": {6: bytes(8), 9: _ZERO}}
"""Attributes that the kernel lists although they were not sent: flags, the operation, and no timeout."""

_ORDER = {
    "log": (2, 1),
    "meta": (2, 1, 3),
    "bitwise": (1, 2, 3, 6, 4, 5),
    "dynset": (4, 3, 1, 6, 9),
}
"""Orders of attributes other than by number."""


def digest(content: bytes) -> str:
    """What stands for the content of a rule in a reading."""
    return hashlib.blake2b(content, digest_size=12).hexdigest()


def without_counts(content: bytes) -> bytes:
    """The content of a listed rule with counters at zero, as they were written."""
    return _COUNTERS.sub(rb"\1\0\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0\0", content)


def listed_hook(text: str) -> str:
    """The line of a base chain in a reading, from `type filter hook forward priority -5;`."""
    kind, number, priority = parse_hook(text)
    place = attribute(_HOOK_NUMBER, struct.pack("!I", number))
    place += attribute(_HOOK_PRIORITY, struct.pack("!i", priority))
    return hook_line(kind, place, _ACCEPT)


def hook_line(kind: str, place: bytes, policy: bytes) -> str:
    """What stands for the hook, the priority and the policy of a base chain in a reading."""
    return f"type {kind} hook {place.hex()} policy {policy.hex()}"


def listed(family: Family, rules: Sequence[str]) -> tuple[str, ...] | None:
    """The digest of each rule as the kernel lists it; None if one has an anonymous set, whose name varies.

    Raises ValueError, as compile_rule does.
    """
    found = []
    for rule in rules:
        compiled = compile_rule(family, rule)
        if compiled.sets:
            return None
        found.append(digest(b"".join(map(_statement, compiled.statements))))
    return tuple(found)


@functools.lru_cache(maxsize=4096)
def _statement(encoded: bytes) -> bytes:
    """The expressions of a statement; rules have many of them in common."""
    return b"".join(_listed(expression) for _, expression in every_attribute(encoded))


@functools.lru_cache(maxsize=1024)
def _listed(expression: bytes) -> bytes:
    """One expression as the kernel lists it; rules have most of them in common."""
    parts = attributes(expression)
    name = parts[_NAME].rstrip(b"\0").decode()
    held = attributes(parts.get(_CONTENT, b""))
    for kind in _REGISTERS.get(name, ()):
        if kind in held:
            held[kind] = _register(held[kind])
    if name == "nat":
        held |= {4: held[3], 6: held[5], 7: _NAT_FLAGS}
    elif name == "immediate":
        held[2] = b"".join(attribute(*each) for each in every_attribute(held[2]))
    held = _ADDED.get(name, {}) | held
    order = [kind for kind in _ORDER.get(name, sorted(held)) if kind in held]
    content = b"".join(attribute(kind, held[kind]) for kind in order)
    return attribute(_ELEMENT, attribute(_NAME, parts[_NAME]) + attribute(_CONTENT, content))


def _register(number: bytes) -> bytes:
    """A register's number as the kernel prints it: at multiples of sixteen bytes the older one."""
    words = int.from_bytes(number, "big") - _FIRST_REGISTER
    if words < 0 or words % _WORDS:
        return number
    return struct.pack("!I", _FIRST_OLD_REGISTER + words // _WORDS)
