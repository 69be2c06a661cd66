"""The addresses of this host's interfaces, and events of their changes."""

import contextlib
import errno
import socket
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from kproxy.addresses import is_link_local
from kproxy.kernel.netlink import addresses
from kproxy.kernel.netlink.messages import each_message
from kproxy.kernel.netlink.socket import NetlinkSocket

_RTMGRP_IPV4_IFADDR = 0x10
_RTMGRP_IPV6_IFADDR = 0x100
_RECEIVE_BYTES = 1 << 16
_MOST_DATAGRAMS = 1000
"""Greatest number of events per read, so that a read ends while events keep coming."""


def local_addresses(exclude: Collection[str] = ()) -> tuple[str, ...]:
    """Return all addresses of all interfaces except the excluded ones, in canonical form, sorted.

    Raises OSError.
    """
    excluded = {index for name in exclude if (index := _index(name)) is not None}
    with contextlib.closing(NetlinkSocket(addresses.NETLINK_ROUTE)) as sock:
        return tuple(sorted({ip for index, ip in addresses.dump(sock) if index not in excluded}))


def exists(name: str) -> bool:
    """Whether there is an interface of this name."""
    return _index(name) is not None


@dataclass(frozen=True, slots=True)
class AddressNews:
    """Changes of addresses since the last read.

    `elsewhere`: an interface other than the watched device gained or lost an address. `device` maps changed
    addresses of the device to whether it has them now. `lost`: events did not fit the socket's buffer.
    """

    elsewhere: bool = False
    device: Mapping[str, bool] = field(default_factory=dict)
    lost: bool = False


MISSED = AddressNews(elsewhere=True, lost=True)
"""The value before events are received: anything may have changed."""


class AddressEvents:
    """Events of interfaces gaining or losing addresses; `fileno` is readable when there are events."""

    def __init__(self, events: socket.socket, device: str) -> None:
        self._events = events
        self._device = device
        self._indexes: set[int] = set()
        self._learn_index()

    def fileno(self) -> int:
        """The descriptor, for select or poll."""
        return self._events.fileno()

    def drain(self) -> AddressNews:
        """Read the pending events; never blocks. Raises OSError.

        Events of a deleted device have its former index, so former indexes are kept; the kernel does not
        reuse them.
        """
        self._learn_index()
        device: dict[str, bool] = {}
        elsewhere = lost = False
        for _ in range(_MOST_DATAGRAMS):
            try:
                datagram = self._events.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                elsewhere = lost = True
                continue
            for kind, _, _, content in each_message(datagram):
                of, ip = addresses.subject(content)
                if of not in self._indexes:
                    elsewhere = True
                elif ip is not None and not is_link_local(ip):
                    device[ip] = kind == addresses.RTM_NEWADDR
        return AddressNews(elsewhere, device, lost)

    def _learn_index(self) -> None:
        index = _index(self._device)
        if index is not None:
            self._indexes.add(index)


@contextlib.contextmanager
def address_events(device: str) -> Iterator[AddressEvents]:
    """Subscribe to events of all interfaces' addresses; those of one device are separate (rtnetlink(7))."""
    family = socket.AF_NETLINK
    with socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, addresses.NETLINK_ROUTE) as events:
        events.bind((0, _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
        yield AddressEvents(events, device)


def _index(name: str) -> int | None:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None
