"""Destinations, and a whole IPVS mode, that go only when their connections have ended."""

from __future__ import annotations

from kproxy.addresses import Family
from kproxy.backends.ipvs.retirement import Retirement, left_in
from kproxy.kernel.ipvs.types import (
    Command,
    DestinationId,
    ServerId,
)
from tests.backends.ipvs_node import CLUSTER_IP, IpvsNode, eps, with_config
from tests.builders import port, service


def test_a_destination_with_connections_stays_until_they_end() -> None:
    node = IpvsNode()
    node.put(service(), eps("10.1.0.1", "10.1.0.2"))
    node.done()
    leaving = DestinationId("10.1.0.1", 80)
    node.ipvs.connections[CLUSTER_IP, leaving] = 2
    node.put(None, eps("10.1.0.2"))
    node.done()
    for _ in range(20):
        wait = node.backend.tend()
        assert wait is not None
        node.now += wait
    assert node.ipvs.table[CLUSTER_IP][1][leaving] == 0
    del node.ipvs.connections[CLUSTER_IP, leaving]
    node.drained()
    assert leaving not in node.ipvs.table[CLUSTER_IP][1]
    node.forget()
    assert node.backend.tend() is None
    assert node.reads == 0


def test_the_time_to_drain_is_bounded() -> None:
    node = IpvsNode(with_config(graceful_period=100.0))
    node.put(service(), eps("10.1.0.1"))
    node.done()
    node.ipvs.connections[CLUSTER_IP, DestinationId("10.1.0.1", 80)] = 1
    node.drop("ns1/svc1")
    node.done()
    started = node.now
    node.drained()
    assert 100 <= node.now - started <= 161
    assert node.ipvs.table == {}
    assert node.device.held == set()
    assert node.listed() == set()


def test_a_destination_that_returns_is_only_given_its_weight_back() -> None:
    node = IpvsNode()
    node.put(service(), eps("10.1.0.1"))
    node.done()
    node.ipvs.connections[CLUSTER_IP, DestinationId("10.1.0.1", 80)] = 1
    node.put(None, eps())
    node.done()
    node.forget()
    node.put(None, eps("10.1.0.1"))
    node.done()
    assert [(r.command, r.weight) for r in node.ipvs.sent] == [(Command.SET_DEST, 1)]
    assert node.backend.tend() is None


def test_datagrams_have_nothing_to_wait_for() -> None:
    node = IpvsNode()
    ports = [port(53, "dns", "UDP")]
    node.put(service(ports=ports), eps("10.1.0.1", "10.1.0.2", ports=ports))
    node.done()
    node.put(None, eps("10.1.0.2", ports=ports))
    node.done()
    assert list(node.ipvs.table[ServerId("UDP", "10.96.0.1", 53)][1]) == [DestinationId("10.1.0.2", 53)]
    node.drop("ns1/svc1")
    node.done()
    assert (node.ipvs.table, node.device.held) == ({}, set())


def test_retirement_waits_for_connections_and_leaves_nothing() -> None:
    node = IpvsNode()
    node.put(service(), eps("10.1.0.1"))
    node.put(service("svc2", "10.96.0.2"), eps("10.1.0.2", service="svc2"))
    node.done()
    node.ipvs.connections[CLUSTER_IP, DestinationId("10.1.0.1", 80)] = 1
    assert left_in(Family.IPV4, node.handles)
    assert not left_in(Family.IPV6, node.handles)
    leaving = Retirement(Family.IPV4, node.handles, 500.0, lambda: node.now)
    for _ in range(6):
        node.now += leaving.tend() or 0
    assert list(node.ipvs.table) == [CLUSTER_IP]
    assert node.device.held == {"10.96.0.1"}
    node.ipvs.connections.clear()
    while (wait := leaving.tend()) is not None:
        node.now += wait
    assert leaving.done
    assert (node.ipvs.table, node.ipset.sets, node.device.held) == ({}, {}, set())
