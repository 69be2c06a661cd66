"""Packets that rules log: their headers, who may listen, and what a full socket loses."""

import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest

from kproxy.kernel import nflog
from kproxy.kernel.netlink.messages import attribute, nested
from kproxy.kernel.nflog import Logged, Nflog, NflogError
from tests.kernel.namespace import fresh_network, without_capabilities

GROUP = 1700
RULES = f"""
table inet t {{
    chain c {{
        type filter hook input priority 0;
        meta l4proto {{ tcp, udp, sctp, icmp, icmpv6 }} log group {GROUP} prefix "i-ABC" drop
    }}
}}
"""
TIMEOUT = 10.0


@contextmanager
def logging() -> Iterator[None]:
    """Rules that log and drop everything on lo; skips where the kernel has none."""
    if shutil.which("nft") is None:
        pytest.skip("needs nft")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    done = subprocess.run(["nft", "-f", "-"], input=RULES, text=True, check=False, capture_output=True)
    if done.returncode:
        pytest.skip(f"this kernel cannot log packets: {done.stderr}")
    yield


def gather(reader: Nflog, count: int) -> list[Logged]:
    found: list[Logged] = []
    deadline = time.monotonic() + TIMEOUT
    while len(found) < count and time.monotonic() < deadline:
        found += reader.wait(deadline - time.monotonic())
    return found


@fresh_network
def test_headers_of_both_families_are_read() -> None:
    with logging():
        reader = Nflog(GROUP)
        try:
            for kind, ip in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
                with socket.socket(kind, socket.SOCK_DGRAM) as sender:
                    sender.bind((ip, 5000))
                    sender.sendto(b"?", (ip, 5001))
                with socket.socket(kind, socket.SOCK_STREAM) as client:
                    client.bind((ip, 5002))
                    client.settimeout(0)
                    client.connect_ex((ip, 5003))
            found = gather(reader, 4)
        finally:
            reader.close()
    lo = socket.if_nametoindex("lo")
    expected = [
        Logged("i-ABC", ip, ip, protocol, port, port + 1, lo)
        for ip in ("127.0.0.1", "::1")
        for protocol, port in ((17, 5000), (6, 5002))
    ]
    assert [replaced_time(each) for each in found] == expected
    assert reader.lost == 0


def replaced_time(logged: Logged) -> Logged:
    assert logged.at is None or abs(logged.at - time.time()) < 60
    return msgspec.structs.replace(logged, at=None, asked="", asked_port=0)


@fresh_network
def test_a_group_has_one_listener_and_the_second_one_learns_why() -> None:
    with logging():
        first = Nflog(GROUP)
        try:
            with pytest.raises(
                NflogError, match=rf"another program reads NFLOG group {GROUP} \(netlink port"
            ):
                Nflog(GROUP)
            Nflog(GROUP + 1).close()
        finally:
            first.close()
        Nflog(GROUP).close()


@fresh_network
def test_without_rights_the_reason_names_them() -> None:
    without_capabilities()
    with pytest.raises(NflogError, match="needs CAP_NET_ADMIN"):
        Nflog(GROUP)


@fresh_network
def test_waiting_ends_with_a_wake_and_no_packets() -> None:
    reader = Nflog(GROUP)
    try:
        threading.Timer(0.05, reader.wake).start()
        assert reader.wait(TIMEOUT) == ()
        assert reader.wait(0) == ()
    finally:
        reader.close()


@fresh_network
def test_what_a_full_socket_loses_is_counted_and_the_rest_still_comes() -> None:
    with logging():
        reader = Nflog(GROUP, receive_buffer=1)
        sent = 3000
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                for _ in range(sent):
                    sender.sendto(b"?", ("127.0.0.1", 5001))
                found: list[Logged] = []
                while (more := reader.wait(0.5)) or (more := reader.wait(0.5)):
                    found += more
                for _ in range(64):
                    sender.sendto(b"?", ("127.0.0.1", 5009))
                found += gather(reader, 64)
        finally:
            reader.close()
    assert found[-1].port == 5009
    assert reader.lost > 0
    assert len(found) + reader.lost == sent + 64


