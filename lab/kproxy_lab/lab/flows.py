"""Many connection attempts at once: which of thousands of flows arrive, in a fraction of a second.

A policy is judged by what passes and by what does not, and silence can only be waited for. So all flows of a
batch are tried together, from one thread, and the wait for silence is paid once a batch. Servers live in the
same thread, on sockets that stay open, and note what arrives even where the answer is lost.

Each batch has a source port of its own, so no flow ever continues an older one in conntrack.
"""

import contextlib
import errno
import itertools
import secrets
import selectors
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, Self, cast

from kproxy_lab.lab import sctp
from kproxy_lab.lab.namespaces import Namespace, family_of, new_socket
from kproxy_lab.lab.topology import Pod

FlowProtocol = Literal["TCP", "UDP", "SCTP", "ICMP"]

SOURCE_PORTS: Final = range(33000, 61000)
"""One for each batch; others are the kernel's to choose for those who do not bind."""
QUIET: Final = 0.03
"""Seconds without any event after which what did not arrive counts as dropped; the lab takes microseconds."""
PATIENCE: Final = 20.0
"""Seconds in which a flow that must arrive may do so: a bound for failures."""
ECHO_REQUEST: Final = {socket.AF_INET: 8, socket.AF_INET6: 128}
ECHO_REPLY: Final = {socket.AF_INET: 0, socket.AF_INET6: 129}
_ICMP: Final = struct.Struct("!BBHHH")
_TAG: Final = struct.Struct("!I")
_BACKLOG: Final = 4096
_REMEMBERED: Final = 10000
"""Flows of earlier batches whose late arrival is still noted."""


class Flow(NamedTuple):
    """One connection to try. `source_ip` "" lets the kernel choose; `port` counts for nothing in ICMP."""

    source: Namespace
    ip: str
    protocol: FlowProtocol = "TCP"
    port: int = 0
    source_ip: str = ""


@dataclass(slots=True)
class Tried:
    """How a flow went: `arrived` at a server, `answered` back to the client. An ICMP error is `error`.

    An SCTP flow is one INIT that nothing answers; a TCP flow that arrived without an answer is not noticed.
    """

    flow: Flow
    arrived: bool = False
    answered: bool = False
    error: int = 0

    @property
    def open(self) -> bool:
        """Whether the connection came about."""
        return self.arrived if self.flow.protocol == "SCTP" else self.answered


@dataclass(slots=True)
class _Batch:
    """What a batch waits for, its open client sockets, and the datagrams to send again."""

    tried: list[Tried]
    opened: list[socket.socket] = field(default_factory=list)
    late: list[tuple[socket.socket, bytes, tuple[str, int]]] = field(default_factory=list)


