"""Clients: connect from a namespace, send one line, and return the precise outcome.

An outcome is an `Answer` or one of the `AskError`s. These distinguish a port that refuses (TCP reset, ICMP
port unreachable, as REJECT rules send), silence (DROP, a black hole) and a network that refuses.
"""

import asyncio
import contextlib
import errno
import itertools
import json
import os
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from kproxy_lab.lab.namespaces import Namespace, family_of, new_socket
from kproxy_lab.lab.servers import LONGEST_LINE, SOCKET_KINDS, Protocol, host_port

IP_RECVERR: Final = 11  # linux/in.h
IP_BIND_ADDRESS_NO_PORT: Final = 24  # linux/in.h: pick the source port at connect(), per destination
IPV6_RECVERR: Final = 25  # linux/in6.h
REFUSED: Final = {errno.ECONNREFUSED, errno.ENOPROTOOPT}
UNREACHABLE: Final = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES, errno.EPERM, errno.EPROTO}
BROKEN: Final = {errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED}

RESEND: Final = 1.0
"""Seconds until a datagram that is not answered is sent once more, over the same socket."""


class AskError(Exception):
    """A request was not answered; `str()` names protocol and destination."""


class Refused(AskError):
    """The destination refused: a TCP reset to the SYN, or ICMP port unreachable (ECONNREFUSED)."""


class NoAnswer(AskError):
    """Nothing came back in time."""


class Unreachable(AskError):
    """The network refused: no route, host or network unreachable, administratively prohibited."""


class Broken(AskError):
    """The connection had been established and was then reset or closed."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's answer, and the times until it arrived.

    `source_ip_seen` and `source_port_seen` are the client as the server saw it; `address_seen` and
    `port_seen` the server's own end, thus after any translation; `local_ip` and `local_port` the client's
    own end. `connected` and `elapsed` are seconds from the first packet: until the connection stood (0 for
    UDP and for later exchanges), and until the answer was complete.
    """

    pod: str
    source_ip_seen: str
    source_port_seen: int
    address_seen: str
    port_seen: int
    local_ip: str
    local_port: int
    text: str
    connected: float
    elapsed: float


@dataclass(frozen=True, slots=True)
class Target:
    """Destination and origin of a request. `source_port` 0 and `source_ip` None: the kernel chooses."""

    namespace: Namespace
    ip: str
    port: int
    protocol: Protocol = "TCP"
    source_ip: str | None = None
    source_port: int = 0

    def __str__(self) -> str:
        return f"{self.protocol} {host_port(self.ip, self.port)} from {self.namespace.name}"


class Conversation:
    """One open socket to a target, over which lines are exchanged; all methods on the lab's loop."""

    def __init__(self, target: Target, opened: socket.socket) -> None:
        self.target = target
        self._socket = opened
        self._pending = b""
        self._tokens = itertools.count(1)

    @classmethod
    async def open(cls, target: Target) -> "Conversation":
        """Make the socket inside the target's namespace, bind it and connect it.

        With a `source_port` the socket closes with a reset instead of lingering in TIME_WAIT, so that the
        port can be used again at once. Raises an `AskError`, or OSError for errors of the caller.
        """
        kind, proto = SOCKET_KINDS[target.protocol]
        family = family_of(target.ip)
        opened = await asyncio.wrap_future(target.namespace.submit(new_socket, family, kind, proto))
        try:
            _bind(opened, target)
            report_icmp_errors(opened, on=True)
            with outcomes(target, established=False):
                await _connect(opened, (target.ip, target.port))
            if target.protocol != "UDP":
                report_icmp_errors(opened, on=False)  # an established connection survives them
        except BaseException:
            opened.close()
            raise
        return cls(target, opened)

    @property
    def local(self) -> tuple[str, int]:
        """Address and port of this end."""
        name = self._socket.getsockname()
        return name[0], name[1]

    async def exchange(self, text: str = "") -> Answer:
        """Send one line and wait for its answer; a datagram is sent again as resolvers do.

        Raises an `AskError`; `text` must hold no line break.
        """
        start = time.perf_counter()
        token = f"{next(self._tokens)}:{text}"
        loop = asyncio.get_running_loop()
        datagrams = self.target.protocol == "UDP"
        if datagrams:
            report_icmp_errors(self._socket, on=False)  # errors of earlier datagrams
            report_icmp_errors(self._socket, on=True)
        with outcomes(self.target, established=not datagrams):
            while True:
                await loop.sock_sendall(self._socket, f"{token}\n".encode())
                try:
                    async with asyncio.timeout(RESEND if datagrams else None):
                        reply = await self._reply_to(token, datagrams=datagrams)
                    break
                except TimeoutError:
                    continue
        source_ip, _, source_port = reply["peer"].rpartition(":")
        local_ip, local_port = self.local
        return Answer(
            pod=reply["pod"],
            source_ip_seen=source_ip.strip("[]"),
            source_port_seen=int(source_port),
            address_seen=reply["address"],
            port_seen=reply["port"],
            local_ip=local_ip,
            local_port=local_port,
            text=reply["text"].partition(":")[2],
            connected=0.0,
            elapsed=time.perf_counter() - start,
        )

    def close(self) -> None:
        """Close the socket; further exchanges fail."""
        self._socket.close()

    async def _reply_to(self, token: str, *, datagrams: bool) -> dict[str, Any]:
        while True:
            reply: dict[str, Any] = json.loads(await (self._receive() if datagrams else self._receive_line()))
            if reply["text"] == token:
                return reply

    async def _receive(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self._socket, LONGEST_LINE)

    async def _receive_line(self) -> bytes:
        while b"\n" not in self._pending:
            data = await self._receive()
            if not data:
                raise Broken(f"{self.target}: closed by the other side")
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return line


