"""Real packets whose identity survives translation, and what became of each.

A packet is written to a raw socket of its sender, and is seen by raw sockets at every pod, the client and the
node after the last hook of that host. Its identity is the TCP sequence number, the UDP payload or the SCTP
tag; an error that comes back quotes its source port, which is unique.
"""

import errno
import itertools
import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kproxy.addresses import Family
from kproxy.plan.model import Protocol
from kproxy_lab.lab import Lab, Namespace
from kproxy_lab.lab.namespaces import new_socket
from kproxy_lab.lab.sctp import INIT, Packet, build
from kproxy_lab.lab.topology import NODE, NODE_IP4, NODE_IP6
from tests.explain.world import Probe

_NUMBERS = {
    Protocol.TCP: socket.IPPROTO_TCP,
    Protocol.UDP: socket.IPPROTO_UDP,
    Protocol.SCTP: socket.IPPROTO_SCTP,
}
_FAMILIES = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_ICMP = {Family.IPV4: socket.IPPROTO_ICMP, Family.IPV6: socket.IPPROTO_ICMPV6}
_UNREACHABLE = {Family.IPV4: 3, Family.IPV6: 1}
_PATIENCE = 3.0
_MARK = 0x6B700000
_SO_RCVBUFFORCE = 33


@dataclass(frozen=True)
class Seen:
    """What became of a packet: where it arrived, on which port, from which source; or whether it was refused.

    `arrived` is the name of a host; "" if it did not arrive anywhere.
    """

    arrived: str = ""
    port: int = 0
    source: str = ""
    refused: bool = False


class Site:
    """The sockets of one family in a lab."""

    def __init__(self, lab: Lab, family: Family) -> None:
        self._lab = lab
        self._family = family
        self._sequence = itertools.count(1)
        self._ports = itertools.cycle(itertools.chain(range(10400, 29900), range(33000, 60900)))
        self._sockets: dict[tuple[str, int], socket.socket] = {}
        hosts = {pod.name: pod.namespace for pod in lab.pods}
        self._hosts = hosts | {"client": lab.client, "node": lab.node, "peer": lab.peer}
        for name, namespace in self._hosts.items():
            for number in (*_NUMBERS.values(), _ICMP[family]):
                self._sockets[name, number] = self._open(namespace, number)

    def close(self) -> None:
        """Close all sockets."""
        for each in self._sockets.values():
            each.close()

    def owner(self, ip: str) -> str:
        """The name of the host that has an address, "" if none has it."""
        v6 = self._family is Family.IPV6
        clients = self._lab.spec.client_ip6 if v6 else self._lab.spec.client_ip4
        if ip in {*NODE_IP4, *NODE_IP6, *NODE.gateways, "127.0.0.1", "::1"}:
            return "node"
        if ip in clients:
            return "client"
        everyone = [*self._lab.pods, self._lab.peer_pod]
        found = next((pod.name for pod in everyone if ip in {pod.ip4, pod.ip6}), "")
        return "peer" if found == self._lab.peer_pod.name else found

    def send(self, probes: Sequence[Probe], awaited: Sequence[bool]) -> list[Seen]:
        """Send packets, and wait until those that are `awaited` have left a trace or a time has passed."""
        found: dict[int, Seen] = {}
        by_mark: dict[int, int] = {}
        by_port: dict[int, int] = {}
        for index, probe in enumerate(probes):
            mark, port = _MARK | next(self._sequence), next(self._ports)
            by_mark[mark], by_port[port] = index, index
            if refused := self._send(probe, mark, port):
                found[index] = refused
        waiting = {index for index, wanted in enumerate(awaited) if wanted}
        deadline = time.monotonic() + _PATIENCE
        while True:
            left = max(0.0, deadline - time.monotonic()) if waiting - found.keys() else 0.02
            ready = select.select(list(self._sockets.values()), [], [], left)[0]
            if not ready:
                break
            for (host, number), each in self._sockets.items():
                if each in ready:
                    self._receive(host, number, each, by_mark, by_port, found)
        return [found.get(index, Seen()) for index in range(len(probes))]

    def _open(self, namespace: Namespace, number: int) -> socket.socket:
        made = namespace.call(new_socket, _FAMILIES[self._family], socket.SOCK_RAW, number)
        made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
        return made

    def _send(self, probe: Probe, mark: int, port: int) -> Seen | None:
        number = _NUMBERS[probe.protocol]
        host = self._hosts[probe.source.partition("/")[0]]
        body = _body(probe, mark, port)
        with host.call(new_socket, _FAMILIES[self._family], socket.SOCK_RAW, number) as sender:
            sender.bind((probe.address, 0))
            try:
                sender.sendto(body, (probe.destination, 0))
            except OSError as error:
                if error.errno in {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL}:
                    return Seen(refused=True)
                if error.errno != errno.EPERM:
                    raise
        return None

    def _receive(
        self,
        host: str,
        number: int,
        each: socket.socket,
        by_mark: dict[int, int],
        by_port: dict[int, int],
        found: dict[int, Seen],
    ) -> None:
        for data, source in _datagrams(each):
            packet = data if self._family is Family.IPV6 else data[(data[0] & 15) * 4 :]
            if number == _ICMP[self._family]:
                port = _quoted_port(packet, self._family)
                index = by_port.get(port)
                if index is not None and index not in found:
                    found[index] = Seen(refused=True)
                continue
            index = by_mark.get(_mark(packet, number))
            if index is not None:
                found[index] = Seen(host, int.from_bytes(packet[2:4], "big"), source)


def _datagrams(each: socket.socket) -> Iterator[tuple[bytes, str]]:
    while True:
        try:
            data, source = each.recvfrom(65536)
        except BlockingIOError:
            return
        yield data, source[0]


def _mark(packet: bytes, number: int) -> int:
    at = {socket.IPPROTO_TCP: 4, socket.IPPROTO_UDP: 8, socket.IPPROTO_SCTP: 16}[number]
    if number == socket.IPPROTO_TCP and packet[13:14] != b"\x02":
        return 0
    return int.from_bytes(packet[at : at + 4], "big")


def _quoted_port(packet: bytes, family: Family) -> int:
    """The source port of the packet that an error quotes; 0 for other messages."""
    if packet[0] != _UNREACHABLE[family]:
        return 0
    inner = packet[8:]
    at = 40 if family is Family.IPV6 else (inner[0] & 15) * 4
    return int.from_bytes(inner[at : at + 2], "big")


def _body(probe: Probe, mark: int, port: int) -> bytes:
    if probe.protocol is Protocol.SCTP:
        return build(Packet(INIT, port, probe.port, 0, mark))
    if probe.protocol is Protocol.TCP:
        bare = struct.pack("!HHIIBBHHH", port, probe.port, mark, 0, 5 << 4, 2, 8192, 0, 0)
        at = 16
    else:
        bare = struct.pack("!HHHHI", port, probe.port, 12, 0, mark)
        at = 6
    return bare[:at] + struct.pack("!H", _checksum(probe, bare)) + bare[at + 2 :]


def _checksum(probe: Probe, body: bytes) -> int:
    family = socket.AF_INET6 if ":" in probe.destination else socket.AF_INET
    pseudo = socket.inet_pton(family, probe.address) + socket.inet_pton(family, probe.destination)
    data = pseudo + struct.pack("!II", len(body), _NUMBERS[probe.protocol]) + body
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF or 0xFFFF
