"""The small HTTP server: what it answers, and what it does where its port is taken."""

import http.client
import socket
from collections.abc import Iterator

import pytest

from kproxy.telemetry.http import server as module
from kproxy.telemetry.http.server import Answer, HttpServer

ROUTES = {"/healthz": lambda: Answer(b"ok"), "/gone": lambda: Answer(b"{}", "application/json", 503)}


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def ask(port: int, path: str, method: str = "GET") -> tuple[int, str | None, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type"), answer.read()
    finally:
        connection.close()


def test_paths_methods_and_types() -> None:
    server = HttpServer("test", "127.0.0.1:0", ROUTES)
    server.start()
    try:
        assert ask(server.port, "/healthz?verbose") == (200, "text/plain; charset=utf-8", b"ok")
        assert ask(server.port, "/gone") == (503, "application/json", b"{}")
        assert ask(server.port, "/healthz", "HEAD") == (200, "text/plain; charset=utf-8", b"")
        nothing = (404, "text/plain; charset=utf-8", b"404 page not found\n")
        assert ask(server.port, "/nothing") == nothing
        for method in ("OPTIONS", "POST"):
            assert ask(server.port, "/healthz", method)[::2] == (200, b"ok")
        assert ask(server.port, "/healthz", "BREW")[0] == 501
    finally:
        server.stop()
    with pytest.raises(ConnectionRefusedError):
        ask(server.port, "/healthz")


@pytest.mark.parametrize("path", ["/healthz", "/gone", "/nothing"])
def test_answers_are_http_1_1_and_end_the_connection(path: str) -> None:
    server = HttpServer("test", "127.0.0.1:0", ROUTES)
    server.start()
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: node\r\n\r\n".encode())
            answer = b"".join(iter(lambda: client.recv(4096), b""))
    finally:
        server.stop()
    assert answer.startswith(b"HTTP/1.1 ")
    assert b"\r\nConnection: close\r\n" in answer


def test_a_taken_port_is_the_end_if_the_operator_wants_it(taken: socket.socket) -> None:
    address = f"127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(OSError, match=rf"test: cannot bind {address}: Address already in use"):
        HttpServer("test", address, ROUTES).start(hard_fail=True)


def test_a_taken_port_is_served_as_soon_as_it_is_free(
    taken: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BIND_AGAIN", 0.01)
    port = taken.getsockname()[1]
    server = HttpServer("test", f"127.0.0.1:{port}", ROUTES)
    server.start(hard_fail=False)
    try:
        taken.close()
        server.listening.wait(10)
        assert ask(port, "/healthz")[0] == 200
    finally:
        server.stop()


def test_a_server_that_never_got_its_port_can_be_stopped(taken: socket.socket) -> None:
    server = HttpServer("test", f"127.0.0.1:{taken.getsockname()[1]}", ROUTES)
    server.start(hard_fail=False)
    server.stop()
    assert not server.listening.is_set()
