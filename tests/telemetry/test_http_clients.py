"""Clients that are slow, hang up, or ask too much of the HTTP servers: others are served all the same."""

import contextlib
import errno
import gc
import http.client
import os
import resource
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kproxy.telemetry.http import loop as http_loop
from kproxy.telemetry.http.connection import Listener, Stage
from kproxy.telemetry.http.loop import HttpLoop
from kproxy.telemetry.http.server import Answer, HttpServer

LIMIT = 8
PATIENCE = 20.0
BIG = 8 << 20
ASK = b"GET /quick HTTP/1.1\r\nHost: node\r\n\r\n"


class Slow:
    """A route that answers once it is let go."""

    def __init__(self) -> None:
        self.runs = 0
        self.large = b""
        self.began = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def __call__(self) -> Answer:
        self.runs += 1
        self.began.release()
        assert self.go.acquire(timeout=PATIENCE)
        return Answer(self.large or b"run %d" % self.runs)


class World:
    """A server with a route of each kind."""

    def __init__(self) -> None:
        self.slow = Slow()
        self.server = HttpServer(
            "test",
            "127.0.0.1:0",
            {
                "/quick": lambda: Answer(b"ok"),
                "/slow": self.slow,
                "/broken": self._broken,
                "/big": lambda: Answer(os.urandom(1) * BIG),
            },
            limit=LIMIT,
        )
        self.server.start()
        self.clients: list[socket.socket] = []

    @staticmethod
    def _broken() -> Answer:
        raise RuntimeError("a defect")

    def connect(self, *, window: int = 0, origin: str = "127.0.0.1") -> socket.socket:
        """A client at an address; `window`: of so many bytes that it takes before it reads."""
        client = socket.socket()
        client.bind((origin, 0))
        client.settimeout(PATIENCE)
        if window:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        client.connect(("127.0.0.1", self.server.port))
        self.clients.append(client)
        return client

    def send(self, data: bytes, *, window: int = 0, origin: str = "127.0.0.1") -> socket.socket:
        """A client that has sent this."""
        client = self.connect(window=window, origin=origin)
        client.sendall(data)
        return client

    def get(self, path: str = "/quick") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def end(self) -> None:
        self.slow.go.release(1000)
        for client in self.clients:
            client.close()
        self.server.stop()


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.end()


