"""IPVS requests as bytes, read back by pyroute2, which knows the kernel's layout independently."""

from __future__ import annotations

import ipaddress
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroute2.netlink.generic.ipvs import ipvsmsg

from kproxy.addresses import Family, parse_ip
from kproxy.kernel.ipvs import codec
from kproxy.kernel.ipvs.types import (
    PERSISTENT,
    SCHED1,
    SCHED2,
    SETTABLE_FLAGS,
    Command,
    DestinationId,
    Request,
    ServerId,
    Statistics,
    VirtualServer,
)
from kproxy.kernel.netlink.messages import attribute, attributes, message, nested

NUMBERS = {"TCP": 6, "UDP": 17, "SCTP": 132}
addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(lambda ip: parse_ip(str(ip))[1])
ports = st.integers(1, 65535)
protocols = st.sampled_from(sorted(NUMBERS))
servers = st.builds(ServerId, protocols, addresses, ports)


def read(payload: bytes) -> Any:
    """What pyroute2 makes of a payload."""
    parsed = ipvsmsg(message(30, 5, 1, payload))
    parsed.decode()
    return parsed


def server_of(parsed: Any) -> dict[str, Any]:
    return dict(parsed.get("IPVS_CMD_ATTR_SERVICE")["attrs"])


@given(server=servers, scheduler=st.sampled_from(["rr", "wlc", "mh"]), timeout=st.integers(0, 86400))
@pytest.mark.parametrize("command", [Command.NEW_SERVICE, Command.SET_SERVICE])
def test_a_virtual_server_is_encoded_as_the_kernel_reads_it(
    command: Command, server: ServerId, scheduler: str, timeout: int
) -> None:
    settings = VirtualServer(scheduler, PERSISTENT | SCHED2, timeout)
    parsed = read(codec.encode(Request(command, server, settings)))
    found = server_of(parsed)
    assert parsed["cmd"] == command.value
    assert found["IPVS_SVC_ATTR_PROTOCOL"] == NUMBERS[server.protocol]
    assert ipaddress.ip_address(found["IPVS_SVC_ATTR_ADDR"]) == ipaddress.ip_address(server.ip)
    assert found["IPVS_SVC_ATTR_PORT"] == server.port
    assert found["IPVS_SVC_ATTR_SCHED_NAME"] == scheduler
    assert found["IPVS_SVC_ATTR_FLAGS"] == {"flags": PERSISTENT | SCHED2, "mask": SETTABLE_FLAGS}
    assert found["IPVS_SVC_ATTR_TIMEOUT"] == timeout
    # pyroute2 takes the mask for an IPv4 address; for IPv6 it is a prefix length of 128.
    mask = ipaddress.ip_address(found["IPVS_SVC_ATTR_NETMASK"]).packed
    assert mask == (b"\xff" * 4 if server.family is Family.IPV4 else struct.pack("=I", 128))


@given(server=servers, ip=addresses, port=ports, weight=st.integers(0, 65535))
@pytest.mark.parametrize("command", [Command.NEW_DEST, Command.SET_DEST, Command.DEL_DEST])
def test_a_destination_is_encoded_as_the_kernel_reads_it(
    command: Command, server: ServerId, ip: str, port: int, weight: int
) -> None:
    payload = codec.encode(Request(command, server, None, DestinationId(ip, port), weight))
    parsed = read(payload)
    found = dict(parsed.get("IPVS_CMD_ATTR_DEST")["attrs"])
    assert parsed["cmd"] == command.value
    assert server_of(parsed)["IPVS_SVC_ATTR_PORT"] == server.port
    # pyroute2 cannot read the address of a request; union nf_inet_addr is 16 bytes for either family.
    assert attribute(1, ipaddress.ip_address(ip).packed.ljust(16, b"\0")) in payload
    assert found["IPVS_DEST_ATTR_PORT"] == port
    if command is not Command.DEL_DEST:
        assert (found["IPVS_DEST_ATTR_FWD_METHOD"], found["IPVS_DEST_ATTR_WEIGHT"]) == (0, weight)


