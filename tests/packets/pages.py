"""The HTTP pages of a running kproxy: its status, and its metrics as values."""

from __future__ import annotations

import json
import re
import socket
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

from kproxy_lab.lab import Lab

if TYPE_CHECKING:
    from tests.packets.cluster import Cluster

_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="([^"]*)"')
Values = dict[tuple[str, frozenset[str]], float]


class Page(HTTPConnection):
    """A connection that is opened inside the node."""

    def __init__(self, lab: Lab, port: int) -> None:
        super().__init__("127.0.0.1", port, timeout=20)
        self._lab = lab

    def connect(self) -> None:
        self.sock = self._lab.node.open_socket(socket.AF_INET, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect((self.host, self.port))


def get(cluster: Cluster, path: str, port: int = 10249) -> tuple[int, bytes]:
    page = Page(cluster.lab, port)
    try:
        page.request("GET", path)
        answer = page.getresponse()
        return answer.status, answer.read()
    finally:
        page.close()


def status(cluster: Cluster) -> dict[str, Any]:
    code, body = get(cluster, "/status")
    assert code == 200
    found: dict[str, Any] = json.loads(body)
    return found


def scrape(cluster: Cluster) -> Values:
    code, body = get(cluster, "/metrics")
    assert code == 200
    found: Values = {}
    for line in body.decode().splitlines():
        if (match := _SAMPLE.match(line)) is not None:
            labels = frozenset(f"{name}={value}" for name, value in _LABEL.findall(match[2] or ""))
            found[match[1], labels] = float(match[3])
    return found


def value(found: Values, name: str, **labels: str) -> float:
    """The value of one series; 0 if it has none yet."""
    return found.get((name, frozenset(f"{key}={each}" for key, each in labels.items())), 0.0)
