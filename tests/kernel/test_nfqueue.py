"""A real queue: packets wait for their verdicts, pass changed rules, and without a reader are dropped."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator, Sequence
from contextlib import closing

import pytest

from kproxy.kernel.nfqueue import Nfqueue, NfqueueError, Queued, Verdict, queued
from kproxy_lab.lab import Lab, LabSpec

pytestmark = pytest.mark.root
QUEUE, PORT = 4711, 53
FAMILIES = {4: ("iptables", socket.AF_INET), 6: ("ip6tables", socket.AF_INET6)}


class Datagrams:
    """One pod sends to the other, past a rule that queues."""

    def __init__(self, lab: Lab, family: int) -> None:
        program, kind = FAMILIES[family]
        first, second = lab.pods
        self._node, self._program = lab.node, program
        self.ips = [first.ip4, second.ip4] if family == 4 else [first.ip6, second.ip6]
        self._sender = first.namespace.open_socket(kind, socket.SOCK_DGRAM)
        self._receiver = second.namespace.open_socket(kind, socket.SOCK_DGRAM)
        self._receiver.bind((self.ips[1], PORT))
        self.rules(f"-A FORWARD -p udp -j NFQUEUE --queue-num {QUEUE}")

    def rules(self, rule: str) -> None:
        self._node.run([self._program, "-F", "FORWARD"])
        if rule:
            made = self._node.run([self._program, *rule.split()], check=False)
            if made.returncode:
                pytest.skip(f"this kernel refuses NFQUEUE: {made.stderr}")

    def send(self, *contents: bytes) -> None:
        for content in contents:
            self._sender.sendto(content, (self.ips[1], PORT))

    def received(self, seconds: float = 5.0) -> bytes | None:
        if not select.select([self._receiver], [], [], seconds)[0]:
            return None
        return self._receiver.recv(100)

    def close(self) -> None:
        self.rules("")
        self._sender.close()
        self._receiver.close()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if reasons := Lab.missing():
        pytest.skip("; ".join(reasons))
    with Lab(LabSpec(local_pods=2, remote_pods=0)) as made:
        yield made


@pytest.fixture(params=FAMILIES, ids=("ipv4", "ipv6"))
def datagrams(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Datagrams]:
    with closing(Datagrams(lab, request.param)) as made:
        yield made


@pytest.fixture
def queue(lab: Lab) -> Iterator[Nfqueue]:
    with closing(lab.node.call(Nfqueue, QUEUE, 8)) as made:
        yield made


def some(queue: Nfqueue, number: int = 1) -> Sequence[Queued]:
    found: list[Queued] = []
    while len(found) < number:
        got = queue.wait(5)
        assert got, "no packet came"
        found += got
    return found


def test_a_packet_waits_and_then_goes_through_the_rules_as_they_are(
    datagrams: Datagrams, queue: Nfqueue
) -> None:
    datagrams.send(b"one")
    (packet,) = some(queue)
    kind = socket.AF_INET6 if ":" in datagrams.ips[0] else socket.AF_INET
    assert [packet.source, packet.destination] == [socket.inet_pton(kind, ip) for ip in datagrams.ips]
    assert (packet.protocol, packet.flow[2:]) == (17, PORT.to_bytes(2, "big"))
    queue.decide([packet.number], Verdict.REPEAT)
    (again,) = some(queue)  # the rule is the same
    assert again.number != packet.number
    datagrams.rules("-A FORWARD -p udp -j ACCEPT")
    queue.decide([again.number], Verdict.REPEAT)
    assert datagrams.received() == b"one"


def test_rules_that_refuse_meanwhile_count_too(datagrams: Datagrams, queue: Nfqueue) -> None:
    datagrams.send(b"one")
    (packet,) = some(queue)
    datagrams.rules("-A FORWARD -p udp -j DROP")
    queue.decide([packet.number], Verdict.REPEAT)
    datagrams.rules("")
    datagrams.send(b"two")
    assert datagrams.received() == b"two"


def test_each_packet_has_its_own_verdict_and_too_many_are_dropped(
    datagrams: Datagrams, queue: Nfqueue
) -> None:
    datagrams.send(*(bytes([number]) for number in range(20)))
    packets = some(queue, 8)
    queue.decide([each.number for each in packets[:7]], Verdict.DROP)
    queue.decide([packets[7].number, 99_999], Verdict.ACCEPT)
    assert datagrams.received() == bytes([7])
    datagrams.rules("")
    datagrams.send(b"last")
    assert datagrams.received() == b"last"


def test_without_a_listener_packets_are_dropped(datagrams: Datagrams, lab: Lab) -> None:
    datagrams.send(b"one")
    with closing(lab.node.call(Nfqueue, QUEUE, 8)) as queue:
        datagrams.send(b"two")
        some(queue)
    datagrams.rules("")
    datagrams.send(b"three")
    assert datagrams.received() == b"three"


def test_a_queue_has_one_listener(lab: Lab, queue: Nfqueue) -> None:
    with pytest.raises(NfqueueError, match="another program"):
        lab.node.call(Nfqueue, QUEUE, 8)


def test_a_wait_ends_when_it_is_woken(queue: Nfqueue) -> None:
    queue.wake()
    assert queue.wait(None) == []


def test_what_is_no_ip_packet_has_no_addresses() -> None:
    assert queued(7, b"\x00short") == Queued(7, b"", b"", 0, b"")
    assert queued(7, b"").flow == b""
