"""The socket table in the kernel: it holds what the model holds, and no connection meets a stale endpoint."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import select
import socket
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from kproxy.addresses import Family
from kproxy.backends.ebpf.backend import SocketBackend
from kproxy.backends.ebpf.config import SocketConfig
from kproxy.backends.ebpf.memory import MemorySocketTable
from kproxy.backends.ebpf.shared import SharedTable
from kproxy.kernel.bpf.socket_table import KernelSocketTable
from kproxy.kernel.bpf.types import BpfError, Capacity, Sizes, SocketTable
from kproxy.plan.model import EndpointPlan, PortPlan, Protocol, ServicePlan
from tests.support.bpf import KIND, child_cgroup, private_bpffs

pytestmark = pytest.mark.root

CONNECTS = int(os.environ.get("KPROXY_EBPF_CONNECTS", "2000"))
"""Connections under changes of endpoints; 40000 is the size of the measured figure."""

SERVICES, PODS, TOGETHER = 24, 24, 12
"""Services that change all the time, the pods of each, and how many change in one sync."""

SIZES = Sizes(Capacity(2, 4), Capacity(2, 4), 4)


@pytest.fixture
def place() -> Iterator[tuple[Path, Path]]:
    """A cgroup with this process in it, and a directory for pins."""
    with private_bpffs() as bpffs, child_cgroup("kproxy-backend") as cgroup:
        yield cgroup, bpffs / "kproxy"


@pytest.fixture
def table(place: tuple[Path, Path]) -> Iterator[KernelSocketTable]:
    """A new table."""
    try:
        found = KernelSocketTable.open(*place, SIZES)
    except BpfError as error:
        pytest.skip(f"this kernel takes no programs at sockets: {error}")
    yield found
    found.remove()


def plan(family: Family, number: int, endpoints: list[tuple[str, int]]) -> ServicePlan:
    """A service of a number with these endpoints; without any it is gone."""
    ready = tuple(EndpointPlan(*each) for each in endpoints)
    ip, name = frontend_ip(family, number), f"ns1/svc{number}"
    port = PortPlan(name, Protocol.TCP, ip, 80, cluster=ready, reachable=ready, has_endpoints=True)
    return ServicePlan(name, family, ports=(port,) if endpoints else ())


def frontend_ip(family: Family, number: int) -> str:
    """The cluster IP of a service of a number; it leads nowhere unless a program replaces it."""
    return f"10.96.9.{number}" if family is Family.IPV4 else f"fd00:96:9::{number}"


class _Clock:
    """Goes on by waiting only, so that blocks are chosen without regard to the speed of a table."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


class Beside:
    """Backends over one table in the kernel, and over a model of it; both get the same changes."""

    def __init__(self, tables: list[SocketTable]) -> None:
        self.tables = tables
        self.backends = [
            [SocketBackend(family, shared, SocketConfig(family), clock, clock.wait) for family in Family]
            for shared, clock in zip(map(SharedTable, tables), (_Clock(), _Clock()), strict=True)
        ]

    def change(self, *plans: ServicePlan) -> None:
        """Write changes; the reports are equal."""
        for of_family in zip(*self.backends, strict=True):
            reports = []
            for backend in of_family:
                backend.update(each for each in plans if each.family is backend.family)
                reports.append(backend.sync())
            assert reports[0].error is None
            assert reports[0].changes == reports[1].changes

    def assert_equal(self) -> None:
        """Compare all frontends and slots."""
        kernel, model = self.tables
        assert kernel.sizes == model.sizes
        for family in Family:
            assert kernel.frontends(family) == model.frontends(family)
            assert kernel.slots(family).tobytes() == model.slots(family).tobytes()
        for backends in self.backends:
            assert [backend.check(full=True) for backend in backends] == [(), ()]


def test_the_kernel_holds_what_the_model_holds(table: KernelSocketTable) -> None:
    beside = Beside([table, MemorySocketTable(SIZES)])
    draw = random.Random(4)
    for _ in range(60):
        some = []
        for family in Family:
            pod = "10.1.0.{}" if family is Family.IPV4 else "fd00:1::{}"
            pods = [(pod.format(draw.randint(1, 200)), 8080) for _ in range(draw.randint(0, 9))]
            some.append(plan(family, draw.randint(1, 30), sorted(set(pods))))
        beside.change(*some)
    beside.assert_equal()


def test_a_restart_writes_nothing_and_serves_on(table: KernelSocketTable, place: tuple[Path, Path]) -> None:
    plans = [plan(family, n, [(f"10.1.0.{n}" if family is Family.IPV4 else f"fd00:1::{n}", 80)])
             for family in Family for n in range(1, 40)]  # fmt: skip
    first = SharedTable(table)
    for family in Family:
        backend = SocketBackend(family, first, SocketConfig(family))
        backend.update(each for each in plans if each.family is family)
        assert backend.sync().changes["frontends"] == 39
    table.close()
    again = KernelSocketTable.open(*place, SIZES)
    try:
        assert not again.fresh
        shared = SharedTable(again)
        for family in Family:
            backend = SocketBackend(family, shared, SocketConfig(family))
            backend.update(each for each in plans if each.family is family)
            assert backend.sync().changes == {}
        assert again.published
        assert again.problems() == []
    finally:
        again.remove()


