"""Destinations, and a whole IPVS mode, that go only when their connections have ended."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.addresses import Family
from kproxy.backends.core.base import LocalTraffic
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.ipvs.draining import WITHDRAWN_PERIOD
from kproxy.backends.ipvs.names import sets
from kproxy.backends.ipvs.teardown import FamilyTeardown, left_in
from kproxy.kernel.ipset.types import Entry
from kproxy.kernel.ipvs.types import (
    Command,
    DestinationId,
    ServerId,
)
from tests.backends.ipvs_node import CLUSTER_IP, CONFIG, IpvsNode, eps, with_config
from tests.builders import endpoint, endpoint_slice, port, service

OUTSIDE = "203.0.113.7"
POD = DestinationId("10.1.0.1", 80)


def test_a_destination_with_connections_stays_until_they_end() -> None:
    node = IpvsNode()
    node.put(service(), eps("10.1.0.1", "10.1.0.2"))
    node.done()
    leaving = DestinationId("10.1.0.1", 80)
    node.ipvs.connections[CLUSTER_IP, leaving] = 2
    node.put(None, eps("10.1.0.2"))
    node.done()
    for _ in range(20):
        wait = node.backend.run_timers()
        assert wait is not None
        node.now += wait
    assert node.ipvs.table[CLUSTER_IP][1][leaving] == 0
    del node.ipvs.connections[CLUSTER_IP, leaving]
    node.drained()
    assert leaving not in node.ipvs.table[CLUSTER_IP][1]
    node.forget()
    assert node.backend.run_timers() is None
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
    assert node.backend.run_timers() is None


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
    leaving = FamilyTeardown(Family.IPV4, node.handles, 500.0, lambda: node.now)
    for _ in range(6):
        node.now += leaving.run_timers() or 0
    assert list(node.ipvs.table) == [CLUSTER_IP]
    assert node.device.held == {"10.96.0.1"}
    node.ipvs.connections.clear()
    while (wait := leaving.run_timers()) is not None:
        node.now += wait
    assert leaving.done
    assert (node.ipvs.table, node.ipset.sets, node.device.held) == ({}, {}, set())


def balanced(name: str = "svc1", ip: str = "10.96.0.1", *addresses: str, **spec: Any) -> dict[str, Any]:
    """A service of type LoadBalancer with these addresses."""
    return service(name, ip, type="LoadBalancer", ingress=list(addresses), **spec)


def served(*addresses: str, closing: bool = False) -> IpvsNode:
    """A node with a service at these load-balancer addresses, and a connection to each of its addresses."""
    node = IpvsNode()
    node.put(balanced("svc1", "10.96.0.1", *addresses), eps("10.1.0.1"))
    node.done()
    busy = node.ipvs.closing if closing else node.ipvs.connections
    busy |= {(server, POD): 1 for server in node.ipvs.table}
    return node


def wait(node: IpvsNode, seconds: float) -> None:
    """Let time pass, and do what is due in it."""
    until = node.now + seconds
    while (due := node.backend.run_timers()) is not None and node.now + due <= until:
        node.now += due
    node.now = until


def withdraw(node: IpvsNode, how: str) -> None:
    """Take the address from the service, or the service away."""
    if how == "deleted":
        node.drop("ns1/svc1")
    else:
        node.put(service())
    node.done()


HOWS = ["deleted", "withdrawn"]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("key", ["ingress", "externalIPs"])
def test_a_withdrawn_address_waits_for_no_connection_that_closes(how: str, key: str) -> None:
    node = IpvsNode()
    spec = {"type": "LoadBalancer"} if key == "ingress" else {}
    node.put(service(**spec, **{key: [OUTSIDE]}), eps("10.1.0.1"))  # type: ignore[arg-type]
    node.done()
    node.ipvs.closing = {(server, POD): 1 for server in node.ipvs.table}
    withdraw(node, how)
    assert node.device.held == {"10.96.0.1"}
    assert list(node.ipvs.table) == [CLUSTER_IP]
    assert node.listed() == {CLUSTER_IP}
    assert (CLUSTER_IP, POD) in node.ipvs.closing
    node.ipvs.closing.clear()
    node.drained()
    assert node.state() == node.fresh()


@pytest.mark.parametrize("how", HOWS)
def test_a_withdrawn_address_goes_within_a_second_of_its_last_open_connection(how: str) -> None:
    node = served(OUTSIDE)
    withdraw(node, how)
    wait(node, WITHDRAWN_PERIOD / 2)
    assert OUTSIDE in node.device.addresses(Family.IPV4)
    node.ipvs.closing = dict(node.ipvs.connections)
    node.ipvs.connections.clear()
    wait(node, 1)
    assert OUTSIDE not in node.device.addresses(Family.IPV4)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("restarted", [False, True], ids=["", "restarted"])
def test_an_open_connection_holds_a_withdrawn_address_for_some_seconds(how: str, *, restarted: bool) -> None:
    node = served(OUTSIDE)
    withdraw(node, how)
    assert OUTSIDE in node.device.addresses(Family.IPV4)
    if restarted:
        node.start()
        node.done()
    wait(node, WITHDRAWN_PERIOD)
    assert node.device.held == {"10.96.0.1"}, "a cluster IP is no other machine's"
    assert CLUSTER_IP in node.ipvs.table


def test_a_shorter_graceful_period_bounds_withdrawn_addresses_too() -> None:
    node = IpvsNode(with_config(graceful_period=0.0))
    node.put(balanced("svc1", "10.96.0.1", OUTSIDE), eps("10.1.0.1"))
    node.done()
    node.ipvs.connections |= {(server, POD): 1 for server in node.ipvs.table}
    withdraw(node, "withdrawn")
    assert node.device.held == {"10.96.0.1"}


def test_a_withdrawn_address_of_ipv6_goes_as_well() -> None:
    rules = IptablesConfig(Family.IPV6, local_traffic=LocalTraffic(cidr="fd00:1::/64"))
    node = IpvsNode(with_config(rules=rules, node_addresses=(), local_addresses=frozenset()))
    pods = endpoint_slice(endpoint("fd00:1::1"), address_type="IPv6")
    node.put(balanced("svc1", "fd00:96::1", "2001:db8::7"), pods)
    node.done()
    assert node.device.held == {"fd00:96::1", "2001:db8::7"}
    six = DestinationId("fd00:1::1", 80)
    node.ipvs.closing = {(server, six): 1 for server in node.ipvs.table}
    node.put(service(ip="fd00:96::1"))
    node.done()
    assert node.device.held == {"fd00:96::1"}


@pytest.mark.parametrize("same_port", [True, False])
def test_an_address_that_another_service_gets_at_once_never_leaves(*, same_port: bool) -> None:
    node = served(OUTSIDE)
    node.put(service())
    number = 80 if same_port else 81
    node.put(
        balanced("other", "10.96.0.2", OUTSIDE, ports=[port(number)]),
        eps("10.1.0.2", service="other", ports=[port(80)]),
    )

    def stays() -> None:
        assert OUTSIDE in node.device.addresses(Family.IPV4)

    node.faults.after = stays
    node.done()
    assert node.serving(ServerId("TCP", OUTSIDE, number)) == {DestinationId("10.1.0.2", 80): 1}
    wait(node, 2 * WITHDRAWN_PERIOD)
    assert node.ipvs.table[ServerId("TCP", OUTSIDE, 80)][1][POD] == 0
    node.faults.after = lambda: None
    node.drop("ns1/other")
    node.done()
    wait(node, WITHDRAWN_PERIOD)
    assert OUTSIDE not in node.device.addresses(Family.IPV4)


def test_an_address_that_becomes_an_external_one_of_its_service_stays_as_it_is() -> None:
    node = served(OUTSIDE)
    node.forget()
    node.put(service(externalIPs=[OUTSIDE]))
    node.done()
    assert (node.ipvs.sent, node.device.changes) == ([], 0)
    assert node.backend.run_timers() is None


@pytest.mark.parametrize("how", HOWS)
def test_an_address_that_drains_and_becomes_the_nodes_own_leaves_the_device_at_once(how: str) -> None:
    node = served(OUTSIDE)
    withdraw(node, how)
    assert OUTSIDE in node.device.addresses(Family.IPV4)
    node.config = with_config(local_addresses=CONFIG.local_addresses | {OUTSIDE})
    node.backend.reconfigure(node.config)
    node.done()
    assert OUTSIDE not in node.device.addresses(Family.IPV4)
    assert ServerId("TCP", OUTSIDE, 80) in node.ipvs.table, "its connections go on"
    assert node.backend.compare_addresses(None) == ()
    node.ipvs.connections.clear()
    node.drained()
    assert node.state() == node.fresh()


def test_a_mode_that_leaves_cuts_no_connection_to_an_address_that_is_still_served() -> None:
    node = served(OUTSIDE)
    leaving = FamilyTeardown(Family.IPV4, node.handles, 500.0, lambda: node.now)
    for _ in range(6):
        node.now += leaving.run_timers() or 0
    assert node.now > 1000 + WITHDRAWN_PERIOD
    assert node.device.held == {"10.96.0.1", OUTSIDE}


def test_what_takes_no_new_connections_is_listed_until_it_is_gone_or_wanted_again() -> None:
    node = IpvsNode()
    spec: dict[str, Any] = {"type": "NodePort", "ports": [port(nodePort=30001)]}
    node.put(service(**spec), eps("10.1.0.1"))
    node.done()
    node.ipvs.connections |= {(server, POD): 1 for server in node.ipvs.table}
    standing = {Entry(server.ip, "TCP", server.port) for server in node.ipvs.table}
    draining = sets(Family.IPV4).draining
    for again in range(2):
        node.drop("ns1/svc1")
        node.done()
        assert node.ipset.entries(draining) == standing
        if again:
            node.start()
            node.done()
            assert node.ipset.entries(draining) == standing
        node.put(service(**spec))
        node.done()
        assert node.ipset.entries(draining) == set()
    node.drop("ns1/svc1")
    node.done()
    node.ipvs.connections.clear()
    node.drained()
    assert node.ipset.entries(draining) == set()
    assert node.state() == node.fresh()
