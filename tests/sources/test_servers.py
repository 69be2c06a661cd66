"""Where the API server is, as addresses that no Service may take."""

import socket
import threading
from pathlib import Path

import pytest

from kproxy.sources.cluster import ClusterAccess
from kproxy.sources.list_once import list_once
from kproxy.sources.servers import peer_of, resolve
from kproxy.sources.transport import Transport
from kproxy_lab.apiserver import ApiServer


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("192.0.2.1", {("192.0.2.1", 6443)}),
        ("[2001:db8::0001]", {("2001:db8::1", 6443)}),
        ("2001:DB8::1", {("2001:db8::1", 6443)}),
        ("::ffff:192.0.2.1", {("192.0.2.1", 6443)}),
        ("no.such.name.invalid", set()),
        ("a..b", set()),
        ("x" * 300, set()),
    ],
)
def test_a_host_stands_for_its_addresses(host: str, expected: set[tuple[str, int]]) -> None:
    assert resolve(host, 6443) == expected


def test_a_name_stands_for_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(*_: object, **__: object) -> list[tuple[object, ...]]:
        v6 = ("2001:db8::1", 6443, 0, 0), ("fe80::1%eth0", 6443, 0, 2), ("::ffff:192.0.2.2", 6443, 0, 0)
        return [(0, 0, 0, "", ("192.0.2.1", 6443)), *((0, 0, 0, "", each) for each in v6)]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    found = resolve("api.example.com", 6443)
    assert found == {("192.0.2.1", 6443), ("192.0.2.2", 6443), ("2001:db8::1", 6443)}


def test_a_closed_socket_has_no_peer() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert peer_of(one) is None
    assert peer_of(one) is None


def test_a_transport_knows_where_it_is_connected_to(tmp_path: Path) -> None:
    moved = threading.Event()
    with ApiServer() as api:
        transport = Transport(ClusterAccess(api.kubeconfig(tmp_path / "kubeconfig")), moved=moved.set)
        assert transport.servers == frozenset()
        transport.send("GET", "/version", None)
        assert transport.servers == {("127.0.0.1", api.port)}
        assert moved.is_set()
        moved.clear()
        transport.send("GET", "/version", None)
        assert not moved.is_set(), "it is told once"
        transport.close()


def test_a_list_says_where_it_came_from(tmp_path: Path) -> None:
    with ApiServer() as api:
        loaded = list_once(ClusterAccess(api.kubeconfig(tmp_path / "kubeconfig")), "node-a")
        assert loaded.api_servers == {("127.0.0.1", api.port)}
