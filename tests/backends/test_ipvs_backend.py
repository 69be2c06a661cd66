"""The IPVS backend over kernels in memory: what it sends, in which order, and what it never does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kproxy.addresses import Family
from kproxy.backends.core.foreign_writes import ForeignWrites
from kproxy.backends.iptables.backend import IptablesBackend
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.iptables.layout import Layout, StandardLayout
from kproxy.backends.iptables.scalable import ScalableLayout
from kproxy.backends.ipvs.names import sets
from kproxy.kernel.ipset.types import Entry
from kproxy.kernel.ipvs.types import (
    PERSISTENT,
    SCHED1,
    SCHED2,
    Command,
    DestinationId,
    ServerId,
    VirtualServer,
)
from kproxy.plan.schedulers import Scheduler
from tests.backends.ipvs_node import CLUSTER_IP, CONFIG, RULES, IpvsNode, eps, with_config
from tests.builders import NODE, endpoint, endpoint_slice, port, service
from tests.peer_rules import IPVS_RULES

KNOWN = sets(Family.IPV4)


def test_a_service_becomes_a_virtual_server_an_address_and_an_entry() -> None:
    node = IpvsNode()
    node.put(service(), eps("10.1.0.1", "10.1.0.2"))
    node.done()
    assert node.ipvs.table == {
        CLUSTER_IP: (
            VirtualServer("rr"),
            {DestinationId("10.1.0.1", 80): 1, DestinationId("10.1.0.2", 80): 1},
        )
    }
    assert node.device.held == {"10.96.0.1"}
    assert node.ipset.entries(KNOWN.cluster_ip) == {Entry("10.96.0.1", "TCP", 80)}
    assert node.ipset.entries(KNOWN.addresses) == {Entry("10.96.0.1")}


def test_one_endpoint_replaced_is_two_messages_whatever_the_size_and_reads_nothing() -> None:
    costs = set()
    for size in (1, 200):
        node = IpvsNode()
        for n in range(size):
            node.put(service(f"svc{n}", f"10.96.1.{n}"), eps("10.1.0.1", "10.1.0.2", service=f"svc{n}"))
        node.done()
        node.forget()
        node.put(None, eps("10.1.0.1", "10.1.0.3", service="svc0"))
        node.done()
        assert [request.command for request in node.ipvs.sent] == [Command.NEW_DEST, Command.SET_DEST]
        assert node.reads == 0
        costs.add(node.messages)
    assert costs == {2}


def test_a_second_sync_sends_and_reads_nothing() -> None:
    node = IpvsNode()
    node.put(service(type="NodePort", ports=[port(nodePort=30001)]), eps("10.1.0.1"))
    node.done()
    node.forget()
    node.tables.touch_all()
    assert node.done().changes == {}
    assert (node.messages, node.reads) == (0, 0)


def test_what_lets_packets_through_stands_before_what_forwards_them() -> None:
    node = IpvsNode()
    node.put(service(), eps("10.1.0.1"))
    seen: list[str] = []

    def look() -> None:
        if node.ipvs.table and not seen:
            seen.append("server")
            assert "KUBE-POSTROUTING" in node.xtables.chains("nat")
            assert CLUSTER_IP in node.listed()
            assert not node.device.held

    node.faults.after = look
    node.done()
    assert seen


@pytest.mark.parametrize(
    ("annotation", "settings"),
    [
        ("wlc", VirtualServer("wlc")),
        ("sh", VirtualServer("sh", SCHED1)),
        ("sh,sh-port", VirtualServer("sh", SCHED2)),
        ("mh", VirtualServer("mh", SCHED2)),
        ("mh,mh-fallback,mh-port", VirtualServer("mh", SCHED1 | SCHED2)),
        ("fastest", VirtualServer("rr")),
    ],
)
def test_a_service_chooses_its_scheduler(annotation: str, settings: VirtualServer) -> None:
    node = IpvsNode()
    node.put(service(annotations={"kproxy.io/scheduler": annotation}), eps("10.1.0.1"))
    node.done()
    assert node.ipvs.table[CLUSTER_IP][0] == settings


def test_a_scheduler_that_the_kernel_lacks_is_named_and_taken_once_it_is_there() -> None:
    node = IpvsNode()
    node.ipvs.schedulers = {"rr"}
    node.put(service(annotations={"kproxy.io/scheduler": "lc"}), eps("10.1.0.1"))
    assert "no scheduler lc" in node.done().degraded["ns1/svc1"]
    assert node.ipvs.table[CLUSTER_IP][0] == VirtualServer("rr")
    node.ipvs.schedulers.add("lc")
    node.backend.retry()
    assert node.done().degraded == {}
    assert node.ipvs.table[CLUSTER_IP][0] == VirtualServer("lc")


def test_affinity_is_persistence_and_its_timeout_can_change() -> None:
    node = IpvsNode()
    for seconds in (100, 200):
        config = {"clientIP": {"timeoutSeconds": seconds}}
        node.put(service(sessionAffinity="ClientIP", sessionAffinityConfig=config), eps("10.1.0.1"))
        node.done()
        assert node.ipvs.table[CLUSTER_IP][0] == VirtualServer("rr", PERSISTENT, seconds)
    assert Command.DEL_SERVICE not in {request.command for request in node.ipvs.sent}


def test_weights_become_destinations_weights() -> None:
    node = IpvsNode()
    node.put(
        service(annotations={"kproxy.io/weights": '{"node:node1": 7, "*": 0}'}),
        endpoint_slice(endpoint("10.1.0.1", node="node1"), endpoint("10.1.0.2", node="node2")),
    )
    node.done()
    assert list(node.ipvs.table[CLUSTER_IP][1].values()) == [7, 0]
    node.put(None, endpoint_slice(endpoint("10.1.0.2", node="node2")))
    node.done()
    assert node.serving(CLUSTER_IP) == {DestinationId("10.1.0.2", 80): 1}


def test_when_weights_change_hands_an_endpoint_serves_at_every_moment() -> None:
    node = IpvsNode()
    slice_ = endpoint_slice(endpoint("10.1.0.1", node="node1"), endpoint("10.1.0.2", node="node2"))
    node.put(service(annotations={"kproxy.io/weights": '{"node:node1": 1, "*": 0}'}), slice_)
    node.done()

    def served() -> None:
        assert node.serving(CLUSTER_IP)

    node.faults.after = served
    node.put(service(annotations={"kproxy.io/weights": '{"node:node1": 0, "*": 1}'}))
    node.done()
    assert node.serving(CLUSTER_IP) == {DestinationId("10.1.0.2", 80): 1}


def test_policies_without_endpoints_refuse_or_drop() -> None:
    node = IpvsNode()
    node.put(service("none", "10.96.0.7"))
    node.put(service("local", "10.96.0.8", internalTrafficPolicy="Local"), eps("10.1.0.1", service="local"))
    node.done()
    assert node.ipset.entries(KNOWN.no_endpoints) == {Entry("10.96.0.7", "TCP", 80)}
    assert node.ipset.entries(KNOWN.no_local_endpoints) == {Entry("10.96.0.8", "TCP", 80)}
    assert node.ipvs.table == {}


def test_refusal_begins_before_the_last_destination_goes_and_ends_after_the_first_stands() -> None:
    node = IpvsNode()
    node.put(service(), eps("10.1.0.1"))
    node.done()

    def covered() -> None:
        refused = Entry("10.96.0.1", "TCP", 80) in node.ipset.entries(KNOWN.no_endpoints)
        assert refused or node.serving(CLUSTER_IP)

    node.faults.after = covered
    for slice_ in (eps(), eps("10.1.0.2"), eps(), eps("10.1.0.1")):
        node.put(None, slice_)
        node.done()


def test_an_external_address_beats_a_node_port_on_it() -> None:
    node = IpvsNode()
    node.put(
        service("a", "10.96.0.1", type="NodePort", ports=[port(nodePort=30001)]), eps("10.1.0.1", service="a")
    )
    node.put(
        service("b", "10.96.0.2", ports=[port(30001)], externalIPs=["192.168.0.2"]),
        eps("10.1.0.2", service="b", ports=[port(80)]),
    )
    node.done()
    assert list(node.serving(ServerId("TCP", "192.168.0.2", 30001))) == [DestinationId("10.1.0.2", 80)]
    node.drop("ns1/b")
    node.done()
    assert list(node.serving(ServerId("TCP", "192.168.0.2", 30001))) == [DestinationId("10.1.0.1", 80)]
    node.drained()
    assert node.state() == node.fresh()


def test_a_service_that_returns_with_another_policy_is_listed_once() -> None:
    node = IpvsNode()
    spec: dict[str, Any] = {"type": "NodePort", "ports": [port(nodePort=30001)]}
    node.put(service(externalTrafficPolicy="Local", **spec), eps("10.1.0.1", node="node1"))
    node.done()
    node.drop("ns1/svc1")
    node.done()
    node.put(service(externalTrafficPolicy="Cluster", **spec))
    node.done()
    assert node.ipset.entries(KNOWN.external_local) == set()
    node.drained()
    assert node.state() == node.fresh()


def test_new_node_addresses_get_the_node_ports() -> None:
    node = IpvsNode()
    node.put(service(type="NodePort", ports=[port(nodePort=30001)]), eps("10.1.0.1"))
    node.done()
    node.config = with_config(node_addresses=("192.168.0.9",), local_addresses=frozenset({"192.168.0.9"}))
    node.backend.reconfigure(node.config)
    node.done()
    node.drained()
    assert {server.ip for server in node.ipvs.table} == {"10.96.0.1", "192.168.0.9"}
    assert node.state() == node.fresh()


def test_an_address_that_becomes_the_nodes_own_leaves_the_device() -> None:
    """Or the node's own ports would be refused there, as for a virtual address that keepalived has moved."""
    node = IpvsNode()
    node.put(service("a", "10.96.0.1", externalIPs=["203.0.113.7"]), eps("10.1.0.1", service="a"))
    node.done()
    assert "203.0.113.7" in node.device.addresses(Family.IPV4)
    own = {*CONFIG.local_addresses, "203.0.113.7"}
    for local in (own, CONFIG.local_addresses):
        node.config = with_config(local_addresses=frozenset(local))
        node.backend.reconfigure(node.config)
        node.done()
        assert node.serving(ServerId("TCP", "203.0.113.7", 80))
        assert node.state() == node.fresh()


