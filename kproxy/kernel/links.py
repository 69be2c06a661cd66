"""The addresses of this host's interfaces, and notice of their changes without polling."""

import contextlib
import errno
import socket
from collections.abc import Collection, Iterator

from kproxy.kernel.netlink import addresses
from kproxy.kernel.netlink.messages import each_message
from kproxy.kernel.netlink.socket import NetlinkSocket

_RTMGRP_IPV4_IFADDR = 0x10
_RTMGRP_IPV6_IFADDR = 0x100
_RECEIVE_BYTES = 1 << 16


def local_addresses(exclude: Collection[str] = ()) -> tuple[str, ...]:
    """Every address of every interface but the excluded ones, in canonical form, ordered.

    Raises OSError.
    """
    left_out = {index for name in exclude if (index := _index(name)) is not None}
    with contextlib.closing(NetlinkSocket(addresses.NETLINK_ROUTE)) as sock:
        return tuple(sorted({ip for index, ip in addresses.dump(sock) if index not in left_out}))


def exists(name: str) -> bool:
    """Whether there is an interface of this name."""
    return _index(name) is not None


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
            addresses.interface_of(content) not in left_out for _, _, _, content in each_message(datagram)
        )


@contextlib.contextmanager
def address_events(exclude: Collection[str] = ()) -> Iterator[AddressEvents]:
    """News of all interfaces' addresses but those of excluded ones (rtnetlink(7))."""
    family = socket.AF_NETLINK
    with socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, addresses.NETLINK_ROUTE) as events:
        events.bind((0, _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
        yield AddressEvents(events, exclude)


def _index(name: str) -> int | None:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None
