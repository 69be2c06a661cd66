"""Tracked flows of a real kernel: which are read, what is known of them, and that they can be deleted."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from kproxy.addresses import Family
from kproxy.kernel.conntrack import netlink as module
from kproxy.kernel.conntrack.netlink import NetlinkConntrack
from tests.kernel.namespace import fresh_network

LOOPBACK = {Family.IPV4: (socket.AF_INET, "127.0.0.1"), Family.IPV6: (socket.AF_INET6, "::1")}
PORT, SILENT = 5353, 5354


@contextmanager
def traffic(family: Family) -> Iterator[None]:
    """An answered flow to PORT, one that nobody answers to SILENT, and a TCP connection to PORT."""
    tracking = "add table inet t; add chain inet t c { type filter hook output priority 0; }; "
    tracking += "add rule inet t c ct state new accept"
    for command in (["ip", "link", "set", "lo", "up"], ["nft", tracking]):
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip(f"this kernel refuses {command[0]}")
    kind, ip = LOOPBACK[family]
    with ExitStack() as opened:
        one, silent, client = (opened.enter_context(socket.socket(kind, socket.SOCK_DGRAM)) for _ in range(3))
        listener = opened.enter_context(socket.create_server((ip, PORT), family=kind))
        opened.enter_context(socket.create_connection(listener.getsockname()[:2]))
        one.bind((ip, PORT))
        silent.bind((ip, SILENT))
        for port in (PORT, SILENT):
            client.sendto(b"?", (ip, port))
        _, sender = one.recvfrom(10)
        one.sendto(b"!", sender)
        assert client.recv(10) == b"!"
        yield


@pytest.mark.parametrize("family", Family, ids=str)
@fresh_network
def test_flows_are_selected_by_port_and_by_whether_they_were_answered(family: Family) -> None:
    with traffic(family):
        ip, conntrack = LOOPBACK[family][1], NetlinkConntrack()
        found = conntrack.udp_flows(family, {PORT, SILENT})
        assert sorted((f.dst, f.dst_port, f.answers, f.answers_port, f.answered) for f in found) == [
            (ip, PORT, ip, PORT, True),
            (ip, SILENT, ip, SILENT, False),
        ]
        assert [flow.dst_port for flow in conntrack.udp_flows(family, {SILENT})] == [SILENT]


@fresh_network
def test_what_is_deleted_is_gone_and_counted_once() -> None:
    with traffic(Family.IPV4):
        conntrack = NetlinkConntrack()
        found = conntrack.udp_flows(Family.IPV4, {PORT})
        assert conntrack.delete(Family.IPV4, found) == found
        assert conntrack.delete(Family.IPV4, found) == []
        assert [f.dst_port for f in conntrack.udp_flows(Family.IPV4, {PORT, SILENT})] == [SILENT]


@fresh_network
def test_the_kernel_is_asked_for_udp_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of a busy node's entries are TCP, and each costs time and memory to read."""
    read: list[bytes] = []
    decode = module._decode

    def counting(answer: bytes, *rest: object) -> object:
        read.append(answer)
        return decode(answer, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_decode", counting)
    with traffic(Family.IPV4):
        NetlinkConntrack().udp_flows(Family.IPV4, {PORT})
    assert len(read) == 2
