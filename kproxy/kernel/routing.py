"""Routes and address types as the kernel gives them for one packet, over rtnetlink (RTM_GETROUTE).

The kernel's own answer takes policy rules, marks and reverse-path filters into account, which no reading of
the tables does. Layouts are those of include/uapi/linux/rtnetlink.h.
"""

import contextlib
import socket
import struct

import msgspec

from kproxy.kernel.netlink.addresses import NETLINK_ROUTE
from kproxy.kernel.netlink.messages import attribute, attributes
from kproxy.kernel.netlink.socket import NetlinkLost, NetlinkSocket

_RTM_GETROUTE = 26
_RTMSG = struct.Struct("=BBBBBBBBI")
"""family, lengths of destination and source, tos, table, protocol, scope, type, flags"""
_DESTINATION, _SOURCE, _INCOMING, _OUTGOING, _PREFERRED, _MARK = 1, 2, 3, 4, 7, 16
_NUMBER = struct.Struct("=I")
_LOCAL = 2  # RTN_LOCAL
_DISCARDING = frozenset({6, 7, 8, 9})
"""RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT, RTN_THROW."""


class KernelRoute(msgspec.Struct, frozen=True):
    """Where a packet goes: to the node (`local`) or out of `interface`; `source` is the preferred address."""

    interface: str
    local: bool
    source: str


def ask(
    destination: str, source: str = "", mark: int = 0, interface: str | None = None
) -> KernelRoute | None:
    """The route of a packet in the calling thread's network namespace; `interface` is where it arrives.

    None if there is none, or if the kernel discards such packets. Raises NetlinkLost.
    """
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
    to = socket.inet_pton(family, destination)
    parts = [attribute(_DESTINATION, to)]
    if source:
        parts.append(attribute(_SOURCE, socket.inet_pton(family, source)))
    if mark:
        parts.append(attribute(_MARK, _NUMBER.pack(mark)))
    if interface:
        with contextlib.suppress(OSError):
            parts.append(attribute(_INCOMING, _NUMBER.pack(socket.if_nametoindex(interface))))
    bits = len(to) * 8
    head = _RTMSG.pack(family, bits, bits if source else 0, 0, 0, 0, 0, 0, 0)
    with contextlib.closing(NetlinkSocket(NETLINK_ROUTE)) as sock:
        try:
            answers = sock.ask(_RTM_GETROUTE, 0, head + b"".join(parts))
        except NetlinkLost:
            raise
        except OSError:
            return None
    return _route(family, answers[0]) if answers else None


def _route(family: int, answer: bytes) -> KernelRoute | None:
    kind = _RTMSG.unpack_from(answer)[7]
    if kind in _DISCARDING:
        return None
    held = attributes(answer[_RTMSG.size :])
    interface = ""
    with contextlib.suppress(OSError, KeyError):
        interface = socket.if_indextoname(_NUMBER.unpack(held[_OUTGOING])[0])
    preferred = held.get(_PREFERRED)
    source = "" if preferred is None else socket.inet_ntop(family, preferred)
    return KernelRoute(interface, kind == _LOCAL, source)
