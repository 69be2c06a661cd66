"""Established connections and a policy that forbids them: they end in both directions, and no others do."""

from __future__ import annotations

import re
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest

from kproxy_lab.lab import Lab, LabSpec
from kproxy_lab.lab.topology import Family
from tests.packets.objects import FAMILIES
from tests.policy.node import SERVICE_IPS, SILENCE, Held, Node, arrive, connect, running

pytestmark = pytest.mark.root
ECHO = {4: (socket.AF_INET, socket.IPPROTO_ICMP, 8), 6: (socket.AF_INET6, socket.IPPROTO_ICMPV6, 128)}
"""Family, protocol and the type of an echo request."""
ENDED = re.compile(r"event=connections_ended .*connections=(\d+)")
WAYS = [(protocol, family) for protocol in ("TCP", "UDP") for family in FAMILIES]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    if reasons := Lab.missing():
        pytest.skip("; ".join(reasons))
    with running(tmp_path_factory.mktemp("node"), LabSpec(local_pods=3, remote_pods=1)) as made:
        server, client, other = made.lab.local_pods
        made.pod(server, app="server")
        made.pod(client, app="client")
        made.pod(other, app="other")
        made.pod(made.lab.remote_pods[0], app="remote")
        made.service(server)
        program = made.start()
        program.wait_log("policy_synced", "IPv6")
        program.wait_log("synced", "IPv6")
        yield made


@pytest.fixture
def held(node: Node) -> Iterator[dict[str, Held]]:
    """Connections of every protocol and family: allowed and forbidden ones, by either end of a policy."""
    server, client, other = node.lab.local_pods
    (remote,) = node.lab.remote_pods
    with ExitStack() as opened:
        made = {}
        for number, (protocol, family) in enumerate(WAYS):
            ports = iter(range(9000 + 10 * number, 9010 + 10 * number))
            for name, source, target in (
                ("forbidden", client, server),
                ("forbidden from far", remote, server),
                ("allowed", other, server),
                ("of others", client, other),
                ("forbidden out", server, other),
                ("forbidden out far", server, remote),
            ):
                pair = connect(source, target.ip(family), target, protocol, next(ports))
                made[f"{name} {protocol} {family}"] = opened.enter_context(closing(pair))
        yield made


def ended(log: list[str]) -> int:
    """The number of connections that were ended, in both families."""
    return sum(int(found[1]) for line in log if (found := ENDED.search(line)))


@contextmanager
def applied(node: Node, name: str, **spec: object) -> Iterator[int]:
    """A policy of the server that is in force; yields the position in the log from before it."""
    assert node.program is not None
    since = node.program.mark()
    node.policy(name, {"app": "server"}, **spec)
    node.program.wait_log("policy_synced", "IPv6", since=since)
    try:
        yield since
    finally:
        before = node.program.mark()
        node.delete("NetworkPolicy", name)
        node.program.wait_log("policy_synced", "IPv6", since=before)


NARROW = {
    "policyTypes": ["Ingress", "Egress"],
    "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "other"}}}]}],
    "egress": [],
}
"""The server talks with one pod only, which opens the connections."""


def test_what_a_policy_forbids_ends_whichever_end_speaks_first(node: Node, held: dict[str, Held]) -> None:
    program = node.program
    assert program is not None
    with applied(node, "narrow", **NARROW) as since:
        program.until(lambda: ended(program.log[since:]), 4 * len(WAYS))
        # Either end speaks first: its packet must not bring the connection back.
        ways = [
            (pair.client, pair.server) if index % 2 else (pair.server, pair.client)
            for index, pair in enumerate(held.values())
        ]
        expected = [not name.startswith("forbidden") for name in held]
        assert dict(zip(held, arrive(ways), strict=True)) == dict(zip(held, expected, strict=True))
        assert arrive([(receiver, sender) for sender, receiver in ways]) == expected


@pytest.mark.parametrize("ip", SERVICE_IPS, ids=("ipv4", "ipv6"))
def test_a_service_is_judged_at_its_pod(node: Node, ip: str) -> None:
    server, client, other = node.lab.local_pods
    program = node.program
    assert program is not None
    with closing(connect(client, ip, server)) as pair, applied(node, "narrow", **NARROW) as since:
        program.until(lambda: (pair.answers(), pair.asks()), (False, False))
        assert ended(program.log[since:])
    with closing(connect(other, ip, server)) as pair, applied(node, "narrow", **NARROW):
        assert (pair.answers(), pair.asks()) == (True, True)


def test_the_nodes_own_connections_stay(node: Node) -> None:
    server, host = node.lab.local_pods[0], node.lab.node_pod
    with (
        closing(connect(host, server.ip4, server)) as pair,
        applied(node, "nothing", ingress=[]),
        closing(connect(server, host.ip4, host, port=9100)) as out,
    ):
        assert (pair.answers(), pair.asks(), out.asks()) == (True, True, True)


@pytest.mark.parametrize("family", FAMILIES, ids=("ipv4", "ipv6"))
def test_a_ping_that_runs_ends(node: Node, family: Family) -> None:
    server, client, _ = node.lab.local_pods
    program = node.program
    assert program is not None
    client.namespace.sysctl("net.ipv4.ping_group_range", "0 0")
    kind, number, request = ECHO[family]
    with closing(client.namespace.open_socket(kind, socket.SOCK_DGRAM, number)) as ping:
        ping.connect((server.ip(family), 0))

        def answered() -> bool:
            ping.send(struct.pack("!BBHHH", request, 0, 0, 0, 1))
            return bool(select.select([ping], [], [], SILENCE)[0]) and bool(ping.recv(100))

        assert answered()
        with applied(node, "narrow", **NARROW):
            program.until(answered, expected=False)
            assert not answered()
        assert answered()
