"""Echo servers that report their pod and the client's address.

Each line (TCP, SCTP) or datagram (UDP) is answered with one line of JSON:

    {"pod": "local-0", "peer": "192.0.2.10:40000", "address": "10.244.1.10", "port": 8080, "text": "..."}

`peer` is the other side as the server saw it, after every translation on the way; `address` and `port` are
the server's own end; `text` is the line it was sent.
"""

import asyncio
import json
import socket
from typing import Any, Final, Literal, cast

from kproxy_lab.lab.namespaces import family_of, new_socket
from kproxy_lab.lab.topology import Pod

Protocol = Literal["TCP", "UDP", "SCTP"]

SOCKET_KINDS: Final[dict[Protocol, tuple[socket.SocketKind, int]]] = {
    "TCP": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "UDP": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "SCTP": (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}
BACKLOG: Final = 1024
LONGEST_LINE: Final = 1 << 16


def host_port(address: str, port: int) -> str:
    """`ip:port`, with brackets around an IPv6 address."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class Server:
    """One pod's server for one protocol and port, on one socket per address."""

    def __init__(self, pod: Pod, protocol: Protocol, port: int) -> None:
        self.pod = pod
        self.protocol = protocol
        self.port = port
        self.answered = 0
        self._listeners: list[asyncio.Server] = []
        self._transports: set[asyncio.Transport | asyncio.DatagramTransport] = set()

    def __repr__(self) -> str:
        return f"Server({self.pod.name} {self.protocol} {self.port})"

    async def start(self, addresses: tuple[str, ...]) -> None:
        """Listen on `addresses` inside the pod; on the lab's loop only. Raises OSError, listening on none."""
        loop = asyncio.get_running_loop()
        try:
            for address in addresses:
                bound = await asyncio.wrap_future(self.pod.namespace.submit(self._bind, address))
                if self.protocol == "UDP":
                    await loop.create_datagram_endpoint(lambda: _EchoDatagrams(self), sock=bound)
                else:
                    listener = await loop.create_server(lambda: _EchoLines(self), sock=bound, backlog=BACKLOG)
                    self._listeners.append(listener)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop listening and drop the open connections; on the lab's loop only."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        for transport in tuple(self._transports):
            transport.abort()

    def opened(self, transport: asyncio.Transport | asyncio.DatagramTransport) -> None:
        """Note an open connection or datagram socket."""
        self._transports.add(transport)

    def closed(self, transport: asyncio.Transport | asyncio.DatagramTransport) -> None:
        """Forget it again."""
        self._transports.discard(transport)

    def answer(self, line: bytes, peer: tuple[Any, ...], own: tuple[Any, ...]) -> bytes:
        """The JSON line for one request from socket address `peer` that arrived at `own`."""
        self.answered += 1
        reply = {
            "pod": self.pod.name,
            "peer": host_port(peer[0], peer[1]),
            "address": own[0],
            "port": own[1],
            "text": line.decode("utf-8", "replace").rstrip("\r\n"),
        }
        return json.dumps(reply).encode() + b"\n"

    def _bind(self, address: str) -> socket.socket:
        kind, proto = SOCKET_KINDS[self.protocol]
        family = family_of(address)
        bound = new_socket(family, kind, proto)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound.bind((address, self.port))
        except BaseException:
            bound.close()
            raise
        return bound


class _EchoLines(asyncio.Protocol):
    def __init__(self, server: Server) -> None:
        self._server = server
        self._pending = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # asyncio's own derives from less
        self._server.opened(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._server.closed(self._transport)

    def data_received(self, data: bytes) -> None:
        *lines, self._pending = (self._pending + data).split(b"\n")
        if len(self._pending) > LONGEST_LINE:
            self._transport.abort()
            return
        peer = self._transport.get_extra_info("peername")
        own = self._transport.get_extra_info("sockname")
        self._transport.writelines([self._server.answer(line, peer, own) for line in lines])


class _EchoDatagrams(asyncio.DatagramProtocol):
    def __init__(self, server: Server) -> None:
        self._server = server
        self._transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(
            "asyncio.DatagramTransport", transport
        )  # asyncio's own do not all derive from it
        self._server.opened(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._server.closed(self._transport)

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        own = self._transport.get_extra_info("sockname")
        self._transport.sendto(self._server.answer(data, addr, own), addr)
