"""The addresses of this host's interfaces, and notice of their changes without polling."""

import contextlib
import errno
import socket
import struct
from collections.abc import Collection, Iterator

from pyroute2 import IPRoute

from kproxy.addresses import parse_ip
from kproxy.kernel.netlink.messages import each_message

_RTMGRP_IPV4_IFADDR = 0x10
_RTMGRP_IPV6_IFADDR = 0x100
_NETLINK_ROUTE = 0
_IFADDRMSG = struct.Struct("=BBBBI")
_RECEIVE_BYTES = 1 << 16


def local_addresses(exclude: Collection[str] = ()) -> tuple[str, ...]:
    """Every address of every interface but the excluded ones, in canonical form, ordered.

    Raises OSError or NetlinkError.
    """
    left_out = {index for name in exclude if (index := _index(name)) is not None}
    with IPRoute() as route:
        found = {
            parse_ip(address)[1]
            for message in route.get_addr()
            if message["index"] not in left_out
            if (address := message.get("IFA_LOCAL") or message.get("IFA_ADDRESS"))
        }
    return tuple(sorted(found))


class AddressEvents:
    """Tells when an interface gains or loses an address; readable (`fileno`) when there is news."""

    def __init__(self, events: socket.socket, exclude: Collection[str]) -> None:
        self._events = events
        self._exclude = exclude

    def fileno(self) -> int:
        """For select."""
        return self._events.fileno()

    def drain(self) -> bool:
        """Read the news; whether any of it is about an interface that is not excluded."""
        left_out = {_index(name) for name in self._exclude}
        try:
            datagram = self._events.recv(_RECEIVE_BYTES)
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                return True
            raise
        return any(
            _IFADDRMSG.unpack_from(content)[4] not in left_out for _, _, _, content in each_message(datagram)
        )


@contextlib.contextmanager
def address_events(exclude: Collection[str] = ()) -> Iterator[AddressEvents]:
    """News of all interfaces' addresses but those of excluded ones (rtnetlink(7))."""
    family = socket.AF_NETLINK
    with socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_ROUTE) as events:
        events.bind((0, _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
        yield AddressEvents(events, exclude)


def _index(name: str) -> int | None:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None