def test_an_iptables_mode_goes_after_the_virtual_servers_stand() -> None:
    node = IpvsNode()
    old = IptablesBackend(StandardLayout(RULES), node.xtables, ForeignWrites(node.xtables.generation))
    node.put(service(), eps("10.1.0.1"))
    old.update(node.planner.update(node.tables.dirty(), NODE).values())
    assert old.sync().error is None
    node.start()

    def covered() -> None:
        assert "KUBE-SERVICES" in node.xtables.chains("nat") or node.serving(CLUSTER_IP)

    node.faults.after = covered
    node.done()
    assert node.state() == node.fresh()


def test_what_an_iptables_mode_serves_is_its_own_until_it_goes() -> None:
    """Virtual servers may stand from before and take no connections: what drains keeps its address."""
    node = IpvsNode()
    old = IptablesBackend(StandardLayout(RULES), node.xtables, ForeignWrites(node.xtables.generation))
    node.put(service(), eps("10.1.0.1"))
    old.update(node.planner.update(node.tables.dirty(), NODE).values())
    assert old.sync().error is None
    node.start()

    def in_order() -> None:
        for hook in ("PREROUTING", "OUTPUT"):
            targets = [rule.split()[-1] for rule in node.xtables.chains("nat")[hook]]
            if {"KUBE-SERVICES", "KUBE-IPVS-SERVICES"} <= set(targets):
                assert targets.index("KUBE-SERVICES") < targets.index("KUBE-IPVS-SERVICES")

    node.faults.after = in_order
    node.done()
    assert node.state() == node.fresh()