def rest(client: socket.socket) -> bytes:
    """All that comes until the server closes, gracefully or not."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while data := client.recv(1 << 16):
            parts.append(data)
    return b"".join(parts)


def body(client: socket.socket) -> bytes:
    return rest(client).partition(b"\r\n\r\n")[2]


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def is_open(client: socket.socket) -> bool:
    """Whether the server has neither answered nor closed."""
    return not select.select([client], [], [], 0)[0]


def hung_up(client: socket.socket) -> bool:
    """Wait until the connection is torn down, without reading what arrived before."""
    poller = select.poll()
    poller.register(client, 0)
    return bool(poller.poll(PATIENCE * 1000))


def descriptors() -> int:
    gc.collect()  # of what tests before left open
    return len(list(Path("/proc/self/fd").iterdir()))


def until(met: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not met():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def test_slow_clients_cost_no_threads_and_give_way_to_probes(world: World) -> None:
    threads, before = threading.active_count(), descriptors()
    slow = [world.send(b"GET /quick HTTP/1.1\r\n") for _ in range(10 * LIMIT)]
    for _ in range(3):
        assert world.get() == (200, b"ok")
    for client in slow[:-LIMIT]:
        assert rest(client) == b""
    assert all(is_open(client) for client in slow[-LIMIT + 3 :])
    until(lambda: threading.active_count() == threads)
    assert descriptors() <= before + len(slow) + LIMIT
    # The youngest was slow, but it is no enemy.
    slow[-1].sendall(b"\r\n")
    assert body(slow[-1]) == b"ok"
    for client in slow:
        client.close()
    until(lambda: descriptors() <= before)


def test_a_client_that_floods_displaces_itself(world: World) -> None:
    """Even the work that others have asked for, and their requests that have not arrived as a whole."""
    scraper = world.send(b"GET /slow HTTP/1.1\r\n\r\n")
    assert world.slow.began.acquire(timeout=PATIENCE)
    slow = world.send(ASK[:10], origin="127.0.0.3")
    for _ in range(5 * LIMIT):
        world.send(b"GET /slow HTTP/1.1\r\n\r\n", origin="127.0.0.2")
    assert world.get() == (200, b"ok")
    slow.sendall(ASK[10:])
    assert body(slow) == b"ok"
    world.slow.go.release(2)
    assert body(scraper) == b"run 1"


@pytest.mark.parametrize(
    ("beginning", "answered"),
    [
        (b"", False),
        (b"GET /quick HTTP/1.1\r\nA: ", False),
        (b"POST /quick HTTP/1.1\r\nContent-Length: 100000\r\n\r\n", True),
        (b"POST /quick HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", True),
    ],
    ids=["request line", "headers", "body", "chunks"],
)
def test_bytes_one_by_one_extend_no_deadline(
    world: World, monkeypatch: pytest.MonkeyPatch, beginning: bytes, answered: bool
) -> None:
    monkeypatch.setattr(http_loop, "REQUEST_SECONDS", 0.2)
    monkeypatch.setattr(http_loop, "LINGER_SECONDS", 0.2)
    client = world.send(beginning)
    got = b""
    client.settimeout(0.01)
    deadline = time.monotonic() + PATIENCE
    with contextlib.suppress(ConnectionError):
        while True:
            assert time.monotonic() < deadline
            client.sendall(b"G")
            with contextlib.suppress(TimeoutError):
                got += client.recv(4096)
    assert got.endswith(b"ok") is answered


def test_an_answer_that_is_not_read_has_a_deadline(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_loop, "ANSWER_SECONDS", 0.2)
    client = world.send(b"GET /big HTTP/1.1\r\n\r\n", window=4096)
    assert hung_up(client)
    assert world.get() == (200, b"ok")


def test_a_large_answer_arrives_as_a_whole(world: World) -> None:
    status, content = world.get("/big")
    assert (status, len(content), len(set(content))) == (200, BIG, 1)


def test_unread_answers_are_bounded_in_memory(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_loop, "UNREAD_BYTES", 2 * BIG)
    readers = []
    for _ in range(4):  # each gets an answer of its own: the one before is on its way already
        readers.append(world.send(b"GET /big HTTP/1.1\r\n\r\n", window=4096))
        assert readers[-1].recv(16).startswith(b"HTTP/1.1 200")
    assert hung_up(readers[0])
    assert hung_up(readers[1])
    assert len(rest(readers[3])) > BIG


def test_slow_readers_within_the_bound_get_all_of_their_answers(world: World) -> None:
    readers = [world.send(b"GET /big HTTP/1.1\r\n\r\n", window=4096) for _ in range(3)]
    assert world.get() == (200, b"ok")  # so all have been answered as far as they read
    assert [len(body(reader)) for reader in readers] == [BIG] * 3


def test_a_client_that_sent_one_request_is_closed_once_it_is_answered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it keeps its end open; one that sends more is given time to read its answer."""
    monkeypatch.setattr(http_loop, "LINGER_SECONDS", 1000.0)
    loop = world.server._loop
    assert loop is not None
    assert body(world.send(ASK)) == b"ok"
    until(lambda: not loop._queue.all())
    assert body(world.send(ASK + b"more")) == b"ok"
    until(lambda: [each.stage for each in loop._queue.all()] == [Stage.LINGERING])


def test_one_answer_for_many_counts_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_loop, "UNREAD_BYTES", BIG // 2)
    world.slow.large = bytes(BIG)
    first = world.send(b"GET /slow HTTP/1.1\r\n\r\n")
    assert world.slow.began.acquire(timeout=PATIENCE)
    readers = [world.send(b"GET /slow HTTP/1.1\r\n\r\n", window=4096) for _ in range(3)]
    assert world.get() == (200, b"ok")  # so the others have been read
    reset(first)
    world.slow.go.release(2)
    assert [len(body(reader)) for reader in readers] == [BIG] * 3


def hang_up_at_once(world: World) -> None:
    reset(world.connect())


def hang_up_within_the_request(world: World) -> None:
    reset(world.send(b"GET /quick HTTP/1.1\r\nHo"))