class _Versions:
    """What each service is to have in each of its versions, and which versions are written.

    `started` and `done` are the last version whose sync has begun, and ended; other processes read them.
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        self.started = multiprocessing.RawArray("Q", SERVICES)
        self.done = multiprocessing.RawArray("Q", SERVICES)
        self._plans: dict[tuple[int, int], ServicePlan] = {}
        self.addresses = {
            (service, pod): (
                f"127.0.9.{pod + 1}" if family is Family.IPV4 else "::1",
                20000 + service * PODS + pod,
            )
            for service in range(SERVICES)
            for pod in range(PODS)
        }

    def pods(self, service: int, version: int) -> set[int]:
        """The pods of one version: the next version has others, and often another number of them."""
        return {(version * 5 + each) % PODS for each in range(1 + (version * 7 + service) % 6)}

    def plan(self, service: int, version: int) -> ServicePlan:
        """The plan of one version; every `PODS` versions the pods are the same again."""
        key = service, version % PODS
        if key not in self._plans:
            pods = [self.addresses[service, pod] for pod in sorted(self.pods(*key))]
            self._plans[key] = plan(self.family, service, pods)
        return self._plans[key]

    def allowed(self, service: int, done: int) -> set[int]:
        """The pods of all versions since the last one that was written, `done`."""
        versions = range(done, self.started[service] + 1)
        return set().union(*(self.pods(service, version) for version in versions))


def _answer(versions: _Versions, ready: Connection) -> None:
    """Listen at every address, and tell each client which service and pod it is."""
    poll = select.epoll()
    servers = {}
    for (service, pod), (ip, port) in versions.addresses.items():
        server = socket.create_server((ip, port), family=KIND[versions.family], backlog=1000)
        servers[server.fileno()] = (server, bytes([service, pod]))
        poll.register(server.fileno(), select.EPOLLIN)
    ready.send("ready")
    while True:
        for number, _ in poll.poll():
            server, name = servers[number]
            with server.accept()[0] as client, contextlib.suppress(OSError):
                client.sendall(name)


def _connect(versions: _Versions, count: int, result: Connection) -> None:
    """Connect to services; send what was found that should not be, and how many were judged."""
    stale: list[str] = []
    judged = 0
    draw = random.Random(count)
    for _ in range(count):
        service = draw.randrange(SERVICES)
        done = versions.done[service]
        ip = frontend_ip(versions.family, service)
        try:
            with socket.create_connection((ip, 80), timeout=10) as client:
                found = client.recv(2)
        except OSError as error:
            stale.append(f"{ip}: {error}")
            continue
        allowed = versions.allowed(service, done)
        judged += len(allowed) < PODS
        if found[0] != service or found[1] not in allowed:
            stale.append(f"{ip}: service {found[0]}, pod {found[1]}, allowed are {sorted(allowed)}")
    result.send((stale, judged))


@pytest.mark.parametrize("family", Family, ids=str)
def test_no_connection_meets_an_endpoint_that_is_gone(family: Family, table: KernelSocketTable) -> None:
    """Services change as fast as this process can write them; each of their addresses has its own server."""
    versions = _Versions(family)
    backend = SocketBackend(family, SharedTable(table, [family]), SocketConfig(family))
    backend.update(versions.plan(service, 0) for service in range(SERVICES))
    backend.sync()
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    server = fork.Process(target=_answer, args=(versions, theirs), daemon=True)
    client = fork.Process(target=_connect, args=(versions, CONNECTS, theirs), daemon=True)
    server.start()
    changes = 0
    try:
        assert ours.poll(60), "the servers did not start"
        ours.recv()
        client.start()
        began = time.monotonic()
        while not ours.poll():
            for first in range(0, SERVICES, TOGETHER):
                some = range(first, first + TOGETHER)
                for service in some:
                    versions.started[service] += 1
                backend.update(versions.plan(service, versions.started[service]) for service in some)
                assert not backend.sync().services
                for service in some:
                    versions.done[service] = versions.started[service]
            changes += SERVICES
        passed = time.monotonic() - began
        stale, judged = ours.recv()
    finally:
        for process in (server, client):
            if process.pid is not None:
                process.kill()
                process.join()
    print(f"{CONNECTS} connections, {judged} judged, {changes} changes, {changes / passed:.0f} a second")  # noqa: T201
    assert stale == []
    assert judged > CONNECTS // 2
    assert sum(each.connections for each in backend.connections()) == CONNECTS
    assert backend.check(full=True) == ()
