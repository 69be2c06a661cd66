"""Health checks of Local services, asked over real sockets."""

from __future__ import annotations

import gc
import http.client
import queue
import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kproxy.addresses import Family
from kproxy.node.descriptors import DescriptorShares
from kproxy.plan.model import ServicePlan
from kproxy.telemetry.http import health_check_node_ports as module
from kproxy.telemetry.http.health_check_node_ports import ServiceHealth, body
from kproxy.telemetry.http.server import Answer
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


def free_ports(count: int) -> list[int]:
    """Ports that no process has, and that the kernel gives to no connection meanwhile."""
    first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    candidates = list(range(1024, first_ephemeral))
    random.shuffle(candidates)
    found: list[int] = []
    with ExitStack() as probes:
        for port in candidates:
            probe = probes.enter_context(socket.socket())
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
            if len(found) == count:
                return found
    raise AssertionError(f"only {len(found)} of {count} ports are free")


def plan(port: int, *local: str, name: str = "svc1", **spec: Any) -> ServicePlan:
    """A Local service with these endpoints on this node, one elsewhere and one that terminates here."""
    pieces = [endpoint(ip, node="node1") for ip in local]
    pieces.append(endpoint("10.1.9.1", node="node2"))
    pieces.append(endpoint("10.1.9.2", node="node1", ready=False, serving=True, terminating=True))
    exposed = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": port}
    return plan_of(service(name, **{**exposed, **spec}), endpoint_slice(*pieces, service=name))


class Running:
    """A ServiceHealth on its thread."""

    def __init__(self, shares: DescriptorShares | None = None) -> None:
        self.healthy = True
        self.refused: queue.Queue[tuple[str, int, str]] = queue.Queue()
        self.health = ServiceHealth(lambda: self.healthy, lambda *told: self.refused.put(told), shares)
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


@contextmanager
def serving(shares: DescriptorShares | None = None) -> Iterator[Running]:
    made = Running(shares)
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def running() -> Iterator[Running]:
    with serving() as made:
        yield made


def descriptors() -> int:
    gc.collect()  # of what tests before left open
    return len(list(Path("/proc/self/fd").iterdir()))


def settled(most: int) -> None:
    """Wait until this process has no more descriptors than these."""
    for _ in range(2000):
        if descriptors() <= most:
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"{descriptors()} descriptors, more than {most}")