def hang_up_after_the_request(world: World) -> None:
    reset(world.send(ASK))


def hang_up_while_it_is_worked_on(world: World) -> None:
    client = world.send(b"GET /slow HTTP/1.1\r\n\r\n")
    assert world.slow.began.acquire(timeout=PATIENCE)
    reset(client)
    world.slow.go.release()


def hang_up_within_the_answer(world: World) -> None:
    client = world.send(b"GET /big HTTP/1.1\r\n\r\n", window=4096)
    assert client.recv(10)
    reset(client)


def hang_up_within_the_body(world: World) -> None:
    reset(world.send(b"POST /quick HTTP/1.1\r\nContent-Length: 1000\r\n\r\nabc"))


def close_before_the_answer(world: World) -> None:
    world.send(ASK).close()


@pytest.mark.parametrize(
    "rudely",
    [
        hang_up_at_once,
        hang_up_within_the_request,
        hang_up_after_the_request,
        hang_up_while_it_is_worked_on,
        hang_up_within_the_answer,
        hang_up_within_the_body,
        close_before_the_answer,
    ],
)
def test_clients_that_hang_up_leave_nothing_behind(
    world: World, capfd: pytest.CaptureFixture[str], rudely: Callable[[World], None]
) -> None:
    threads, before = threading.active_count(), descriptors()
    for _ in range(3):
        rudely(world)
    assert world.get() == (200, b"ok")
    until(lambda: descriptors() <= before and threading.active_count() <= threads)
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    assert "rror" not in err


def test_a_client_that_only_listens_after_its_request_is_answered(world: World) -> None:
    for path in ("quick", "slow"):
        world.slow.go.release()
        client = world.send(f"GET /{path} HTTP/1.0\r\n\r\n".encode())
        client.shutdown(socket.SHUT_WR)
        assert body(client) == {"quick": b"ok", "slow": b"run 1"}[path]


def test_half_a_request_and_the_end_is_not_answered(world: World) -> None:
    client = world.send(b"GET /quick HTTP/1.1\r\n")
    client.shutdown(socket.SHUT_WR)
    assert rest(client) == b""


@pytest.mark.parametrize("length", [10, 1_000_000])
def test_a_client_that_sends_a_body_reads_its_answer(world: World, length: int) -> None:
    header = f"PUT /quick HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
    client = world.send(header.encode() + bytes(length))
    assert body(client) == b"ok"


def test_two_requests_at_once_get_one_answer(world: World) -> None:
    assert body(world.send(ASK + ASK)) == b"ok"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\0" * 100_000, 400),
        (b"hello\r\n\r\n", 400),
        (b"G" * 100_000, 431),
        (b"PRI * HTTP/2.0\r\n\r\n", 505),
    ],
)
def test_garbage_is_refused_at_once(world: World, data: bytes, status: int) -> None:
    client = world.connect()
    client.sendall(data)
    assert rest(client).startswith(f"HTTP/1.1 {status} ".encode())


def test_slow_work_holds_up_neither_others_nor_the_descriptors(world: World) -> None:
    first = world.send(b"GET /slow HTTP/1.1\r\n\r\n")
    assert world.slow.began.acquire(timeout=PATIENCE)
    threads = threading.active_count()
    asking = [world.send(b"GET /slow HTTP/1.1\r\n\r\n") for _ in range(LIMIT - 3)]
    for _ in range(3):
        assert world.get() == (200, b"ok")
    idle = [world.connect() for _ in range(3 * LIMIT)]
    assert world.get() == (200, b"ok")
    assert threading.active_count() == threads
    world.slow.go.release(2)
    assert body(first) == b"run 1"
    assert {body(client) for client in asking} == {b"run 2"}
    assert world.slow.runs == 2
    assert rest(idle[0]) == b""


def test_a_flood_of_requests_for_slow_work_is_bounded_too(world: World) -> None:
    first = world.send(b"GET /slow HTTP/1.1\r\n\r\n")
    assert world.slow.began.acquire(timeout=PATIENCE)
    asking = [world.send(b"GET /slow HTTP/1.1\r\n\r\n") for _ in range(3 * LIMIT)]
    assert rest(first) == b""
    assert world.get() == (200, b"ok")
    world.slow.go.release(2)
    assert body(asking[-1]) == b"run 2"
    assert world.slow.runs == 2


