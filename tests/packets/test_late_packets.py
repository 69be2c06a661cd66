"""Late and stray packets must not end a connection through a service.

Conntrack calls a segment outside the window INVALID and does not translate it. A client that got it from a
pod's own address would answer with a reset, which ends the pod's side of a connection that is alive.
"""

import itertools
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

import pytest

from kproxy_lab.lab import HeldConnection, Lab, Pod
from kproxy_lab.lab.topology import Family
from tests.packets.cluster import Cluster
from tests.packets.modes import Capability
from tests.packets.objects import TARGET
from tests.packets.pages import scrape, value

pytestmark = pytest.mark.root

DROPPED = "kubeproxy_iptables_ct_state_invalid_dropped_packets_total"
PSH_ACK, RST, ACK = 0x18, 0x04, 0x10
_TCP = struct.Struct(
    "!HHIIBBHHH"
)  # ports, sequence, acknowledgement, offset, flags, window, checksum, urgent


@dataclass(frozen=True, slots=True)
class Segment:
    """One TCP segment (RFC 9293, 3.1); `length` counts the bytes of data."""

    peer: str
    source_port: int
    port: int
    sequence: int
    acknowledged: int
    flags: int
    length: int = 0


class Wire:
    """A raw socket in a pod: receives each segment that arrives there, and sends stray segments."""

    def __init__(self, lab: Lab, pod: Pod, family: Family) -> None:
        self._own = pod.ip(family)
        self._v4 = family == 4
        number = socket.AF_INET if self._v4 else socket.AF_INET6
        self._lab = lab
        self._pod = pod
        self._socket = pod.namespace.open_socket(number, socket.SOCK_RAW, socket.IPPROTO_TCP)

    def close(self) -> None:
        self._socket.close()

    def arrived(self) -> Iterator[Segment]:
        """Return the segments that arrived at TARGET since the last call."""
        while True:
            try:
                data, peer = self._socket.recvfrom(65536)
            except BlockingIOError:
                return
            tcp = data[(data[0] & 15) * 4 :] if self._v4 else data
            source, port, sequence, acknowledged, offset, flags, *_ = _TCP.unpack_from(tcp)
            if port == TARGET:
                size = len(tcp) - (offset >> 4) * 4
                yield Segment(peer[0], source, port, sequence, acknowledged, flags, size)

    def answer(self, last: Segment, *, shift: int, data: bytes = b"late\n") -> None:
        """Send data to the sender of `last`, `shift` bytes away from where the connection is."""
        sequence, acknowledged = (
            (number % (1 << 32)) for number in (last.acknowledged + shift, last.sequence + last.length)
        )
        ports = (last.port, last.source_port)
        bare = _TCP.pack(*ports, sequence, acknowledged, 5 << 4, PSH_ACK, 502, 0, 0) + data
        ends = ip_address(self._own).packed + ip_address(last.peer).packed
        total = _checksum(ends + struct.pack("!II", len(bare), socket.IPPROTO_TCP) + bare)
        self._socket.sendto(bare[:16] + struct.pack("!H", total) + bare[18:], (last.peer, 0))


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    words: tuple[int, ...] = struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2))
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def _disturb(wire: Wire, held: HeldConnection, shift: int) -> list[Segment]:
    """Exchange a line, send the stray segment and exchange another; the resets that came back to the pod."""
    held.exchange("before")
    last = [segment for segment in wire.arrived() if segment.flags & ACK][-1]
    wire.answer(last, shift=shift)
    held.exchange("after")
    return [segment for segment in wire.arrived() if segment.flags & RST]


@pytest.mark.parametrize("end", ["cluster IP", "external IP"])
def test_a_late_segment_resets_nothing(cluster: Cluster, family: Family, end: str) -> None:
    lab, outside = cluster.lab, cluster.external_ips()
    for pod, asker in itertools.product((lab.local_pods[0], lab.remote_pods[0]), lab.local_pods[1:2]):
        service = cluster.publish([pod], externalIPs=list(outside.values()), externalTrafficPolicy="Local")
        address = service.ip(family) if end == "cluster IP" else outside[family]
        wire = Wire(lab, pod, family)
        try:
            with lab.hold(asker, address, 80) as held:
                assert _disturb(wire, held, -100_000) == []
        finally:
            wire.close()
        cluster.delete(service)


def test_a_segment_beyond_the_window_resets_nothing(cluster: Cluster, family: Family) -> None:
    if Capability.NFTABLES in cluster.mode.capabilities:
        pytest.skip("INVALID packets are not looked at, as in kube-proxy's nftables mode")
    lab = cluster.lab
    pod = lab.remote_pods[0]
    service = cluster.publish([pod])
    wire, before = Wire(lab, pod, family), scrape(cluster)
    try:
        with lab.hold(lab.local_pods[0], service.ip(family), 80) as held:
            assert _disturb(wire, held, 50_000_000) == []
    finally:
        wire.close()
    if (DROPPED, frozenset[str]()) in before:
        assert value(scrape(cluster), DROPPED) == value(before, DROPPED) + 1
