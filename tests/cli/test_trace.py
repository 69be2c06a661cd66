"""`kproxy trace` beside a running kproxy: real packets go where explain says, and nothing is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kproxy.addresses import Family
from kproxy.kernel.nft.trace import Selection, Tracer
from kproxy.kernel.nft.trace_leftovers import PREFIX, remove_leftovers
from kproxy.kernel.nft.trace_logger import PREFIX as NOTE
from kproxy.kernel.nft.trace_logger import Redirection
from kproxy.kernel.xtables.trace_log import TraceLog
from kproxy.modes.packet_trace import PacketTrace, TracedPacket
from kproxy.plan.outcomes import PacketVerdict
from tests.cli.nodes import FLAGS, do, kproxy
from tests.cli.running import Running
from tests.cli.test_explain import MODES, POD, WEB, a_node
from tests.kernel.namespace import fresh_network

VIP = "10.96.0.80"
LEGACY = ("--proxy-mode=iptables", "--iptables-variant=legacy")
ANY = Selection(Family.IPV4, "TCP", "", VIP, 80, from_node=True)
_SYN = 2
_NETLINK_NETFILTER, _NFNLGRP_NFTABLES = 12, 7


@contextmanager
def tracing(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`kproxy trace` in this thread's network namespace, which has begun when the block begins."""
    command = [sys.executable, "-m", "kproxy", "trace", *arguments]
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as changes:
        changes.bind((0, 1 << _NFNLGRP_NFTABLES - 1))
        changes.settimeout(60)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            while PREFIX.encode() not in changes.recv(1 << 16):
                assert process.poll() is None
            yield process
        finally:
            process.kill()
            process.wait()


def tables() -> list[str]:
    """The tables of traces."""
    return [line for line in do("nft", "list", "tables").splitlines() if PREFIX in line]


def notes() -> list[str]:
    """The notes of former loggers."""
    return [line for line in do("nft", "list", "tables").splitlines() if NOTE in line]


def loggers() -> list[str]:
    """Where traces of legacy tables go, in IPv4 and IPv6."""
    return [Path(f"/proc/sys/net/netfilter/nf_log/{family}").read_text().strip() for family in (2, 10)]


def followed(selection: Selection, send: Callable[[], None]) -> TracedPacket:
    """The way of a packet that is sent now, without a process of its own."""
    tracer = PacketTrace(selection)
    try:
        send()
        (packet,) = tracer.packets(1, 60)
    finally:
        tracer.close()
    return packet


def connect(count: int, destination: str = VIP) -> None:
    """Begin connections from the node, which nothing answers."""
    for _ in range(count):
        with socket.socket() as client:
            client.settimeout(0)
            client.connect_ex((destination, 80))


def arrive(source: str, count: int, flags: int = _SYN, port: int = 41000) -> None:
    """Packets of a pod that arrive on eth0."""
    address: str = json.loads(do("ip", "-j", "link", "show", "eth0"))[0]["address"]
    ethernet = bytes.fromhex(address.replace(":", "")) + bytes(5) + b"\2" + b"\x08\x00"
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind(("wire", 0))
        for number in range(count):
            tcp = struct.pack("!HHIIBBHHH", port + number, 80, 1, 0, 5 << 4, flags, 1024, 0, 0)
            addresses = socket.inet_aton(source) + socket.inet_aton(VIP)
            header = struct.pack("!BBHHHBBH", 0x45, 0, 40, 1, 0, 64, 6, 0) + addresses
            tcp = tcp[:16] + checksum(addresses + struct.pack("!HH", 6, 20) + tcp) + tcp[18:]
            wire.send(ethernet + header[:10] + checksum(header) + header[12:] + tcp)


