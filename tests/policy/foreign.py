"""Datagrams that a process of the node sends with a source that is not the node: as IPVS forwards packets.

They pass the output hook with a source that is not the node's, and never the forward hook.
"""

import socket
import struct

from kproxy_lab.lab import Namespace
from kproxy_lab.lab.namespaces import family_of

PAYLOAD = b"foreign"
SOURCE_PORT = 40000


def send_foreign(node: Namespace, source: str, destination: str, port: int) -> None:
    """Send one datagram with `PAYLOAD`. Raises PermissionError if the output hook drops it."""
    family = family_of(destination)
    ends = socket.inet_pton(family, source) + socket.inet_pton(family, destination)
    length = 8 + len(PAYLOAD)
    datagram = struct.pack("!4H", SOURCE_PORT, port, length, 0) + PAYLOAD
    if family == socket.AF_INET6:
        checksum = _checksum(ends + struct.pack("!2I", length, socket.IPPROTO_UDP) + datagram) or 0xFFFF
        datagram = struct.pack("!4H", SOURCE_PORT, port, length, checksum) + PAYLOAD
        header = struct.pack("!IHBB", 6 << 28, length, socket.IPPROTO_UDP, 64)
    else:  # a checksum of 0 is none in IPv4; the kernel fills in that of the header
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0, 64, socket.IPPROTO_UDP, 0)
    with node.open_socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as opened:
        opened.sendto(header + ends + datagram, (destination, 0))


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
