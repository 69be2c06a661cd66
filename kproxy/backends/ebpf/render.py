"""Render a ServicePlan into frontends of the socket table. Pure.

Only what a socket can decide as the packet path would is in the table. Everything else is left to that path:
a socket of UDP would stay with its endpoint when that is gone, and neither session affinity nor source ranges
are known at the socket.
"""

import socket
import struct
from collections.abc import Sequence

import msgspec

from kproxy.addresses import Family
from kproxy.backends.core.shares import slots, slots_of_port
from kproxy.backends.ebpf.config import SocketConfig
from kproxy.kernel.bpf.types import SLOT_WORDS
from kproxy.plan.model import EndpointPlan, PortPlan, Protocol, ServicePlan, Verdict
from kproxy.plan.weights import effective

WORD_BYTES = 8
"""Slots are words of 64 bits in memory."""

_PORT = struct.Struct("!HH")
_KINDS = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_PADDING = {Family.IPV4: b"", Family.IPV6: bytes(4)}


class Frontend(msgspec.Struct, frozen=True, gc=False):
    """A frontend of the table: its key, and its endpoints as the slots have them in memory, in order.

    `name` is that of the PortPlan.
    """

    key: bytes
    slots: bytes
    name: str


def slot_bytes(family: Family) -> int:
    """The bytes of a slot in memory."""
    return SLOT_WORDS[family] * WORD_BYTES


def render_service(plan: ServicePlan, config: SocketConfig) -> tuple[Frontend, ...]:
    """Render one service; the frontends have different keys."""
    found: dict[bytes, Frontend] = {}
    for port in plan.ports:
        if left_to_packets(port, config) is None:
            key = frontend_key(port.cluster_ip, port.port, config.family)
            if key not in found:
                content = _slots(port, len(plan.ports), config.family)
                found[key] = Frontend(key, content, port.name)
    return tuple(found.values())


def left_to_packets(port: PortPlan, config: SocketConfig) -> str | None:
    """Why a port's cluster IP is not in the table but translated packet by packet; None if it is."""
    if port.protocol is not Protocol.TCP:
        return f"protocol {port.protocol}"
    if not config.enabled:
        return "the socket table is off"
    if config.masquerade_all:
        return "masqueradeAll"
    if port.affinity_seconds is not None:
        return "session affinity"
    if port.internal is not Verdict.FORWARD:
        return "no usable endpoint"
    if port.cluster_ip in config.local_addresses:
        return "the cluster IP is an address of the node"
    if port.source_ranges is not None and port.cluster_ip in port.load_balancer_ips:
        return "source ranges apply to the cluster IP, which is an address of the load balancer too"
    return None


def frontend_key(ip: str, port: int, family: Family) -> bytes:
    """The key of a frontend in the map."""
    return socket.inet_pton(_KINDS[family], ip) + _PORT.pack(port, 0)


def describe_frontend(key: bytes, family: Family) -> str:
    """A key as text: `10.96.0.1:80/TCP`, `[fd00::1]:80/TCP`."""
    return f"{describe_address(key, family)}/{Protocol.TCP}"


def describe_address(packed: bytes, family: Family) -> str:
    """The address and port of a key or of a slot as text."""
    length = 4 if family is Family.IPV4 else 16
    ip = socket.inet_ntop(_KINDS[family], packed[:length])
    port, _ = _PORT.unpack_from(packed, length)
    return f"{ip}:{port}" if family is Family.IPV4 else f"[{ip}]:{port}"


def describe_slots(content: bytes, family: Family) -> list[str]:
    """The address and port in each slot."""
    size = slot_bytes(family)
    return [describe_address(content[at : at + size], family) for at in range(0, len(content), size)]


def _slots(port: PortPlan, ports: int, family: Family) -> bytes:
    endpoints = port.local if port.internal_local else port.cluster
    counts = slots(effective(endpoints), slots_of_port(ports))
    packed = _packed(endpoints, family)
    return b"".join([slot * count for slot, count in zip(packed, counts, strict=True)])


def _packed(endpoints: Sequence[EndpointPlan], family: Family) -> list[bytes]:
    kind, padding, pack, convert = _KINDS[family], _PADDING[family], _PORT.pack, socket.inet_pton
    return [convert(kind, each.ip) + pack(each.port, 0) + padding for each in endpoints]
