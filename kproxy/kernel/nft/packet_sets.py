"""Read a set that packets fill: each element with its counter, and how long ago a packet made it."""

import errno
import struct
from collections.abc import Iterator

import msgspec

from kproxy.addresses import Family
from kproxy.kernel.netlink.messages import attribute, attributes, every_attribute
from kproxy.kernel.netlink.socket import NetlinkSocket
from kproxy.kernel.nft.expressions import FAMILY_NUMBERS
from kproxy.kernel.nft.messages import NFGENMSG, SUBSYSTEM

_NETLINK_NETFILTER = 12
_GET_ELEMENTS = 13
_TABLE, _SET, _LIST = 1, 2, 3
_KEY, _TIMEOUT, _EXPIRATION, _EXPRESSION = 1, 4, 5, 7  # NFTA_SET_ELEM_*
_VALUE = 1
_EXPRESSION_DATA = 2
_PACKETS = 2
_MILLISECONDS = struct.Struct("!Q")


class PacketElement(msgspec.Struct, frozen=True, gc=False):
    """An element: its key as packed by the kernel, packets, and the seconds since it was added or updated."""

    key: bytes
    packets: int
    age: float


def packet_elements(family: Family, table: str, name: str, timeout: float) -> list[PacketElement]:
    """The elements of a set with a timeout in seconds; none if there is no such set. Raises OSError."""
    body = NFGENMSG.pack(FAMILY_NUMBERS[family], 0, 0)
    body += attribute(_TABLE, table.encode() + b"\0") + attribute(_SET, name.encode() + b"\0")
    sock = NetlinkSocket(_NETLINK_NETFILTER)
    try:
        answers = sock.dump(SUBSYSTEM << 8 | _GET_ELEMENTS, body, repeat=False)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return []
        raise
    finally:
        sock.close()
    return [each for answer in answers for each in _elements(answer[NFGENMSG.size :], timeout)]


def _elements(content: bytes, timeout: float) -> Iterator[PacketElement]:
    for _, element in every_attribute(attributes(content).get(_LIST, b"")):
        held = attributes(element)
        key = attributes(held.get(_KEY, b"")).get(_VALUE, b"")
        counter = attributes(attributes(held.get(_EXPRESSION, b"")).get(_EXPRESSION_DATA, b""))
        packets = int.from_bytes(counter.get(_PACKETS, b""), "big")
        whole = _milliseconds(held.get(_TIMEOUT), timeout)
        left = _milliseconds(held.get(_EXPIRATION), whole)
        yield PacketElement(key, packets, max(0.0, whole - left))


def _milliseconds(packed: bytes | None, otherwise: float) -> float:
    """Seconds of an attribute."""
    return otherwise if packed is None else _MILLISECONDS.unpack(packed)[0] / 1000