def listens(address: str, port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((address, port)) == 0


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
        (problem,) = running.health.problems()
        assert (problem.object, problem.field, problem.value) == (
            "Service ns1/svc1",
            "spec.healthCheckNodePort",
            str(port),
        )
        assert problem.reason == "not opened for IPv4: Address already in use"
    running.until(port, 200)
    assert running.refused.empty()
    assert running.health.problems() == []


class Stepped:
    """A ServiceHealth whose work is done step by step, at the test's time; sockets are real."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, shares: DescriptorShares | None = None) -> None:
        self.now = 100.0
        self.refused: list[tuple[str, str]] = []
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.health = ServiceHealth(
            lambda: True, lambda name, _, reason: self.refused.append((name, reason)), shares
        )

    def work(self) -> float | None:
        """Work until there is nothing to do; the seconds until there is."""
        for _ in range(10):
            due = self.health._work()
            if due != 0:
                return due
        raise AssertionError("it does not rest")

    def end(self) -> None:
        stop = threading.Event()
        stop.set()
        self.health.run(stop)


@pytest.fixture
def stepped(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stepped]:
    made = Stepped(monkeypatch)
    yield made
    made.end()


@contextmanager
def taken_port() -> Iterator[tuple[int, socket.socket]]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield int(taken.getsockname()[1]), taken


def test_ports_that_are_taken_are_tried_together_and_seldom(stepped: Stepped) -> None:
    with taken_port() as (first, _), taken_port() as (second, _):
        stepped.health.update([plan(first, name="a")], LOOPBACK)
        assert stepped.work() == module._LISTEN_AGAIN
        stepped.now += 3
        stepped.health.update([plan(second, name="b")], LOOPBACK)
        assert stepped.work() == module._LISTEN_AGAIN - 3
        stepped.now += module._LISTEN_AGAIN - 3
        assert stepped.work() == module._LISTEN_AGAIN
        assert [name for name, _ in stepped.refused] == ["ns1/a", "ns1/b"]
    assert not listens("127.0.0.1", first)
    stepped.now += module._LISTEN_AGAIN - 1
    assert stepped.work() == 1
    assert [problem.refused for problem in stepped.health.problems()] == [True, True]
    stepped.now += 1
    assert stepped.work() is None
    assert stepped.health.problems() == []
    assert listens("127.0.0.1", first)
    assert listens("127.0.0.1", second)


def test_many_ports_are_opened_and_closed_in_several_steps(
    stepped: Stepped, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", 3)
    ports = free_ports(module._AT_ONCE + 1)
    plans = [plan(port, name=f"svc{number}") for number, port in enumerate(ports)]
    stepped.health.update(plans, LOOPBACK)
    assert [stepped.health._work(), stepped.health._work()] == [0.0, None]
    assert listens("127.0.0.1", ports[-1])
    gone = [plan(0, name=f"svc{number}", externalTrafficPolicy="Cluster") for number, _ in enumerate(ports)]
    stepped.health.update(gone, LOOPBACK)
    assert [stepped.health._work(), stepped.health._work()] == [0.0, None]
    assert not listens("127.0.0.1", ports[-1])


def test_another_reason_is_reported_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stepped = Stepped(monkeypatch, DescriptorShares(ports=1))
    with taken_port() as (port, _), taken_port() as (other, _):
        stepped.health.update([plan(port, name="a")], LOOPBACK)
        stepped.work()
        elsewhere = free_port()
        stepped.health.update([plan(elsewhere, name="b"), plan(other, name="c")], LOOPBACK)
        stepped.work()
        stepped.now += module._LISTEN_AGAIN
        stepped.work()
    told = [(name, reason.startswith("all 1 sockets")) for name, reason in stepped.refused]
    assert told == [("ns1/a", False), ("ns1/c", True), ("ns1/a", True)]
    stepped.health.update([plan(0, name="a", externalTrafficPolicy="Cluster")], LOOPBACK)
    stepped.work()
    assert [problem.object for problem in stepped.health.problems()] == ["Service ns1/c"]
    stepped.end()


def test_a_service_that_goes_while_its_port_waits_leaves_nothing(stepped: Stepped) -> None:
    with taken_port() as (port, _):
        stepped.health.update([plan(port, name="a")], LOOPBACK)
        stepped.work()
        gone = plan(0, name="a", externalTrafficPolicy="Cluster")
        stepped.health.update([gone], LOOPBACK)
        assert stepped.work() is None
        assert stepped.health.problems() == []
    stepped.now += module._LISTEN_AGAIN
    assert stepped.work() is None
    assert not listens("127.0.0.1", port)


def test_both_families_of_a_service_have_the_same_port(stepped: Stepped) -> None:
    port = free_port()
    six = plan_of(
        service(
            "svc1", "fd00::1", type="LoadBalancer", externalTrafficPolicy="Local", healthCheckNodePort=port
        ),
        endpoint_slice(endpoint("fd00:1::1", node="node1"), service="svc1", address_type="IPv6"),
        family=Family.IPV6,
    )
    stepped.health.update([six, plan(port)], {Family.IPV4: None, Family.IPV6: None})
    assert stepped.work() is None
    assert stepped.refused == []
    with socket.socket(socket.AF_INET6) as client:
        assert client.connect_ex(("::1", port)) == 0
    assert listens("127.0.0.1", port)


def test_changes_count_in_their_order(running: Running) -> None:
    port, moved = free_port(), free_port()
    for _ in range(20):
        running.health.update([plan(port, "10.1.0.1")], LOOPBACK)
        running.health.update([plan(moved, "10.1.0.1")], LOOPBACK)
        running.health.update([plan(moved, "10.1.0.1", externalTrafficPolicy="Cluster")], LOOPBACK)
        running.health.update([plan(port)], LOOPBACK)
    running.until(port, 503)
    running.until(moved, None)
    assert running.refused.empty()


@pytest.mark.parametrize("at_once", [True, False])
def test_a_port_may_pass_from_one_service_to_another(running: Running, *, at_once: bool) -> None:
    """In one update or two, whichever service comes first in it."""
    first, second = free_port(), free_port()
    running.health.update([plan(first, "10.1.0.1", name="a"), plan(second, name="b")], LOOPBACK)
    running.until(first, 200)
    running.until(second, 503)
    swapped = [plan(second, "10.1.0.1", name="a"), plan(first, name="b")]
    for update in [swapped] if at_once else [swapped[:1], swapped[1:]]:
        running.health.update(update, LOOPBACK)
    running.until(first, 503)
    running.until(second, 200)
    if at_once:  # else it is taken for a moment
        assert running.refused.empty()


def test_a_client_that_sends_nothing_delays_no_other(running: Running) -> None:
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


def test_a_thousand_ports_cost_a_descriptor_each_and_no_thread(running: Running) -> None:
    before, threads = descriptors(), threading.active_count()
    ports = free_ports(1000)
    plans = [plan(port, "10.1.0.1", name=f"svc{number}") for number, port in enumerate(ports)]
    running.health.update(plans, LOOPBACK)
    for port in ports:  # a port that another process holds is opened once it is free
        running.until(port, 200)
    settled(before + len(ports))
    assert threading.active_count() <= threads
    running.health.update(
        [plan(0, name=f"svc{number}", externalTrafficPolicy="Cluster") for number in range(len(ports))],
        LOOPBACK,
    )
    running.until(ports[-1], None)
    settled(before)


def test_ports_are_opened_a_few_at_a_time(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients of other ports are answered while a thousand are being opened."""
    open_one = running.health._open
    half, go = threading.Event(), threading.Event()
    first, *ports = free_ports(300)
    running.health.update([plan(first, "10.1.0.1")], LOOPBACK)
    running.until(first, 200)
    opened: list[object] = []

    def counted(key: module.Key) -> None:
        opened.append(key)
        open_one(key)
        if len(opened) == 150:
            half.set()
            assert go.wait(5)

    monkeypatch.setattr(running.health, "_open", counted)
    plans = [plan(port, "10.1.0.1", name=f"more{number}") for number, port in enumerate(ports)]
    running.health.update(plans, LOOPBACK)
    assert half.wait(5)
    with socket.create_connection(("127.0.0.1", first), timeout=5) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        monkeypatch.setattr(running.health, "_answer", lambda _: Answer(b"after %d" % len(opened)))
        go.set()
        text = b"".join(iter(lambda: client.recv(4096), b""))
    assert int(text.rpartition(b"after ")[2]) < len(ports)


def test_ports_beyond_what_descriptors_allow_are_named_and_opened_when_there_is_room() -> None:
    ports = free_ports(5)
    plans = [plan(port, "10.1.0.1", name=f"svc{number}") for number, port in enumerate(ports)]
    with serving(DescriptorShares(ports=3)) as running:
        running.health.update(plans, LOOPBACK)
        named = [running.refused.get(timeout=5) for _ in range(2)]
        assert [each[:2] for each in named] == [("ns1/svc3", ports[3]), ("ns1/svc4", ports[4])]
        assert all("3 sockets for health-check ports" in each[2] for each in named)
        for port, status in zip(ports, (200, 200, 200, None, None), strict=True):
            running.until(port, status)
        running.health.update(plans, LOOPBACK)
        running.health.update([plan(0, name="svc1", externalTrafficPolicy="Cluster")], LOOPBACK)
        running.until(ports[1], None)
        running.until(ports[3], 200)
        running.until(ports[4], None)
        assert running.refused.empty()


def test_a_service_at_several_addresses_opens_all_or_none() -> None:
    one, two = free_ports(2)
    addresses: dict[Family, tuple[str, ...] | None] = {Family.IPV4: ("127.0.0.1", "127.0.0.2")}
    with serving(DescriptorShares(ports=3)) as running:
        running.health.update([plan(one, "10.1.0.1", name="a"), plan(two, name="b")], addresses)
        assert running.refused.get(timeout=5)[0] == "ns1/b"
        assert [listens(address, one) for address in ("127.0.0.1", "127.0.0.2")] == [True, True]
        assert not listens("127.0.0.1", two)
        with socket.socket() as taken:
            taken.bind(("127.0.0.2", two))
            taken.listen()
            running.health.update([plan(0, name="a", externalTrafficPolicy="Cluster")], addresses)
            assert "in use" in running.refused.get(timeout=5)[2]
            assert not listens("127.0.0.1", two)


def test_slow_clients_of_one_port_keep_no_other_out(running: Running) -> None:
    first, second = free_ports(2)
    running.health.update([plan(first, "10.1.0.1", name="a"), plan(second, "10.1.0.1", name="b")], LOOPBACK)
    running.until(second, 200)
    running.until(first, 200)
    threads = threading.active_count()
    with ExitStack() as slow:
        patient = slow.enter_context(socket.create_connection(("127.0.0.1", second), timeout=5))
        for _ in range(3 * module._CONNECTIONS):
            client = slow.enter_context(socket.create_connection(("127.0.0.1", first), timeout=5))
            client.sendall(b"GET / HTTP/1.1\r\n")
        assert running.ask(first)[0] == running.ask(second)[0] == 200
        assert threading.active_count() == threads
        patient.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert patient.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_clients_that_hang_up_leave_nothing_behind(
    running: Running, capfd: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    running.health.update([plan(port, "10.1.0.1")], LOOPBACK)
    running.until(port, 200)
    before = descriptors()
    for data in (b"", b"GET / HT", b"GET / HTTP/1.1\r\n\r\n", b"PUT / HTTP/1.1\r\nContent-Length: 9\r\n\r\n"):
        for linger in (0, 1):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as rude:
                rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", linger, 0))
                rude.sendall(data)
    assert running.ask(port)[0] == 200
    settled(before)
    assert "Traceback" not in "".join(capfd.readouterr())


def test_the_body_without_endpoints() -> None:
    assert b'"localEndpoints": 0' in body("ns1/svc1", 0, proxy_healthy=True)