def checksum(data: bytes) -> bytes:
    """That of IP and TCP headers."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    return struct.pack("!H", ~(total % 0xFFFF) & 0xFFFF)


def result(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any]]:
    output, errors = process.communicate(timeout=60)
    assert output, errors
    return process.returncode, json.loads(output)


@pytest.mark.parametrize("mode", MODES)
@fresh_network
def test_real_packets_go_where_explain_says(mode: str) -> None:
    a_node()
    with Running(*MODES[mode]) as running:
        running.ready()
        with tracing(POD, "tcp", "demo/web", "--count", "4", "-o", "json") as process:
            arrive("10.244.1.98", 1)  # of another pod
            arrive(POD, 1, flags=0x10, port=42000)  # not the first of a connection
            arrive(POD, 5)
            status, found = result(process)
        assert (status, found["lost"]) == (0, False)
        packets = found["packets"]
        assert [each["agrees"] for each in packets] == [True] * 4
        assert [each["source"] for each in packets] == [f"{POD}:{41000 + number}" for number in range(4)]
        assert {each["destination"] for each in packets} == {f"{VIP}:80"}
        assert {each["endpoint"] for each in packets} <= WEB
        assert {(each["verdict"], each["masquerade"]) for each in packets} == {("forward", False)}
        nat = "ip kproxy nat-prerouting: " if mode == "nftables" else "ip nat PREROUTING: "
        for each in packets:
            assert each["steps"][0].startswith(nat)
            assert f"headers: destination {each['endpoint']}" in each["steps"]
        with tracing("node", "tcp", "demo/web", "--count", "1", "-o", "json") as process:
            connect(1)
            status, found = result(process)
        assert status == 0
        assert (found["packets"][0]["agrees"], found["packets"][0]["masquerade"]) == (True, True)
        assert tables() == []


@fresh_network
def test_legacy_rules_are_followed_and_the_logger_is_restored() -> None:
    a_node()
    with Running(*LEGACY) as running:
        running.ready()
        before = loggers()
        with tracing(POD, "tcp", "demo/web", "--count", "3", "-o", "json") as process:
            assert loggers() == ["nfnetlink_log", before[1]]
            arrive("10.244.1.98", 1)
            arrive(POD, 3)
            status, found = result(process)
        assert (status, found["lost"]) == (0, False)
        for number, each in enumerate(found["packets"]):
            assert (each["agrees"], each["source"]) == (True, f"{POD}:{41000 + number}")
            steps, endpoint = each["steps"], each["endpoint"]
            jump, translation = (
                next(number for number, step in enumerate(steps) if re.search(rule, step))
                for rule in (
                    "^nat PREROUTING: .* -j KUBE-SERVICES$",
                    rf"^nat KUBE-SEP-\w+: .* -j DNAT --to-destination {endpoint}$",
                )
            )
            assert jump < translation < steps.index(f"headers: destination {endpoint}")
        packet = followed(ANY, lambda: connect(1))
        assert (packet.verdict, packet.masquerade) == (PacketVerdict.FORWARD, True)
        assert any(re.search("nat KUBE-POSTROUTING: .*-j MASQUERADE", step) for step in packet.steps)
        do("iptables-legacy", "-I", "FORWARD", "-d", "10.244.0.0/16", "-j", "DROP")
        arriving = Selection(Family.IPV4, "TCP", POD, VIP, 80, from_node=False)
        packet = followed(arriving, lambda: arrive(POD, 1))
        assert packet.verdict is PacketVerdict.DROP
        assert packet.steps[-1] == "filter FORWARD: -d 10.244.0.0/16 -j DROP"
        do("iptables-legacy", "-R", "FORWARD", "1", "-d", "10.244.0.0/16", "-j", "RETURN")
        do("iptables-legacy", "-P", "FORWARD", "DROP")
        packet = followed(arriving, lambda: arrive(POD, 1, port=42000))
        assert (packet.verdict, packet.steps[-1]) == (PacketVerdict.DROP, "filter FORWARD: policy drop")
        assert "mangle FORWARD: policy accept" in packet.steps
        assert (loggers(), notes()) == (before, [])


@fresh_network
def test_what_a_killed_trace_changed_is_restored_by_the_next_start() -> None:
    a_node()
    do("iptables-legacy", "-t", "nat", "-L")
    before = loggers()
    with Running(*MODES["nftables"]) as running:
        running.ready()
        for number in (signal.SIGTERM, signal.SIGKILL):
            with tracing(POD, "tcp", "demo/web") as process:
                process.send_signal(number)
                process.wait(60)
        assert loggers()[0] == "nfnetlink_log"
        assert len(notes()) == 1
        with TraceLog(Family.IPV4) as living:
            assert kproxy("cleanup", "--stop").returncode == 0
            assert loggers()[0] == "nfnetlink_log", "another trace needs it"
            assert len(notes()) == 1
        assert living.lost is False
        assert (loggers(), notes()) == (before, [])
    with Redirection(Family.IPV6):
        assert loggers() == [before[0], "nfnetlink_log"]
    assert (loggers(), notes()) == (before, [])


@fresh_network
def test_where_another_program_reads_the_traces_the_result_is_seen() -> None:
    a_node()
    with Running(*LEGACY) as running, TraceLog(Family.IPV4):
        running.ready()
        with tracing(POD, "tcp", "demo/web", "--count", "1") as process:
            arrive(POD, 1)
            output, errors = process.communicate(timeout=60)
        assert process.returncode == 0
        assert errors.startswith("Warning: the rules of legacy tables are not shown: another program reads")
        assert f"packet 1  {POD}:41000 → {VIP}:80  10.244." in output
        assert "as explained\n  headers: destination 10.244." in output


@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
@pytest.mark.parametrize("family", list(Family))
@fresh_network
def test_every_family_and_protocol_is_selected_by_its_whole_tuple(family: Family, protocol: str) -> None:
    a_node()
    v4 = family is Family.IPV4
    other, asked = (
        ("192.168.100.8", "192.168.100.9") if v4 else ("fd00:192:168:100::8", "fd00:192:168:100::9")
    )
    own = "192.168.100.10" if v4 else "fd00:192:168:100::10"
    trace = Tracer(Selection(family, protocol, own, asked, 80, from_node=True))
    try:
        for destination, port in ((other, 80), (asked, 81), (asked, 80)):
            kind = socket.SOCK_STREAM if protocol == "TCP" else socket.SOCK_DGRAM
            with socket.socket(socket.AF_INET if v4 else socket.AF_INET6, kind) as client:
                client.settimeout(0)
                client.connect_ex((destination, port))
                if protocol == "UDP":
                    client.send(b"x")
        events = [event for event in trace.events(time.monotonic() + 0.4) if event is not None]
    finally:
        trace.close()
    headers = {event.headers for event in events if event.headers is not None}
    assert {(each.source, each.destination, each.port) for each in headers} == {(own, asked, 80)}
    assert len({event.packet for event in events}) == 1


@fresh_network
def test_a_packet_that_others_drop_or_refuse_is_followed_to_the_rule() -> None:
    a_node()
    with Running(*MODES["nftables"]) as running:
        running.ready()
        do("nft", "add table ip other")
        do("nft", "add chain ip other forward { type filter hook forward priority -10; }")
        for verdict, word in (("drop", "drop"), ("reject with tcp reset", "reject")):
            do("nft", "flush chain ip other forward")
            do("nft", f"add rule ip other forward ip daddr 10.244.0.0/16 {verdict}")
            with tracing(POD, "tcp", "demo/web", "--count", "1", "-o", "json") as process:
                arrive(POD, 1)
                status, found = result(process)
            (packet,) = found["packets"]
            assert (status, packet["verdict"], packet["endpoint"]) == (2, word, None)
            assert packet["steps"][-1].startswith("ip other forward: ")
            assert "ip daddr 10.244.0.0/16" in packet["steps"][-1]
            assert packet["agrees"] is True
            assert found["explain"]["differences"]


@fresh_network
def test_without_packets_it_says_so_and_a_killed_one_leaves_nothing() -> None:
    a_node()
    with Running(*MODES["nftables"]) as running:
        running.ready()
        done = kproxy("trace", POD, "tcp", "demo/web", "--timeout", "1ms")
        assert done.returncode == 1
        assert "Error: no such packet that opens a connection came within 0.001 s" in done.stderr
        done = kproxy(
            "trace", "node", "tcp", "demo/web", "--timeout", "1ms", *FLAGS[:-1], "--proxy-mode=nftables"
        )
        assert (done.returncode, done.stderr.count("came within 0.001 s")) == (1, 1)
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
            with tracing(POD, "tcp", "demo/web") as process:
                assert len(tables()) == 1
                process.send_signal(number)
                assert process.wait(60) != 0
            assert tables() == []


@fresh_network
def test_what_an_old_kernel_keeps_after_a_kill_is_removed_later() -> None:
    trace = Tracer(ANY, owned=False)
    assert remove_leftovers() == ()
    assert len(tables()) == 1, "it is in use"
    trace.close()
    assert tables() == []
    do("nft", "add", "table", "ip", f"{PREFIX}4711")
    do("nft", "add", "table", "ip6", f"{PREFIX}4712")
    assert kproxy("cleanup").returncode == 0
    assert tables() == []
    do("nft", "add", "table", "ip", f"{PREFIX}4711")
    with Running(*MODES["nftables"]) as running:
        running.ready()
        assert tables() == []


@fresh_network
def test_no_more_packets_a_second_are_reported_than_the_rate() -> None:
    a_node()
    trace = Tracer(ANY)
    try:
        connect(200)
        first = [
            event
            for event in trace.events(time.monotonic() + 0.5)
            if event is not None and event.kind == "rule" and event.table == f"ip {PREFIX}{os.getpid()}"
        ]
    finally:
        trace.close()
    assert ANY.rate <= len(first) < 200


@pytest.mark.parametrize(
    "arguments", [("--count", "0"), ("--timeout", "0s"), ("--timeout", "soon"), ("--timeout", "2h")]
)
def test_bad_limits_are_refused(arguments: tuple[str, ...]) -> None:
    done = kproxy("trace", POD, "tcp", "demo/web", *arguments)
    assert done.returncode == 1
    assert f"Invalid value for '{arguments[0]}'" in done.stderr
