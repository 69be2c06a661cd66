"""The addresses of this host's interfaces, and notice of their changes without polling."""

import contextlib
import socket
from collections.abc import Iterator

from pyroute2 import IPRoute

from kproxy.addresses import parse_ip

_RTMGRP_IPV4_IFADDR = 0x10
_RTMGRP_IPV6_IFADDR = 0x100
_NETLINK_ROUTE = 0


def local_addresses() -> tuple[str, ...]:
    """Every address of every interface in canonical form, ordered. Raises OSError or NetlinkError."""
    with IPRoute() as route:
        found = {
            parse_ip(address)[1]
            for message in route.get_addr()
            if (address := message.get("IFA_LOCAL") or message.get("IFA_ADDRESS"))
        }
    return tuple(sorted(found))


@contextlib.contextmanager
def address_events() -> Iterator[socket.socket]:
    """A socket that becomes readable when an interface gains or loses an address (rtnetlink(7))."""
    family = socket.AF_NETLINK
    with socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_ROUTE) as events:
        events.bind((0, _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
        yield events
