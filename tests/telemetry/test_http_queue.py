"""Which connection gives way to a new one: that of the client with the most, the first of its stage."""

import socket
from collections.abc import Iterator

import pytest

from kproxy.telemetry.http.connection import Connection, Listener, Queue, Stage
from kproxy.telemetry.http.message import Answer


class Clients:
    """Connections of one listener, by the address of their client."""

    def __init__(self) -> None:
        self.socket = socket.socket()
        self.queue = Queue(5)
        self._listener = Listener(self.socket, lambda _: Answer(b""), 3)

    def connect(self, client: str) -> Connection:
        return Connection(self.socket, client, self._listener, self.queue, 0.0)


@pytest.fixture
def clients() -> Iterator[Clients]:
    made = Clients()
    yield made
    made.socket.close()


def test_a_queue_is_full_at_its_limit(clients: Clients) -> None:
    assert clients.queue.victim() is None
    assert clients.queue.first(Stage.READING) is None
    made, full = [], []
    for _ in range(5):
        made.append(clients.connect("192.0.2.1"))
        full.append(clients.queue.full)
    assert full == [False, False, False, False, True]
    assert clients.queue.all() == made
    made[0].leave()
    assert made[0].closed
    assert (len(clients.queue), clients.queue.full) == (4, False)


def test_the_client_with_the_most_connections_loses_its_first(clients: Clients) -> None:
    one = clients.connect("192.0.2.1")
    flood = [clients.connect("192.0.2.2") for _ in range(2)]
    assert clients.queue.victim() is flood[0]
    flood[0].leave()
    assert clients.queue.victim() is one
    flood[1].leave()
    assert clients.queue.victim() is one
    again = clients.connect("192.0.2.2")
    one.leave()
    assert clients.queue.victim() is again


def test_the_earliest_stage_gives_way_first(clients: Clients) -> None:
    first, second, third = (clients.connect("192.0.2.1") for _ in range(3))
    first.enter(Stage.WRITING, 1.0)
    assert clients.queue.victim() is second
    second.enter(Stage.WORKING, 2.0)
    third.enter(Stage.LINGERING, 3.0)
    assert clients.queue.victim() is third
    third.leave()
    assert clients.queue.victim() is first
    assert clients.queue.first(Stage.WRITING) is first
    assert first.entered == 1.0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
    ],
)
def test_an_ipv6_client_is_its_network_of_64_bits(
    clients: Clients, one: str, other: str, *, same: bool
) -> None:
    assert (clients.connect(one).origin == clients.connect(other).origin) == same


def test_a_connection_that_leaves_waits_for_no_answer(clients: Clients) -> None:
    first, second = clients.connect("192.0.2.1"), clients.connect("192.0.2.2")
    work: dict[Connection, None] = {first: None, second: None}
    first.work = second.work = work
    first.leave()
    assert work == {second: None}
