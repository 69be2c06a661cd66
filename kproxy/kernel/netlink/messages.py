"""Netlink messages as bytes: headers, attributes, and the contents of answers.

Layouts are those of the kernel's include/uapi/linux/netlink.h. Everything here is pure.
"""

import struct
from collections.abc import Iterator

NLM_F_REQUEST = 0x01
NLM_F_ACK = 0x04
NLM_F_DUMP_INTR = 0x10
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400

NLMSG_ERROR = 2
NLMSG_DONE = 3
NLMSG_OVERRUN = 4

NLA_F_NESTED = 0x8000
NLA_F_NET_BYTEORDER = 0x4000
_NLA_TYPE_MASK = 0x3FFF

HEADER = struct.Struct("=IHHII")
"""length, type, flags, sequence, port"""
NLA = struct.Struct("=HH")
"""length, type"""
_CODE = struct.Struct("=i")


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return NLA.pack(NLA.size + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds others."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def attributes(body: bytes) -> dict[int, bytes]:
    """The attributes of a message body, by type; flags of the type (nested, byte order) are dropped."""
    return dict(every_attribute(body))


def every_attribute(body: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes of a body in order, including repeated types."""
    offset = 0
    while offset + NLA.size <= len(body):
        length, kind = NLA.unpack_from(body, offset)
        if length < NLA.size or offset + length > len(body):
            return
        yield kind & _NLA_TYPE_MASK, body[offset + NLA.size : offset + length]
        offset += (length + 3) & ~3


def message(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    """A whole message; `payload` is a multiple of four bytes, as attributes make it."""
    return HEADER.pack(HEADER.size + len(payload), kind, flags, sequence, 0) + payload


def each_message(datagram: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(type, flags, sequence, payload) of every message in a datagram."""
    offset = 0
    while offset + HEADER.size <= len(datagram):
        length, kind, flags, sequence, _port = HEADER.unpack_from(datagram, offset)
        if length < HEADER.size:
            return
        yield kind, flags, sequence, datagram[offset + HEADER.size : offset + length]
        offset += (length + 3) & ~3


def error_code(payload: bytes) -> int:
    """The errno in an NLMSG_ERROR or NLMSG_DONE message; 0 is an acknowledgement."""
    return -_CODE.unpack_from(payload)[0] if len(payload) >= _CODE.size else 0