def test_rules_of_kube_proxys_ipvs_mode_are_taken_over_or_go() -> None:
    node = IpvsNode()
    node.xtables.edit(IPVS_RULES)
    node.put(service(), eps("10.1.0.1"))
    node.done()
    assert node.state() == node.fresh()


PEER_LOOP_BACK = (
    "*nat\n-F KUBE-POSTROUTING\n"
    '-A KUBE-POSTROUTING -m comment --comment "Kubernetes endpoints dst ip:port, source ip for solving '
    'hairpin purpose" -m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE\nCOMMIT\n'
)
"""As kube-proxy writes it (pkg/proxy/ipvs/proxier.go)."""


@pytest.mark.parametrize("damage", ["", PEER_LOOP_BACK], ids=["kproxy's", "kube-proxy's"])
@pytest.mark.parametrize("layout", [StandardLayout, ScalableLayout])
def test_pods_reach_themselves_through_virtual_servers_until_rules_translate(
    layout: Callable[[IptablesConfig], Layout], damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = IpvsNode()
    node.put(service(), eps("10.1.0.1", node="node1"))
    node.done()
    if damage:
        node.xtables.edit(damage)
    new = IptablesBackend(layout(RULES), node.xtables, ForeignWrites(node.xtables.generation))
    new.update(node.plans.values())
    restore, states = node.xtables.restore, []

    def watched(text: bytes) -> None:
        restore(text)
        nat = node.xtables.chains("nat")
        translated = any("-d 10.96.0.1/32 " in rule for rules in nat.values() for rule in rules)
        states.append((translated, "LOOP-BACK" in nat["KUBE-POSTROUTING"][0]))

    monkeypatch.setattr(node.xtables, "restore", watched)
    assert new.sync().error is None
    assert (False, True) in states
    assert (False, False) not in states
    assert states[-1] == (True, False)
    assert new.check(full=True) == ()


def test_the_default_scheduler_is_the_operators() -> None:
    node = IpvsNode(with_config(scheduler=Scheduler("wlc")))
    node.put(service(), eps("10.1.0.1"))
    node.done()
    assert node.ipvs.table[CLUSTER_IP][0] == VirtualServer("wlc")