def packet6(*extensions: tuple[int, bytes]) -> bytes:
    """A TCP packet from port 1 to 2 behind extension headers: number, content from byte 1 on."""
    numbers = [number for number, _ in extensions] + [6]
    body = b"".join(
        bytes([following]) + content for (_, content), following in zip(extensions, numbers[1:], strict=True)
    ) + struct.pack("!HH", 1, 2)
    head = struct.pack("!IHBB", 6 << 28, len(body), numbers[0], 64)
    return (
        head
        + socket.inet_pton(socket.AF_INET6, "fd00::1")
        + socket.inet_pton(socket.AF_INET6, "fd00::2")
        + body
    )


@pytest.mark.parametrize(
    ("packet", "protocol", "ports"),
    [
        (packet6(), 6, (1, 2)),
        (packet6((0, bytes(7))), 6, (1, 2)),
        (packet6((60, bytes([1]) + bytes(14)), (43, bytes(7))), 6, (1, 2)),
        (packet6((44, bytes(7))), 6, (1, 2)),
        (packet6((44, bytes([0, 0, 8, 0, 0, 0, 0]))), 6, (0, 0)),
        (packet6((0, bytes(7)))[:45], 0, (0, 0)),
    ],
    ids=["plain", "hop by hop", "options and routing", "first fragment", "later fragment", "cut"],
)
def test_ports_are_found_behind_extension_headers(
    packet: bytes, protocol: int, ports: tuple[int, int]
) -> None:
    found = nflog.decode({9: packet})
    assert found is not None
    assert (found.source, found.destination) == ("fd00::1", "fd00::2")
    assert (found.protocol, (found.source_port, found.port)) == (protocol, ports)


def packet4(protocol: int, *, fragment: int = 0, options: int = 0) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45 + options, 0, 0, 0, fragment, 64, protocol, 0)
    return (
        head + socket.inet_aton("10.0.0.1") + socket.inet_aton("10.0.0.2") + bytes(4 * options) + b"\0\1\0\2"
    )


@pytest.mark.parametrize(
    ("packet", "ports"),
    [
        (packet4(17), (1, 2)),
        (packet4(132, options=3), (1, 2)),
        (packet4(17, fragment=0x2000), (1, 2)),
        (packet4(17, fragment=0x0010), (0, 0)),
        (packet4(1), (0, 0)),
        (packet4(6)[:22], (0, 0)),
    ],
    ids=["udp", "with options", "first fragment", "later fragment", "icmp", "cut"],
)
def test_only_what_has_ports_shows_them(packet: bytes, ports: tuple[int, int]) -> None:
    found = nflog.decode({9: packet, 10: b"e-XYZ\0"})
    assert found is not None
    assert (found.prefix, found.source_port, found.port) == ("e-XYZ", *ports)


@pytest.mark.parametrize(
    ("kind", "packed", "address"),
    [
        (2, socket.inet_aton("10.96.0.1"), "10.96.0.1"),
        (4, socket.inet_pton(socket.AF_INET6, "fd00::9"), "fd00::9"),
    ],
)
def test_where_a_connection_was_sent_to_is_that_of_its_original_direction(
    kind: int, packed: bytes, address: str
) -> None:
    # CTA_TUPLE_ORIG with CTA_TUPLE_IP and CTA_TUPLE_PROTO, as ctnetlink_glue_build of the kernel nests them
    ports = nested(2, attribute(1, b"\x06"), attribute(2, b"\x9c\x40"), attribute(3, b"\x00\x50"))
    tracked = nested(1, nested(1, attribute(kind, packed)), ports) + nested(
        2, nested(1, attribute(kind, bytes(4)))
    )
    found = nflog.decode({9: packet4(6), 18: tracked})
    assert found is not None
    assert (found.asked, found.asked_port) == (address, 80)
    assert (found.destination, found.port) == ("10.0.0.2", 2)


@pytest.mark.parametrize("address", ["::1", "::ffff:10.0.0.1", "::10.0.0.1", "fd00::ffff:0:1", "64:ff9b::1"])
def test_an_address_of_ipv6_stays_one(address: str) -> None:
    packed = socket.inet_pton(socket.AF_INET6, address)
    packet = packet6()
    found = nflog.decode({9: packet[:8] + packed + packet[24:]})
    assert found is not None
    assert (":" in found.source, socket.inet_pton(socket.AF_INET6, found.source)) == (True, packed)


@pytest.mark.parametrize("payload", [b"", bytes(19), b"\x60" + bytes(30), b"\x00" + bytes(60)])
def test_what_is_no_ip_packet_is_left_out(payload: bytes) -> None:
    assert nflog.decode({9: payload}) is None
