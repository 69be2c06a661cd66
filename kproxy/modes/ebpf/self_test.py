"""Whether the socket table has an effect: a connection of this process to a frontend made for the purpose.

A program that is attached is not always asked: the cgroup may be another one than it seems, or a program of
others may decide after it. The frontend is a service like any other, so that it passes everything that
services pass. It has an address to which no packet is ever sent, and leads to a listener of this process.
"""

import contextlib
import errno
import socket

from kproxy.addresses import Family
from kproxy.backends.ebpf.backend import SocketBackend
from kproxy.plan.model import EndpointPlan, PortPlan, Protocol, ServicePlan

KEY = "(self-test)"
"""The key of the service; those of others are `namespace/name`."""

ADDRESSES = {Family.IPV4: "192.0.0.8", Family.IPV6: "100:0:0:1::8"}
"""Dummy addresses, never a destination of packets: RFC 7600 (IPv4), RFC 9780 (IPv6)."""

PORT = 10256
SECONDS = 1.0
"""How long the connection may take; on the loopback interface it is made at once."""

_LOOPBACK = {Family.IPV4: "127.0.0.1", Family.IPV6: "::1"}
_KINDS = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_UNTESTABLE = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


def self_test(backend: SocketBackend) -> str | None:
    """Connect through the table; return why that failed, or None.

    Also None where this network namespace has no loopback address of the family. Nothing stays in the maps.
    """
    family = backend.family
    try:
        listener = socket.create_server((_LOOPBACK[family], 0), family=_KINDS[family], backlog=1)
    except OSError as error:
        return None if error.errno in _UNTESTABLE else f"no listener for the self-test: {error.strerror}"
    with listener:
        backend.update([_service(family, listener.getsockname()[1])])
        try:
            report = backend.sync()
            status = report.services.get(KEY)
            reason = report.error or (status and status.reason)
            return f"the self-test is not in the maps: {reason}" if reason else arrives(family, listener)
        finally:
            backend.update([ServicePlan(KEY, family)])
            backend.sync()


def arrives(family: Family, listener: socket.socket) -> str | None:
    """Connect to the address of the self-test; return why it does not reach the listener, or None."""
    address = ADDRESSES[family]
    failed = f"the self-test, a connection to {address} port {PORT}, does not arrive"
    with socket.socket(_KINDS[family], socket.SOCK_STREAM) as client:
        client.settimeout(SECONDS)
        with contextlib.suppress(OSError):
            # Without the table no packet leaves the node.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_DONTROUTE, 1)
        try:
            client.connect((address, PORT))
            listener.settimeout(SECONDS)
            accepted, peer = listener.accept()
        except OSError as error:
            return f"{failed}: {error.strerror or error}; programs of the socket table have no effect"
        with accepted:
            if peer[1] != client.getsockname()[1]:
                return f"{failed}: another connection did"
    return None


def _service(family: Family, port: int) -> ServicePlan:
    endpoints = (EndpointPlan(_LOOPBACK[family], port, local=True),)
    found = PortPlan(
        f"{KEY}:{family}",
        Protocol.TCP,
        ADDRESSES[family],
        PORT,
        cluster=endpoints,
        reachable=endpoints,
        has_endpoints=True,
        endpoints=1,
    )
    return ServicePlan(KEY, family, ports=(found,))
