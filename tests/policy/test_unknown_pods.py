"""Pods that start before the API has their address, or while no kproxy runs: policies count all the same."""

from __future__ import annotations

import select
import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kproxy.kernel import bridges
from kproxy_lab.lab import Lab, LabSpec, Pod
from tests.packets.objects import FAMILIES
from tests.packets.program import DEADLINE
from tests.policy.node import PORT, SILENCE, Node, running

pytestmark = pytest.mark.root


@pytest.fixture
def bridged() -> bool:
    """Whether the local pods share a bridge."""
    return False


@pytest.fixture
def node(tmp_path: Path, bridged: bool) -> Iterator[Node]:
    if reasons := Lab.missing():
        pytest.skip("; ".join(reasons))
    with running(tmp_path, LabSpec(local_pods=3, remote_pods=1, plain_bridge=bridged)) as made:
        if bridged and not made.lab.node.call(bridges.loaded):
            pytest.skip("this kernel has no br_netfilter")
        for pod, app in zip(made.lab.pods, ("server", "", "", "far"), strict=True):
            if app:
                made.pod(pod, app=app)
        made.policy("server", {"app": "server"}, ingress=[{"from": [peer("client")]}])
        yield made


def peer(app: str) -> dict[str, object]:
    return {"podSelector": {"matchLabels": {"app": app}}}


class Datagrams:
    """One pod sends datagrams to another, in both families; none is sent again."""

    def __init__(self, source: Pod, target: Pod, port: int = PORT) -> None:
        self._ways = []
        for family in FAMILIES:
            kind = socket.AF_INET if family == 4 else socket.AF_INET6
            sender, receiver = (
                each.namespace.open_socket(kind, socket.SOCK_DGRAM) for each in (source, target)
            )
            receiver.bind((target.ip(family), port))
            sender.connect((target.ip(family), port))
            self._ways.append((sender, receiver))

    def send(self, text: bytes) -> None:
        for sender, _ in self._ways:
            sender.send(text)

    def received(self, seconds: float) -> list[bytes | None]:
        """The next datagram of each family, None if none comes in time."""
        return [
            receiver.recv(100) if select.select([receiver], [], [], seconds)[0] else None
            for _, receiver in self._ways
        ]

    def silent(self) -> bool:
        return self.received(SILENCE / 2) == [None, None]

    def close(self) -> None:
        for way in self._ways:
            for each in way:
                each.close()


def hold(node: Node) -> None:
    program = node.start("--network-policy-unknown-pods", "hold")
    program.wait_log("policy_synced", "IPv6")
    if node.lab.spec.plain_bridge:
        program.wait_log("bridge_judged", "nf_call_ip6tables")


@pytest.mark.parametrize("bridged", [False, True], ids=("routed", "bridged"))
def test_packets_of_a_pod_wait_until_it_is_known_and_are_judged_then(node: Node) -> None:
    server, client, other, far = node.lab.pods
    hold(node)
    with (
        closing(Datagrams(client, server)) as allowed,
        closing(Datagrams(other, server, PORT + 1)) as forbidden,
        closing(Datagrams(other, far)) as out,
    ):
        for each in (allowed, forbidden, out):
            each.send(b"first")
        assert allowed.silent()
        node.pod(client, app="client")
        assert allowed.received(DEADLINE) == [b"first", b"first"]
        node.pod(other, app="other")
        assert out.received(DEADLINE) == [b"first", b"first"]
        assert forbidden.silent()
    with closing(Datagrams(far, other)) as known:
        known.send(b"later")
        assert known.received(DEADLINE) == [b"later", b"later"]


def test_packets_to_a_pod_that_is_not_known_wait_too(node: Node) -> None:
    server, client, _, far = node.lab.pods
    hold(node)
    node.policy("client", {"app": "client"}, ingress=[{"from": [peer("server")]}])
    with (
        closing(Datagrams(far, client)) as forbidden,
        closing(Datagrams(server, client, PORT + 1)) as allowed,
    ):
        for each in (forbidden, allowed):
            each.send(b"first")
        assert forbidden.silent()
        node.pod(client, app="client")
        assert allowed.received(DEADLINE) == [b"first", b"first"]
        assert forbidden.silent()


def test_a_result_of_cni_makes_a_pod_known_before_the_api_has_its_address(node: Node) -> None:
    server, client, other, far = node.lab.pods
    hold(node)
    node.pod(client, known=False, app="client")
    node.pod(other, known=False, app="other")
    node.policy("quiet", {"app": "other"}, policyTypes=["Egress"])
    with closing(Datagrams(client, server)) as allowed, closing(Datagrams(other, far)) as forbidden:
        allowed.send(b"first")
        forbidden.send(b"first")
        assert allowed.silent()
        node.result(client)
        node.result(other)
        assert allowed.received(DEADLINE) == [b"first", b"first"]
        assert forbidden.silent()


def test_results_of_cni_isolate_pods_also_where_unknown_ones_are_allowed(node: Node) -> None:
    _, client, other, far = node.lab.pods
    node.policy("quiet", {"app": "other"}, policyTypes=["Egress"])
    node.pod(other, known=False, app="other")
    program = node.start("--network-policy-unknown-pods", "allow")
    program.wait_log("policy_synced", "IPv6")
    with closing(Datagrams(other, far)) as before, closing(Datagrams(client, far, PORT + 1)) as unknown:
        for each in (before, unknown):
            each.send(b"open")
            assert each.received(DEADLINE) == [b"open", b"open"]
    since = program.mark()
    node.result(other)
    program.wait_log("policy_synced", "IPv6", since=since)
    with closing(Datagrams(other, far, PORT + 2)) as after:
        after.send(b"closed")
        assert after.silent()


@pytest.mark.parametrize("setting", ["hold", "drop"])
def test_while_kproxy_is_away_new_pods_are_closed_and_known_ones_are_judged(node: Node, setting: str) -> None:
    server, client, other, far = node.lab.pods
    node.pod(client, app="client")
    program = node.start("--network-policy-unknown-pods", setting)
    program.wait_log("policy_synced", "IPv6")
    program.end(signal.SIGKILL)
    with (
        closing(Datagrams(client, server)) as allowed,
        closing(Datagrams(far, server, PORT + 1)) as forbidden,
        closing(Datagrams(other, far)) as unknown,
    ):
        for each in (allowed, forbidden, unknown):
            each.send(b"first")
        assert allowed.received(DEADLINE) == [b"first", b"first"]
        assert forbidden.silent()
        assert unknown.silent()
        node.pod(other, app="other")
        program = node.start("--network-policy-unknown-pods", setting)
        program.wait_log("policy_synced", "IPv6")
        unknown.send(b"second")
        assert unknown.received(DEADLINE) == [b"second", b"second"]