class FlowTester:
    """Servers at pods and hosts, and `attempt` that tries flows between them; for one thread at a time.

    `ends`: the namespaces that serve, each with its addresses. `ports`: what each of them serves. Two testers
    of one lab need different `ports` and `source_ports`.
    """

    def __init__(
        self,
        ends: Mapping[Namespace, Sequence[str]],
        ports: Mapping[Literal["TCP", "UDP"], Iterable[int]],
        source_ports: Sequence[int] = SOURCE_PORTS,
    ) -> None:
        self._selector = selectors.DefaultSelector()
        self._source_ports = itertools.cycle(source_ports)
        self._tags = itertools.count(secrets.randbelow(1 << 31))
        self._batch = _Batch([])
        self._known: dict[int, Tried] = {}
        wanted = {protocol: tuple(numbers) for protocol, numbers in ports.items()}
        for namespace, addresses in ends.items():
            for opened, serve in namespace.call(self._serve, addresses, wanted):
                self._selector.register(opened, selectors.EVENT_READ, serve)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every socket."""
        for key in list(self._selector.get_map().values()):
            cast("socket.socket", key.fileobj).close()
        self._selector.close()

    def attempt(
        self, flows: Iterable[Flow], expected: Sequence[bool] | None = None, *, quiet: float = QUIET,
        patience: float = PATIENCE, again: float = 1.0,
    ) -> list[Tried]:  # fmt: skip
        """Try all flows at once; return how each went, in their order.

        Waits until nothing has happened for `quiet` seconds. `expected` says which flows must arrive: for
        these it waits up to `patience`, and sends datagrams again after `again` seconds (0: never).
        """
        batch = self._batch = _Batch([Tried(flow) for flow in flows])
        must = batch.tried if expected is None else list(itertools.compress(batch.tried, expected))
        must = must if expected is not None else []
        by_source: dict[tuple[Namespace, str, int], list[Tried]] = defaultdict(list)
        for tried in batch.tried:
            by_source[tried.flow.source, tried.flow.source_ip, family_of(tried.flow.ip)].append(tried)
        port = next(self._source_ports)
        for old in list(itertools.islice(self._known, max(0, len(self._known) - _REMEMBERED))):
            del self._known[old]
        try:
            for (source, source_ip, family), group in by_source.items():
                source.call(self._send, family, source_ip, port, group)
                self._events(0)
            self._wait(must, quiet, patience, again)
        finally:
            for opened in batch.opened:
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(opened)
                opened.close()
            self._batch = _Batch([])
        return batch.tried

    def _wait(self, must: Sequence[Tried], quiet: float, patience: float, again: float) -> None:
        start = last = time.monotonic()
        repeat = start + again if again else float("inf")
        while True:
            now = time.monotonic()
            missing = [tried for tried in must if not tried.open and not tried.error]
            if now - last >= quiet and (not missing or now - start >= patience):
                return
            if missing and now >= repeat:
                repeat = now + again
                for opened, data, destination in self._batch.late:
                    with contextlib.suppress(OSError):
                        opened.sendto(data, destination)
            if self._events(max(quiet - (now - last), 0.001) if not missing else min(quiet, 0.02)):
                last = time.monotonic()

    def _events(self, seconds: float) -> int:
        ready = self._selector.select(seconds)
        for key, mask in ready:
            key.data(key.fileobj, mask)
        return len(ready)

    # -- clients; on the lab's namespace thread, inside the source

    def _send(self, family: int, source_ip: str, port: int, group: Sequence[Tried]) -> None:
        datagrams: dict[str, socket.socket] = {}
        for tried in group:
            flow = tried.flow
            tag = next(self._tags)
            self._known[tag] = tried
            if flow.protocol == "TCP":
                self._connect(tried, family, source_ip, port)
                continue
            if flow.protocol not in datagrams:
                datagrams[flow.protocol] = self._datagrams(flow.protocol, family, source_ip, port)
            opened = datagrams[flow.protocol]
            if flow.protocol == "UDP":
                data, to = _TAG.pack(tag), flow.port
            elif flow.protocol == "SCTP":
                data, to = sctp.build(sctp.Packet(sctp.INIT, port, flow.port, 0, tag)), 0
            else:
                data, to = _echo(family, port, tag), 0
            try:
                opened.sendto(data, (flow.ip, to))
                self._batch.late.append((opened, data, (flow.ip, to)))
            except OSError as error:
                tried.error = error.errno or errno.EIO

    def _connect(self, tried: Tried, family: int, source_ip: str, port: int) -> None:
        opened = _own_family(new_socket(family, socket.SOCK_STREAM))
        self._batch.opened.append(opened)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._bind(opened, source_ip or _any(family), port)
        error = opened.connect_ex((tried.flow.ip, tried.flow.port))
        if error not in {0, errno.EINPROGRESS}:
            tried.error = error
            return

        def connected(ready: socket.socket, _mask: int) -> None:
            self._selector.unregister(ready)
            failure = ready.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            tried.arrived = tried.answered = not failure
            tried.error = failure

        self._selector.register(opened, selectors.EVENT_WRITE, connected)

    def _bind(self, opened: socket.socket, address: str, port: int) -> None:
        """Bind to the batch's port, or to the next one that no socket of the host has."""
        while True:
            try:
                opened.bind((address, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                port = next(self._source_ports)
            else:
                return

    def _datagrams(self, protocol: FlowProtocol, family: int, source_ip: str, port: int) -> socket.socket:
        if protocol == "UDP":
            opened = _own_family(new_socket(family, socket.SOCK_DGRAM))
            self._bind(opened, source_ip or _any(family), port)
        else:
            number = socket.IPPROTO_SCTP if protocol == "SCTP" else _icmp(family)
            opened = new_socket(family, socket.SOCK_RAW, number)
            if source_ip:
                opened.bind((source_ip, 0))
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 21)
        self._batch.opened.append(opened)
        if protocol == "UDP":
            self._selector.register(opened, selectors.EVENT_READ, self._answered_datagrams)
        elif protocol == "ICMP":
            self._selector.register(opened, selectors.EVENT_READ, self._answered_echoes)
        return opened

    def _answered_datagrams(self, opened: socket.socket, _mask: int) -> None:
        for data in _drain(opened):
            if (tried := self._known.get(_TAG.unpack_from(data)[0])) is not None:
                tried.answered = True

    def _answered_echoes(self, opened: socket.socket, _mask: int) -> None:
        for data in _drain(opened):
            packet = data[(data[0] & 15) * 4 :] if opened.family == socket.AF_INET else data
            if packet[0] != ECHO_REPLY[opened.family] or len(packet) < _ICMP.size + _TAG.size:
                continue
            if (tried := self._known.get(_TAG.unpack_from(packet, _ICMP.size)[0])) is not None:
                tried.arrived = tried.answered = True

    # -- servers

    def _serve(
        self, addresses: Sequence[str], ports: Mapping[Literal["TCP", "UDP"], Sequence[int]]
    ) -> list[tuple[socket.socket, object]]:
        """Open the servers of one end; on the lab's namespace thread, inside it."""
        made: list[tuple[socket.socket, object]] = []
        for address in addresses:
            family = family_of(address)
            made += [
                (_bound(family, socket.SOCK_STREAM, address, port), self._accept)
                for port in ports.get("TCP", ())
            ]
            made += [
                (_bound(family, socket.SOCK_DGRAM, address, port), self._answer)
                for port in ports.get("UDP", ())
            ]
            raw = new_socket(family, socket.SOCK_RAW, socket.IPPROTO_SCTP)
            raw.bind((address, 0))
            made.append((raw, self._arrived))
        return made

    def _accept(self, listener: socket.socket, _mask: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                accepted, _ = listener.accept()
                accepted.close()

    def _answer(self, server: socket.socket, _mask: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                data, client = server.recvfrom(64)
                if (tried := self._known.get(_TAG.unpack_from(data)[0])) is not None:
                    tried.arrived = True
                with contextlib.suppress(PermissionError):
                    server.sendto(data, client)

    def _arrived(self, raw: socket.socket, _mask: int) -> None:
        for data in _drain(raw):
            packet = sctp.parse(data[(data[0] & 15) * 4 :] if raw.family == socket.AF_INET else data)
            if packet is not None and packet.kind == sctp.INIT and packet.tag in self._known:
                self._known[packet.tag].arrived = True


def ends_of(pods: Iterable[Pod]) -> dict[Namespace, tuple[str, str]]:
    """The namespaces and addresses of pods, as FlowTester takes them."""
    return {pod.namespace: (pod.ip4, pod.ip6) for pod in pods}


def _drain(opened: socket.socket) -> Iterable[bytes]:
    with contextlib.suppress(BlockingIOError, ConnectionError):
        while True:
            yield opened.recv(2048)


def _bound(family: int, kind: int, address: str, port: int) -> socket.socket:
    bound = new_socket(family, kind)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((address, port))
    if kind == socket.SOCK_STREAM:
        bound.listen(_BACKLOG)
    else:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 21)
    return bound


def _own_family(opened: socket.socket) -> socket.socket:
    if opened.family == socket.AF_INET6:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return opened


def _any(family: int) -> str:
    return "::" if family == socket.AF_INET6 else "0.0.0.0"


def _icmp(family: int) -> int:
    return socket.IPPROTO_ICMPV6 if family == socket.AF_INET6 else socket.IPPROTO_ICMP


def _echo(family: int, identifier: int, tag: int) -> bytes:
    """An echo request that carries the tag. The kernel tracks the identifier, and sums up ICMPv6 itself."""
    kind, payload = ECHO_REQUEST[socket.AddressFamily(family)], _TAG.pack(tag)
    bare = _ICMP.pack(kind, 0, 0, identifier, 1) + payload
    total = sum(struct.unpack("!6H", bare))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = 0 if family == socket.AF_INET6 else ~(total + (total >> 16)) & 0xFFFF
    return _ICMP.pack(kind, 0, checksum, identifier, 1) + payload