def test_a_defect_of_a_route_is_one_answer(world: World) -> None:
    assert world.get("/broken") == (500, b"Internal Server Error\n")
    assert world.get() == (200, b"ok")


def test_without_threads_slow_work_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", no_thread)
        assert world.get("/slow") == (503, b"Service Unavailable\n")
    world.slow.go.release()
    assert world.get("/slow") == (200, b"run 1")


class Exhausted(socket.socket):
    """A listening socket in a process that lacks something for a while."""

    code = errno.EMFILE
    failures = 0
    tries = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self.tries += 1
        if self.failures:
            self.failures -= 1
            raise OSError(self.code, os.strerror(self.code))
        return super().accept()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_without_descriptors_clients_wait_until_there_are_some(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(http_loop, "ACCEPT_AGAIN", 0.05)
    sock = Exhausted()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    sock.code, sock.failures = code, 4
    loop = HttpLoop("test", LIMIT)
    loop.listen(sock, lambda _: Answer(b"ok"), LIMIT)
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            loop.turn(None)
        loop.end()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        with socket.create_connection(sock.getsockname(), PATIENCE) as client:
            client.sendall(ASK)
            assert body(client) == b"ok"
    finally:
        ended.set()
        loop.call(lambda: None)
        thread.join()
    assert sock.tries <= 4 + 2, "it spins"


def test_the_oldest_client_gives_way_where_descriptors_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    sock = Exhausted()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    loop = HttpLoop("test", LIMIT)
    loop.listen(sock, lambda _: Answer(b"ok"), LIMIT)
    address = sock.getsockname()
    with socket.create_connection(address, PATIENCE) as idle:
        loop.turn(PATIENCE)
        sock.failures = 1
        with socket.create_connection(address, PATIENCE) as client:
            client.sendall(ASK)
            loop.turn(PATIENCE)
            assert rest(idle) == b""
            assert body(client) == b"ok"
    loop.end()


def test_listeners_share_a_bound_and_have_one_of_their_own() -> None:
    """A flood at one port closes connections of that port alone, as long as all together have room."""
    loop = HttpLoop("test", 6)
    listeners: list[Listener] = []
    for _ in range(3):
        sock = socket.create_server(("127.0.0.1", 0))
        listeners.append(loop.listen(sock, lambda _: Answer(b"ok"), 3))

    def connect(number: int) -> socket.socket:
        client = socket.create_connection(listeners[number].socket.getsockname(), PATIENCE)
        loop.turn(PATIENCE)
        return client

    quiet, *flood = [connect(0), *(connect(1) for _ in range(10))]
    assert is_open(quiet)
    assert [is_open(client) for client in flood] == [False] * 7 + [True] * 3
    more = [connect(2) for _ in range(3)]
    assert not is_open(quiet)
    assert all(is_open(client) for client in flood[-3:] + more)
    loop.end()
    for client in (quiet, *flood, *more):
        client.close()


def test_descriptors_beyond_the_reach_of_select_are_served() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1500:
        pytest.skip(f"the hard limit of descriptors is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1500), hard))
    held: list[int] = []
    world = None
    try:
        null = os.open(os.devnull, os.O_RDONLY)
        held.append(null)
        while held[-1] < 1024:  # FD_SETSIZE
            held.append(os.dup(null))
        world = World()
        assert world.get() == (200, b"ok")
        world.slow.go.release()
        assert world.get("/slow") == (200, b"run 1")
    finally:
        if world is not None:
            world.end()
        for number in held:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(("address", "asked"), [("[::]:0", ["::1", "127.0.0.1"]), ("[::1]:0", ["::1"])])
def test_ipv6(address: str, asked: list[str]) -> None:
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("this kernel has no IPv6")
    server = HttpServer("test", address, {"/": lambda: Answer(b"ok")})
    server.start()
    try:
        for host in asked:
            with socket.create_connection((host, server.port), PATIENCE) as client:
                client.sendall(b"GET / HTTP/1.1\r\n\r\n")
                assert body(client) == b"ok"
    finally:
        server.stop()