async def ask(target: Target, text: str, seconds: float) -> Answer:
    """One request on a socket of its own. Raises an `AskError`."""
    start = time.perf_counter()
    async with _within(target, seconds):
        conversation = await Conversation.open(target)
        connected = 0.0 if target.protocol == "UDP" else time.perf_counter() - start
        try:
            answer = await conversation.exchange(text)
        finally:
            conversation.close()
    return replace(answer, connected=connected, elapsed=time.perf_counter() - start)


async def hold(target: Target, seconds: float) -> Conversation:
    """A connection that stays open. Raises an `AskError`."""
    async with _within(target, seconds):
        return await Conversation.open(target)


async def exchange(conversation: Conversation, text: str, seconds: float) -> Answer:
    """One exchange over an open connection, in at most `seconds`. Raises an `AskError`."""
    async with _within(conversation.target, seconds):
        return await conversation.exchange(text)


async def ask_each(
    targets: Iterable[Target], text: str, seconds: float, concurrency: int
) -> list[Answer | AskError]:
    """One request to each target, `concurrency` at a time; the outcomes in the order of the targets."""
    numbered = enumerate(targets)
    ended: dict[int, Answer | AskError] = {}

    async def work() -> None:
        for number, target in numbered:
            try:
                ended[number] = await ask(target, text, seconds)
            except AskError as error:
                ended[number] = error

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(work())
    return [ended[number] for number in sorted(ended)]


def tally(ended: Iterable[Answer | AskError]) -> Counter[str]:
    """How often each pod answered; failures count under the name of their class, as `Refused`."""
    return Counter(
        outcome.pod if isinstance(outcome, Answer) else type(outcome).__name__ for outcome in ended
    )


@contextlib.asynccontextmanager
async def _within(target: Target, seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise NoAnswer(f"{target}: nothing within {seconds} s") from error


@contextlib.contextmanager
def outcomes(target: Target, *, established: bool) -> Iterator[None]:
    """Turn the errors of a socket into the `AskError` they mean; others stay OSError."""
    try:
        yield
    except OSError as error:
        if error.errno in REFUSED:
            raise Refused(f"{target}: refused") from error
        if error.errno in UNREACHABLE:
            raise Unreachable(f"{target}: {error.strerror}") from error
        if error.errno == errno.ETIMEDOUT:
            raise NoAnswer(f"{target}: {error.strerror}") from error
        if established or error.errno in BROKEN:
            raise Broken(f"{target}: {error.strerror}") from error
        raise


async def _connect(opened: socket.socket, destination: tuple[str, int]) -> None:
    """Connect as `loop.sock_connect` does, but without getaddrinfo(), which does not know SCTP."""
    with contextlib.suppress(BlockingIOError):
        opened.connect(destination)
        return
    loop = asyncio.get_running_loop()
    writable = loop.create_future()
    loop.add_writer(opened, writable.set_result, None)
    try:
        await writable
    finally:
        loop.remove_writer(opened)
    if error := opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or _queued_error(opened):
        raise OSError(error, os.strerror(error))


def report_icmp_errors(opened: socket.socket, *, on: bool) -> None:
    """Have a socket report every ICMP error it meets (ip(7), IP_RECVERR), or forget what is queued.

    Otherwise UDP and raw sockets report port and protocol unreachable only, and a TCP socket loses the
    error that comes back while it is still inside connect(), as it does over virtual links.
    """
    level, option = (
        (socket.IPPROTO_IPV6, IPV6_RECVERR)
        if opened.family == socket.AF_INET6
        else (socket.IPPROTO_IP, IP_RECVERR)
    )
    opened.setsockopt(level, option, int(on))


def _queued_error(opened: socket.socket) -> int:
    """The errno of the first error in the socket's queue (struct sock_extended_err), 0 for none."""
    try:
        _, ancillary, _, _ = opened.recvmsg(1, socket.CMSG_SPACE(256), socket.MSG_ERRQUEUE)
    except BlockingIOError:
        return 0
    for level, kind, data in ancillary:
        if (level, kind) in {(socket.IPPROTO_IP, IP_RECVERR), (socket.IPPROTO_IPV6, IPV6_RECVERR)}:
            return int.from_bytes(data[:4], sys.byteorder)
    return 0


def _bind(opened: socket.socket, target: Target) -> None:
    if target.protocol == "TCP":
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if target.source_port and target.protocol != "UDP":
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if target.source_ip is not None or target.source_port:
        opened.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 0 if target.source_port else 1)
        anywhere = "::" if opened.family == socket.AF_INET6 else "0.0.0.0"
        opened.bind((target.source_ip or anywhere, target.source_port))
