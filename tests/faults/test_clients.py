"""Many bad connections and many health-check ports: kproxy survives and still answers probes.

With KPROXY_FAULTS=all for ten minutes.
"""

import contextlib
import itertools
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

from kproxy_lab.lab import Namespace
from kproxy_lab.lab.topology import NODE_IP4, NODE_IP6
from tests.faults.bench import FaultBench
from tests.faults.selection import EVERYTHING, modes
from tests.packets.objects import JSON, NAMESPACE
from tests.packets.program import DEADLINE
from tests.support.faultinjection import Sandbox, ToolFault

pytestmark = [pytest.mark.root, pytest.mark.timeout(1200)]

SECONDS = 600 if EVERYTHING else 0
"""Least duration in seconds."""
SERVICES = 1000 if EVERYTHING else 250
DESCRIPTORS = 1024
"""Hard limit of kproxy's open files: less than each kind of client alone would need."""
CONNECTIONS = 1200
API_PORT = 6443
FIRST_PORT = 31000
ROUNDS = 30
CLIENTS = Path(__file__).with_name("clients.py")


class Clients:
    """A process of bad clients in a namespace; `report` is the last line it printed."""

    def __init__(self, place: Namespace, addresses: list[tuple[str, int]]) -> None:
        setting = json.dumps({"addresses": addresses, "connections": CONNECTIONS, "seed": 13})
        argv = ["prlimit", "--nofile=4096", sys.executable, str(CLIENTS), setting]
        self._process = place.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.report = {"open": 0, "opened": 0, "closed": 0, "hang_ups": 0}
        self.rounds = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            for line in stream:
                self.report = json.loads(line)
                self.rounds += 1

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(DEADLINE) == 0
        self._reader.join(DEADLINE)


@contextmanager
def clients(bench: FaultBench, ports: list[int]) -> Iterator[tuple[Clients, Clients]]:
    """Run clients outside (/livez, health-check ports) and on the node (metrics) during the block."""
    lab = bench.cluster.lab
    outside = [(ip, port) for ip in (NODE_IP4[0], NODE_IP6[0]) for port in (10256, 10256, *ports[:2])]
    # The port of /livez gets most of them; IPv6 reaches it too where it listens at ::.
    both = Clients(lab.client, outside), Clients(lab.node, [("127.0.0.1", 10249)])
    try:
        yield both
    finally:
        for each in both:
            each.end()


def probe(place: Namespace, ip: str, port: int, path: str) -> int:
    """Return the status of one request, as a kubelet or a load balancer sends it."""
    connection = HTTPConnection(ip, port)
    sock = place.open_socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM)
    with sock:
        sock.settimeout(DEADLINE)
        sock.connect((ip, port))
        connection.sock = sock
        connection.request("GET", path)
        return connection.getresponse().status


def held(pid: int) -> tuple[int, int]:
    """Return the numbers of descriptors and threads of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir())), len(list(Path(f"/proc/{pid}/task").iterdir()))


def api_connections(pid: int) -> int:
    """Return how many descriptors of a process are connections to the API server."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in _table(pid, name)]
    sockets = {f"socket:[{line[9]}]" for line in lines if line[2].endswith(f":{API_PORT:04X}")}
    found = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += str(descriptor.readlink()) in sockets
    return found


def _table(pid: int, name: str) -> list[str]:
    return Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]


def balancers() -> list[JSON]:
    """Return services with a health-check port each."""
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": f"checked-{number}", "namespace": NAMESPACE},
            "spec": {
                "type": "LoadBalancer",
                "externalTrafficPolicy": "Local",
                "allocateLoadBalancerNodePorts": False,
                "healthCheckNodePort": FIRST_PORT + number,
                "ports": [{"port": 80}],
                "ipFamilyPolicy": "RequireDualStack",
                "ipFamilies": ["IPv4", "IPv6"],
            },
        }
        for number in range(SERVICES)
    ]


@modes("nft", never={"nftables"})
def test_bad_clients_and_a_thousand_ports(bench: FaultBench) -> None:
    program = bench.start(
        "-v", "2", sandbox=Sandbox(tools=bench.tools.directory, descriptors=DESCRIPTORS), restart=True
    )
    lab, api = bench.cluster.lab, bench.cluster.api
    probe(lab.node, "127.0.0.1", 10249, "/metrics")
    before, before_api = held(program.pid), api_connections(program.pid)
    since = program.mark()
    with bench.inject("clients: slow, half-open, hung up; health-check ports") as case:
        made = balancers()
        api.apply_many(made)
        ports = [FIRST_PORT + number for number in range(SERVICES)]
        line = program.wait_log("health_check_port_failed", "RLIMIT_NOFILE", since=since)
        assert "service=default/checked-" in line
        until = time.monotonic() + SECONDS
        probes = 0
        with clients(bench, ports) as both:
            while min(each.rounds for each in both) < ROUNDS or time.monotonic() < until:
                bench.change()
                assert probe(lab.client, NODE_IP4[0], 10256, "/livez") == 200
                assert probe(lab.client, NODE_IP4[0], ports[0], "/") == 503
                assert probe(lab.node, "127.0.0.1", 10249, "/proxyMode") == 200
                assert probe(lab.node, "127.0.0.1", 10249, "/metrics") == 200
                now = held(program.pid)
                assert now[0] < DESCRIPTORS - 128
                assert now[1] <= before[1] + 8
                probes += 1
                if SECONDS and probes % 100 == 50:
                    hang_and_recover(bench)
        case.times = sum(each.report["opened"] + each.report["hang_ups"] for each in both)
        assert all(each.report["closed"] > CONNECTIONS for each in both)
        for obj in made:
            api.delete("Service", NAMESPACE, obj["metadata"]["name"])

        # Events use a connection to the API server of their own, which stays open.
        def is_as_before() -> list[bool]:
            connections = api_connections(program.pid)
            descriptors, threads = held(program.pid)
            return [
                descriptors - connections <= before[0] - before_api,
                connections <= before_api + 1,
                threads <= before[1],
            ]

        program.until(is_as_before, [True] * 3)
    logged = "\n".join(program.log[since:])
    assert not [
        word for word in ("Traceback", "thread_died", "accept_failed", "Too many open") if word in logged
    ]


def hang_and_recover(bench: FaultBench) -> None:
    """Let a tool hang, check that probes are answered, then let the tool continue."""
    before, looks = bench.tools.injected[ToolFault.HANG], itertools.count()

    def hung() -> bool:
        if next(looks) % 100 == 0:
            bench.change()
        return bench.tools.injected[ToolFault.HANG] > before

    bench.tools.enable(ToolFault.HANG, programs=bench.cluster.mode.writer)
    bench.cluster.running.until(hung, expected=True)
    assert probe(bench.cluster.lab.client, NODE_IP4[0], 10256, "/livez") == 200
    bench.tools.disable()
