"""Tracked connections of addresses: found from either end and after translation, and deleted one by one."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from kproxy.addresses import Family
from kproxy.kernel.conntrack.connections import Connection, NetlinkConnections
from tests.kernel.namespace import fresh_network

PORT, SERVICE_PORT = 5353, 53
AF = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
ADDRESSES = {
    Family.IPV4: ("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.96.0.1"),
    Family.IPV6: ("fd00::1", "fd00::2", "fd00::3", "fd00:96::1"),
}
"""A client, a server, another client, a service."""


@contextmanager
def connections(family: Family) -> Iterator[dict[str, int]]:
    """Three connections to the server: by its service, directly, and by UDP from the other client.

    Yields the source port of each.
    """
    client, server, other, service = ADDRESSES[family]
    ip, bits = ("ip", 32) if family is Family.IPV4 else ("ip6", 128)
    commands = [["ip", "link", "set", "lo", "up"]]
    commands += [["ip", "addr", "add", f"{each}/{bits}", "dev", "lo", *(["nodad"] if bits == 128 else [])]
                 for each in (client, server, other)]  # fmt: skip
    to = f"{server}:{PORT}" if bits == 32 else f"[{server}]:{PORT}"
    commands += [["ip", *(["-6"] if bits == 128 else []), "route", "add", service, "dev", "lo"]]
    rule = f"{ip} daddr {service} tcp dport {SERVICE_PORT} dnat to {to}"
    hook = "type nat hook output priority -100"
    commands += [["nft", f"table {ip} t {{ chain c {{ {hook}; {rule}; }}; }}"]]
    for command in commands:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"this kernel refuses {command}: {done.stderr}")
    kind = AF[family]
    with ExitStack() as opened:
        opened.enter_context(socket.create_server((server, PORT), family=kind))
        ports = {}
        for name, source, to_ip, port in (
            ("service", client, service, SERVICE_PORT),
            ("direct", client, server, PORT),
        ):
            made = opened.enter_context(socket.create_connection((to_ip, port), 5, (source, 0)))
            ports[name] = made.getsockname()[1]
        sender, receiver = (opened.enter_context(socket.socket(kind, socket.SOCK_DGRAM)) for _ in range(2))
        receiver.bind((server, PORT))
        sender.bind((other, 0))
        sender.sendto(b"?", (server, PORT))
        assert receiver.recv(10) == b"?"
        ports["udp"] = sender.getsockname()[1]
        yield ports


def shown(found: list[Connection]) -> set[tuple[object, ...]]:
    return {
        (each.protocol, each.source, each.source_port, each.destination, each.port, each.server,
         each.server_port, each.client, each.client_port)
        for each in found
    }  # fmt: skip


@pytest.mark.parametrize("family", Family, ids=str)
@fresh_network
def test_connections_are_found_from_either_end_after_translation(family: Family) -> None:
    client, server, other, service = ADDRESSES[family]
    with connections(family) as ports:
        expected = {
            name: (protocol, source, ports[name], to, port, server, PORT, source, ports[name])
            for name, protocol, source, to, port in (
                ("service", 6, client, service, SERVICE_PORT),
                ("direct", 6, client, server, PORT),
                ("udp", 17, other, server, PORT),
            )
        }
        tracked = NetlinkConnections()
        assert shown(tracked.of(family, [server])) == set(expected.values())
        assert shown(tracked.of(family, [client])) == {expected["service"], expected["direct"]}
        assert shown(tracked.of(family, [other])) == {expected["udp"]}
        assert tracked.of(family, [service]) == []
        assert tracked.of(family, []) == []
        # More addresses than the kernel is asked to filter by.
        many = [*(f"10.9.0.{i}" if family is Family.IPV4 else f"fd09::{i}" for i in range(1, 9)), other]
        assert shown(tracked.of(family, many)) == {expected["udp"]}


@fresh_network
def test_the_kernel_sends_only_what_concerns_few_addresses() -> None:
    family = Family.IPV4
    with connections(family):
        tracked = NetlinkConnections()
        answers: list[bytes] = []
        dump = tracked._open().dump

        def counting(kind: int, payload: bytes, *, wanted: object) -> list[bytes]:
            answers.extend(found := dump(kind, payload))
            return found

        tracked._open().dump = counting  # type: ignore[method-assign, assignment]
        assert len(tracked.of(family, [ADDRESSES[family][2]])) == 1
        assert len(answers) == 1


@fresh_network
def test_what_is_deleted_is_gone_and_others_stay() -> None:
    client, server, other, _ = ADDRESSES[Family.IPV4]
    with connections(Family.IPV4) as ports:
        tracked = NetlinkConnections()
        found = tracked.of(Family.IPV4, [server])
        gone = [each for each in found if each.source_port in {ports["service"], ports["udp"]}]
        assert tracked.delete(Family.IPV4, gone) == 2
        assert tracked.delete(Family.IPV4, gone) == 0
        left = tracked.of(Family.IPV4, [server])
        assert [(each.source, each.source_port) for each in left] == [(client, ports["direct"])]
        assert tracked.of(Family.IPV4, [other]) == []
