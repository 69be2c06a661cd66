"""The data types of nftables that kproxy uses: their numbers, lengths, and values from text to bytes.

The numbers of types and byte orders are those of nftables' include/datatype.h. In concatenations each value
begins at a multiple of four bytes.
"""

import functools
import ipaddress
import socket
import struct
from collections.abc import Callable, Iterable, Sequence

import msgspec

_TYPE_BITS = 6
VERDICT_TYPE = 0xFFFFFF00
"""NFT_DATA_VERDICT, the data type of verdict maps."""
VERDICT_BYTES = 16
"""The length of a verdict in nft's declarations, in bytes."""


class Field(msgspec.Struct, frozen=True):
    """A data type: its number, size in bytes, byte order (1: host, 2: network), and encoder of its text.

    `width`: the number of bits of a type that can have ranges; else 0.
    """

    number: int
    size: int
    order: int
    encode: Callable[[str], bytes]
    width: int = 0

    @property
    def padded(self) -> int:
        """Its size in a concatenation, in bytes."""
        return (self.size + 3) & ~3


def host_word(number: int) -> bytes:
    """Four bytes in host order."""
    return struct.pack("=I", number)


@functools.cache
def _protocol(text: str) -> bytes:
    return struct.pack("!B", int(text))


def _port(text: str) -> bytes:
    return struct.pack("!H", int(text))


def _number(text: str) -> bytes:
    return host_word(int(text))


def _ipv6(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6, text)


def _ipv4(text: str) -> bytes:
    # Not inet_aton, which takes "10.1" and octal numbers.
    return socket.inet_pton(socket.AF_INET, text)


INTEGER = Field(4, 4, 1, _number)
IPV4 = Field(7, 4, 2, _ipv4, 32)
IPV6 = Field(8, 16, 2, _ipv6, 128)
PROTOCOL = Field(12, 1, 1, _protocol)
PORT = Field(13, 2, 2, _port, 16)

BY_NAME = {
    "integer": INTEGER,
    "ipv4_addr": IPV4,
    "ipv6_addr": IPV6,
    "inet_proto": PROTOCOL,
    "inet_service": PORT,
}
"""Fields by nftables' names of their types."""


def type_number(fields: Sequence[Field]) -> int:
    """The number of a concatenation's type: six bits for each field."""
    return functools.reduce(lambda number, field: number << _TYPE_BITS | field.number, fields, 0)


def total_length(fields: Sequence[Field]) -> int:
    """The size of a value in bytes; a single field is not padded."""
    return fields[0].size if len(fields) == 1 else sum(field.padded for field in fields)


def pad(value: bytes) -> bytes:
    """A value with zeros up to a multiple of four bytes."""
    return value + b"\0" * (-len(value) % 4)


def bounds(text: str, field: Field) -> tuple[bytes, bytes]:
    """The first and last of `address`, `address/length`, `first-last`, or of `port` and `first-last`."""
    first, dash, last = text.partition("-")
    if dash:
        return field.encode(first), field.encode(last)
    address, _, length = text.partition("/")
    start = field.encode(address)
    if not length:
        return start, start
    host = (1 << field.width - int(length)) - 1
    number = int.from_bytes(start, "big")
    size = field.width // 8
    return (number & ~host).to_bytes(size, "big"), (number | host).to_bytes(size, "big")


def merged(ranges: Iterable[tuple[bytes, bytes]]) -> list[tuple[int, int]]:
    """Inclusive ranges as numbers, sorted; ranges that overlap or touch are merged."""
    found: list[tuple[int, int]] = []
    for first, last in sorted((int.from_bytes(a, "big"), int.from_bytes(b, "big")) for a, b in ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(last, found[-1][1])
        else:
            found.append((first, last))
    return found


def network(text: str) -> tuple[bytes, int]:
    """Return the network address and the length of a prefix."""
    found = ipaddress.ip_network(text, strict=False)
    return found.network_address.packed, found.prefixlen