def test_a_deletion_names_the_server_and_nothing_else() -> None:
    parsed = read(codec.encode(Request(Command.DEL_SERVICE, ServerId("TCP", "10.0.0.1", 80))))
    assert set(server_of(parsed)) == {
        "IPVS_SVC_ATTR_AF",
        "IPVS_SVC_ATTR_PROTOCOL",
        "IPVS_SVC_ATTR_ADDR",
        "IPVS_SVC_ATTR_PORT",
    }


@given(server=servers, flags=st.sampled_from([0, PERSISTENT, SCHED1, SCHED1 | SCHED2]))
def test_what_is_written_is_read_back(server: ServerId, flags: int) -> None:
    settings = VirtualServer("sh", flags, 300 if flags & PERSISTENT else 0)
    payload = codec.encode(Request(Command.NEW_SERVICE, server, settings))
    wanted = ServerId(server.protocol, str(ipaddress.ip_address(server.ip)), server.port)
    decoded = codec.decode_service(payload)
    assert decoded is not None
    assert decoded[1] == settings
    assert ipaddress.ip_address(decoded[0].ip) == ipaddress.ip_address(wanted.ip)
    assert (decoded[0].protocol, decoded[0].port) == (wanted.protocol, wanted.port)


def told(server: ServerId, settings: VirtualServer, packets: int) -> bytes:
    """A virtual server as the kernel tells of it: its settings, then what it counted."""
    whole = codec.encode(Request(Command.NEW_SERVICE, server, settings))
    counters = nested(10, attribute(2, struct.pack("=I", packets)))
    counters += nested(12, attribute(2, struct.pack("=Q", packets)))
    return whole[:4] + nested(1, whole[8:], counters)


@settings(deadline=None)
@given(
    before=st.dictionaries(servers, st.sampled_from(["rr", "wlc", "sh"]), max_size=5),
    after=st.dictionaries(servers, st.sampled_from(["rr", "wlc", "sh"]), max_size=5),
    packets=st.integers(0, 2**31),
)
def test_a_digest_shows_what_changed_but_not_what_was_counted(
    before: dict[ServerId, str], after: dict[ServerId, str], packets: int
) -> None:
    def dump(schedulers: dict[ServerId, str], counted: int) -> list[bytes]:
        return [told(each, VirtualServer(schedulers[each]), counted) for each in sorted(schedulers)]

    assert codec.digest(dump(before, 0)) == codec.digest(dump(before, packets))
    assert (codec.digest(dump(before, 0)) == codec.digest(dump(after, packets))) is (before == after)
    for server in before:
        plain = [told(server, VirtualServer("rr"), packets)]
        for other in (VirtualServer("rr", SCHED1), VirtualServer("rr", PERSISTENT, 60)):
            assert codec.digest(plain) != codec.digest([told(server, other, packets)])


def test_servers_keyed_by_firewall_mark_are_passed_over() -> None:
    payload = codec.header(codec.CMD_GET_SERVICE) + nested(
        1, attribute(1, struct.pack("=H", 2)), attribute(5, struct.pack("=I", 7))
    )
    assert codec.decode_service(payload) is None


def test_counters_are_read_in_64_bits() -> None:
    server = ServerId("TCP", "10.0.0.1", 80)
    header, encoded = (whole := codec.encode(Request(Command.DEL_SERVICE, server)))[:4], whole[8:]
    counted = [2**33 + n for n in range(5)]
    stats = b"".join(attribute(n + 1, struct.pack("=Q", value)) for n, value in enumerate(counted))
    decoded = codec.decode_statistics(header + nested(1, encoded, nested(12, stats)))
    assert decoded == (server, Statistics(*counted))
    assert codec.decode_statistics(whole) == (server, Statistics())


def test_truncated_attributes_end_the_reading() -> None:
    whole = attribute(1, b"abcd") + attribute(2, b"efgh")
    assert attributes(whole) == {1: b"abcd", 2: b"efgh"}
    assert attributes(whole[:-2]) == {1: b"abcd"}
