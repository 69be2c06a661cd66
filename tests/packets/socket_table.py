"""What a socket table has in the kernel, as tests see it: its programs, and which packets are translated."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kproxy.kernel.bpf import links
from kproxy.kernel.bpf.programs import HOOKS
from kproxy_lab.lab import Lab, Namespace, Pod
from kproxy_lab.lab.topology import NODE, NODE_IP4, NODE_IP6, Family
from tests.packets.pages import status
from tests.packets.program import DEADLINE

if TYPE_CHECKING:
    from tests.packets.cluster import Cluster

CROWD = Path(__file__).with_name("crowd.py")
ASKS = 12
TRACKED = "/proc/net/nf_conntrack"


def translated(
    lab: Lab, source: Namespace | Pod, ip: str, port: int = 80, protocol: str = "tcp"
) -> list[str]:
    """The connections from a place to an address whose packets the node translates to another one."""
    done = lab.node.run(["cat", TRACKED], check=False)
    if done.returncode != 0:
        pytest.skip(f"no {TRACKED} in this kernel")
    origins = [f"src={ip_address(each).exploded}" for each in _addresses(lab, source)]
    asked = f"dst={ip_address(ip).exploded}", f"dport={port}"
    found = []
    for line in done.stdout.splitlines():
        words = line.split()
        first = [word for word in words if word.startswith(("src=", "dst=", "sport=", "dport="))][:4]
        if protocol in words and set(asked) <= set(first) and first[0] in origins:
            found.append(line)
    return found


def _addresses(lab: Lab, source: Namespace | Pod) -> Sequence[str]:
    if isinstance(source, Pod):
        return source.ip4, source.ip6
    if source is lab.client:
        return *lab.spec.client_ip4, *lab.spec.client_ip6
    assert source is lab.node
    return *NODE_IP4, *NODE_IP6, *NODE.gateways


def at_sockets(cluster: Cluster, source: Namespace | Pod, ip: str, port: int = 80) -> bool:
    """Whether connections to a service that is served are translated at the sockets: all of them, or none."""
    before = len(translated(cluster.lab, source, ip, port))
    cluster.ask(source, ip, port, n=ASKS)
    more = len(translated(cluster.lab, source, ip, port)) - before
    assert more in {0, ASKS}
    return more == 0


def programs(lab: Lab) -> dict[str, tuple[int, ...]]:
    """The ids of the programs at each hook of the node's cgroup."""
    assert lab.cgroup is not None
    return {
        name: found
        for name, hook in HOOKS.items()
        if (found := links.hook_programs(lab.cgroup.path, hook).programs)
    }


def degraded(cluster: Cluster) -> list[str]:
    """The reasons why connections are not translated at sockets, as the status says; empty if they are."""
    return [each["message"] for each in status(cluster)["conditions"] if each["reason"] == "EbpfDegraded"]


class Crowd:
    """A process of crowd.py; its output is read line by line."""

    def __init__(self, place: Namespace, role: str, **setting: Any) -> None:
        argv = [sys.executable, str(CROWD), role, json.dumps(setting)]
        self._process = place.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._said: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait(self, lines: int = 1) -> dict[str, Any]:
        """Wait for this many lines more; return the last."""
        with self._changed:
            enough = len(self._said) + lines
            self._changed.wait_for(lambda: len(self._said) >= enough or not self._reader.is_alive(), DEADLINE)
            assert len(self._said) >= enough, f"crowd.py stopped after {self._said[-1:]}"
            return self._said[-1]

    def first(self) -> dict[str, Any]:
        """Wait for its first line: from then on it is in full work."""
        with self._changed:
            self._changed.wait_for(lambda: self._said or not self._reader.is_alive(), 5 * DEADLINE)
            assert self._said, "crowd.py ended without a word"
            return self._said[0]

    def end(self) -> dict[str, Any]:
        """Have it end; return its last line."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(5 * DEADLINE) == 0
        self._reader.join(DEADLINE)
        return self._said[-1]

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            for line in stream:
                with self._changed:
                    self._said.append(json.loads(line))
                    self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()


@contextmanager
def echoing(pods: Sequence[Pod], port: int, count: int) -> Iterator[None]:
    """Servers in these pods for `count` connections each."""
    families: tuple[Family, ...] = (4, 6)
    crowds = [
        Crowd(pod.namespace, "serve", addresses=[(pod.ip(family), port) for family in families], count=count)
        for pod in pods
    ]
    for each in crowds:
        each.first()
    try:
        yield
    finally:
        for each in crowds:
            each.end()
