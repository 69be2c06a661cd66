"""Interface addresses over rtnetlink; own messages, because a node in IPVS mode has thousands of addresses.

Layouts are those of include/uapi/linux/if_addr.h and rtnetlink.h.
"""

import socket
import struct
from collections.abc import Iterator

from kproxy.addresses import parse_ip
from kproxy.kernel.netlink.messages import attribute, attributes
from kproxy.kernel.netlink.socket import NetlinkSocket

NETLINK_ROUTE = 0
RTM_NEWADDR, RTM_DELADDR = 20, 21

_RTM_GETADDR = 22
_IFADDRMSG = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, interface index
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFA_F_NODAD = 0x02


def dump(
    sock: NetlinkSocket, family: int = socket.AF_UNSPEC, interface: int = 0
) -> Iterator[tuple[int, str]]:
    """Yield (interface index, canonical address) of every address, optionally of one family or interface.

    Raises OSError.
    """
    for answer in sock.dump(_RTM_GETADDR, _IFADDRMSG.pack(family, 0, 0, 0, interface)):
        index, ip = subject(answer)
        # Kernels before 4.20 do not filter by interface.
        if ip is not None and interface in {0, index}:
            yield index, ip


def subject(content: bytes) -> tuple[int, str | None]:
    """Return the interface index and the address of an address message, an answer or an event."""
    family, _, _, _, index = _IFADDRMSG.unpack_from(content)
    held = attributes(content[_IFADDRMSG.size :])
    packed = held.get(_IFA_LOCAL, held.get(_IFA_ADDRESS))
    return index, None if packed is None else parse_ip(socket.inet_ntop(family, packed))[1]


def payload(ip: str, interface: int) -> bytes:
    """The payload of RTM_NEWADDR and RTM_DELADDR for a host address, without duplicate address detection."""
    if ":" in ip:
        packed = socket.inet_pton(socket.AF_INET6, ip)
        header = _IFADDRMSG.pack(socket.AF_INET6, 128, _IFA_F_NODAD, 0, interface)
    else:
        packed = socket.inet_aton(ip)
        header = _IFADDRMSG.pack(socket.AF_INET, 32, 0, 0, interface)
    return header + attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)
