"""SCTP on kernels without SCTP sockets: a handmade INIT, and raw sockets that see where it arrives.

Netfilter tracks and translates SCTP wherever its conntrack module has it, while SCTP sockets are a module
of their own that many kernels lack. An association's first packet is enough to prove where a service sends
it; the INIT ACK on its way back proves that the reply is translated, too. Packet layout: RFC 9260, 3.1-3.3.
"""

import asyncio
import contextlib
import secrets
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from kproxy_lab.lab.clients import Target, outcomes, report_icmp_errors
from kproxy_lab.lab.namespaces import Namespace, family_of, new_socket
from kproxy_lab.lab.topology import Pod

INIT: Final = 1
INIT_ACK: Final = 2
STATE_COOKIE: Final = 7
_HEADER: Final = struct.Struct("!HHII")  # source port, destination port, verification tag, checksum
_INIT: Final = struct.Struct("!BBHIIHHI")  # type, flags, length, tag, a_rwnd, streams out, in, first TSN


@dataclass(frozen=True, slots=True)
class ArrivedAt:
    """The pod that an INIT reached, the source seen there, and whether the INIT ACK came back translated."""

    pod: str
    source_ip: str
    source_port: int
    port: int
    answered: bool


@dataclass(frozen=True, slots=True)
class Packet:
    """The fields of an INIT or INIT ACK that matter here."""

    kind: int
    source_port: int
    port: int
    verification_tag: int
    tag: int


def crc32c(data: bytes) -> int:
    """The Castagnoli CRC of RFC 9260, appendix A (reflected polynomial 0x82F63B78)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def build(packet: Packet) -> bytes:
    """An SCTP packet with one INIT or INIT ACK chunk and a valid checksum."""
    cookie = struct.pack("!HH4s", STATE_COOKIE, 8, b"lab.") if packet.kind == INIT_ACK else b""
    length = _INIT.size + len(cookie)
    chunk = _INIT.pack(packet.kind, 0, length, packet.tag, 65536, 1, 1, packet.tag) + cookie
    bare = _HEADER.pack(packet.source_port, packet.port, packet.verification_tag, 0) + chunk
    return bare[:8] + struct.pack("<I", crc32c(bare)) + bare[12:]


def parse(data: bytes) -> Packet | None:
    """Return the packet in `data`, or None: cut short, bad checksum, another chunk."""
    if len(data) < _HEADER.size + _INIT.size:
        return None
    source_port, port, verification_tag, _ = _HEADER.unpack_from(data)
    if struct.unpack_from("<I", data, 8)[0] != crc32c(data[:8] + bytes(4) + data[12:]):
        return None
    kind, _, _, tag, *_ = _INIT.unpack_from(data, _HEADER.size)
    return Packet(kind, source_port, port, verification_tag, tag) if kind in {INIT, INIT_ACK} else None


async def probe(target: Target, pods: Sequence[Pod], seconds: float) -> ArrivedAt | None:
    """Send one INIT and return where it arrived; None when at no pod within `seconds`.

    Raises Refused and Unreachable for the ICMP errors that say so.
    """
    family = family_of(target.ip)
    with contextlib.ExitStack() as opened:
        receivers: list[tuple[Pod, socket.socket]] = []
        for pod in pods:
            receiver = opened.enter_context(await _raw(pod.namespace, family))
            receiver.bind((pod.ip6 if family == socket.AF_INET6 else pod.ip4, 0))
            receivers.append((pod, receiver))
        sender = opened.enter_context(await _raw(target.namespace, family))
        report_icmp_errors(sender, on=True)
        if target.source_ip is not None:
            sender.bind((target.source_ip, 0))
        with outcomes(target, established=False):
            return await _send_and_listen(target, sender, receivers, seconds)


async def _send_and_listen(
    target: Target, sender: socket.socket, receivers: Sequence[tuple[Pod, socket.socket]], seconds: float
) -> ArrivedAt | None:
    loop = asyncio.get_running_loop()
    tag = secrets.randbits(32) | 1
    source_port = target.source_port or 10000 + secrets.randbelow(50000)
    sender.connect((target.ip, 0))  # takes no packet; from now on ICMP errors and only this peer's packets
    await loop.sock_sendall(sender, build(Packet(INIT, source_port, target.port, 0, tag)))
    receiving = [asyncio.create_task(_receive_init(pod, receiver, tag)) for pod, receiver in receivers]
    reply = asyncio.create_task(_receive_ack(sender, tag, (target.port, source_port)))
    try:
        await asyncio.wait({*receiving, reply}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if reply.done():
            reply.result()
        arrived = next((task.result() for task in receiving if task.done()), None)
        if arrived is not None:
            await asyncio.wait({reply}, timeout=seconds)
            arrived = replace(arrived, answered=reply.done() and reply.exception() is None)
        return arrived
    finally:
        for task in (*receiving, reply):
            task.cancel()
        await asyncio.gather(*receiving, reply, return_exceptions=True)


async def _receive_init(pod: Pod, receiver: socket.socket, tag: int) -> ArrivedAt:
    """Wait at a pod for the INIT with this tag, and answer it with an INIT ACK."""
    loop = asyncio.get_running_loop()
    while True:
        data, source = await loop.sock_recvfrom(receiver, 65536)
        packet = parse(_payload(receiver, data))
        if packet is not None and packet.kind == INIT and packet.tag == tag:
            ack = build(Packet(INIT_ACK, packet.port, packet.source_port, tag, tag))
            await loop.sock_sendto(receiver, ack, (source[0], 0))
            return ArrivedAt(pod.name, source[0], packet.source_port, packet.port, answered=False)


async def _receive_ack(sender: socket.socket, tag: int, ports: tuple[int, int]) -> None:
    """Wait for the INIT ACK; the socket is connected, so it receives only from the requested address."""
    while True:
        packet = parse(_payload(sender, await asyncio.get_running_loop().sock_recv(sender, 65536)))
        if packet is None or packet.kind != INIT_ACK:
            continue
        if packet.verification_tag == tag and (packet.source_port, packet.port) == ports:
            return


def _payload(raw: socket.socket, data: bytes) -> bytes:
    """Return the packet without the IP header, which only raw IPv4 sockets deliver (raw(7))."""
    return data if raw.family == socket.AF_INET6 else data[(data[0] & 0x0F) * 4 :]


async def _raw(namespace: Namespace, family: socket.AddressFamily) -> socket.socket:
    return await asyncio.wrap_future(
        namespace.submit(new_socket, family, socket.SOCK_RAW, socket.IPPROTO_SCTP)
    )
