"""Health checks of Local services, asked over real sockets."""

from __future__ import annotations

import asyncio
import http.client
import queue
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from kproxy.addresses import Family
from kproxy.agent import service_health as module
from kproxy.agent.service_health import ServiceHealth, body
from kproxy.plan.model import ServicePlan
from tests.builders import endpoint, endpoint_slice, plan_of, service

pytestmark = pytest.mark.xdist_group("ports")  # side by side, tests could take each other's free ports

LOOPBACK: dict[Family, tuple[str, ...] | None] = {Family.IPV4: ("127.0.0.1",)}
EXPECTED = (
    '{\n\t"service": {\n\t\t"namespace": "ns1",\n\t\t"name": "svc1"\n\t},\n'
    '\t"localEndpoints": 2,\n\t"serviceProxyHealthy": true\n}'
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def plan(port: int, *local: str, **spec: Any) -> ServicePlan:
    """A Local service with these endpoints on this node, one elsewhere and one that terminates here."""
    pieces = [endpoint(ip, node="node1") for ip in local]
    pieces.append(endpoint("10.1.9.1", node="node2"))
    pieces.append(endpoint("10.1.9.2", node="node1", ready=False, serving=True, terminating=True))
    exposed = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": port}
    return plan_of(service(**{**exposed, **spec}), endpoint_slice(*pieces))


class Running:
    """A ServiceHealth on its thread."""

    def __init__(self) -> None:
        self.healthy = True
        self.refused: queue.Queue[tuple[str, int, str]] = queue.Queue()
        self.health = ServiceHealth(lambda: self.healthy, lambda *told: self.refused.put(told))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.health.run, args=(self._stop,), daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._stop.set()
        self.health.wake()
        self._thread.join(5)
        assert not self._thread.is_alive()

    def ask(self, port: int, method: str = "GET") -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request(method, "/healthz")
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read().decode()
        finally:
            connection.close()

    def until(self, port: int, status: int | None) -> None:
        """Ask until the status is as expected; None is a closed port. Applying takes a moment."""
        found: int | None = -1
        for _ in range(500):
            try:
                found = self.ask(port)[0]
            except ConnectionRefusedError:
                found = None
            except (OSError, http.client.HTTPException):
                continue  # asked while it was being closed
            if found == status:
                return
            threading.Event().wait(0.01)
        raise AssertionError(f"expected {status}, but it stays {found}")


@pytest.fixture
def running() -> Iterator[Running]:
    made = Running()
    yield made
    made.end()


def test_the_answer_is_kube_proxys_byte_for_byte(running: Running) -> None:
    port = free_port()
    running.health.update([plan(port, "10.1.0.1", "10.1.0.2")], LOOPBACK)
    running.until(port, 200)
    status, headers, text = running.ask(port)
    assert (status, text) == (200, EXPECTED)
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Load-Balancing-Endpoint-Weight"] == "2"
    assert running.ask(port, "HEAD")[2] == ""
    for method in ("OPTIONS", "POST"):  # OPTIONS is what HAProxy asks with by default
        assert running.ask(port, method)[::2] == (200, EXPECTED)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as raw:
        raw.sendall(b"hello\r\n\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 400 ")


def test_a_node_without_a_ready_endpoint_says_so(running: Running) -> None:
    port = free_port()
    running.health.update([plan(port, "10.1.0.1")], LOOPBACK)
    running.until(port, 200)
    running.health.update([plan(port)], LOOPBACK)
    running.until(port, 503)
    assert '"localEndpoints": 0' in running.ask(port)[2]


def test_a_proxy_that_does_not_keep_up_says_so(running: Running) -> None:
    port = free_port()
    running.health.update([plan(port, "10.1.0.1")], LOOPBACK)
    running.until(port, 200)
    running.healthy = False
    status, _, text = running.ask(port)
    assert status == 503
    assert '"serviceProxyHealthy": false' in text


def test_ports_open_move_and_close_with_their_service(running: Running) -> None:
    first, second = free_port(), free_port()
    running.health.update([plan(first, "10.1.0.1")], LOOPBACK)
    running.until(first, 200)
    running.health.update([plan(second, "10.1.0.1")], LOOPBACK)
    running.until(second, 200)
    running.until(first, None)
    running.health.update([plan(second, "10.1.0.1", externalTrafficPolicy="Cluster")], LOOPBACK)
    running.until(second, None)


def test_a_port_that_is_taken_is_tried_again(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LISTEN_AGAIN", 0.05)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = int(taken.getsockname()[1])
        running.health.update([plan(port, "10.1.0.1")], LOOPBACK)
        assert running.refused.get(timeout=5)[:2] == ("ns1/svc1", port)
    running.until(port, 200)
    assert running.refused.empty()


def test_changes_count_in_their_order_however_long_a_port_takes_to_open(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_server = asyncio.start_server
    opening = threading.Event()

    async def slow(*args: Any, **options: Any) -> asyncio.Server:
        server = await start_server(*args, **options)
        opening.set()
        await asyncio.sleep(0.1)
        return server

    monkeypatch.setattr(asyncio, "start_server", slow)
    port = free_port()
    running.health.update([plan(port, "10.1.0.1")], LOOPBACK)
    assert opening.wait(5)
    running.health.update([plan(port)], LOOPBACK)
    running.until(port, 503)
    running.health.update([plan(port, "10.1.0.1")], LOOPBACK)
    running.until(port, 200)
    assert running.refused.empty()
    moved = free_port()
    opening.clear()
    running.health.update([plan(moved, "10.1.0.1")], LOOPBACK)
    assert opening.wait(5)
    running.health.update([plan(moved, "10.1.0.1", externalTrafficPolicy="Cluster")], LOOPBACK)
    running.until(moved, None)
    running.health.update([plan(port, "10.1.0.1")], LOOPBACK)
    running.until(port, 200)
    running.until(moved, None)


def test_a_client_that_asks_nothing_holds_up_nobody(running: Running) -> None:
    first, second = free_port(), free_port()
    running.health.update([plan(first, "10.1.0.1")], LOOPBACK)
    running.until(first, 200)
    with socket.create_connection(("127.0.0.1", first), timeout=5):
        running.health.update([plan(second, "10.1.0.1")], LOOPBACK)
        running.until(second, 200)
        running.until(first, None)


def test_garbage_costs_nothing_but_its_connection(running: Running) -> None:
    port = free_port()
    running.health.update([plan(port, "10.1.0.1")], LOOPBACK)
    running.until(port, 200)
    for data in (b"\r\n\r\n", b"\0" * 100_000, b"GET"):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as garbage:
            garbage.sendall(data)
    assert running.ask(port)[0] == 200


def test_the_body_of_nobody() -> None:
    assert b'"localEndpoints": 0' in body("ns1/svc1", 0, proxy_healthy=True)
