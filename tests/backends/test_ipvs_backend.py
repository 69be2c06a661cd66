"""The IPVS backend over kernels in memory: what it sends, in which order, and what it never does."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.addresses import Family
from kproxy.backends.base import CheckError
from kproxy.backends.iptables.backend import IptablesBackend
from kproxy.backends.iptables.layout import StandardLayout
from kproxy.backends.iptables.watch import ChangeWatch
from kproxy.backends.ipvs.names import sets
from kproxy.backends.ipvs.retirement import Retirement, left_in
from kproxy.kernel.ipset.types import Entry, SetKind, SetSpec
from kproxy.kernel.ipvs.types import (
    PERSISTENT,
    SCHED1,
    SCHED2,
    Command,
    DestinationId,
    IpvsError,
    IpvsUnavailable,
    ServerId,
    VirtualServer,
)
from kproxy.plan.schedulers import Scheduler
from tests.backends.ipvs_node import CONFIG, IpvsNode, with_config
from tests.builders import NODE, endpoint, endpoint_slice, port, service

CLUSTER_IP = ServerId("TCP", "10.96.0.1", 80)
KNOWN = sets(Family.IPV4)


def eps(*addresses: str, node: str = "node2", service: str = "svc1", **fields: Any) -> dict[str, Any]:
    """A slice with these endpoints."""
    return endpoint_slice(*(endpoint(ip, node=node) for ip in addresses), service=service, **fields)


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


def test_when_weights_change_hands_somebody_serves_at_every_moment() -> None:
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


def test_a_refused_request_costs_only_its_own_service() -> None:
    node = IpvsNode()
    node.faults.refuse = lambda change: "10.96.0.2" in change
    for n in (1, 2, 3):
        node.put(service(f"svc{n}", f"10.96.0.{n}"), eps("10.1.0.1", service=f"svc{n}"))
    report = node.sync()
    assert list(report.failed) == ["ns1/svc2"]
    assert "10.96.0.2" in report.failed["ns1/svc2"]
    assert {server.ip for server in node.ipvs.table} == {"10.96.0.1", "10.96.0.3"}
    node.faults.refuse = lambda _: False
    node.backend.retry()
    node.done()
    assert node.state() == node.fresh()


@pytest.mark.parametrize("what", ["KPROXY-LOOP-BACK", "DEL_SERVICE", "10.96.0.1"])
def test_a_removal_that_is_refused_is_named_and_not_forgotten(what: str) -> None:
    node = IpvsNode()
    node.put(
        service(ports=[port(53, "dns", "UDP")]), eps("10.1.0.1", node="node1", ports=[port(53, "dns", "UDP")])
    )
    node.done()
    node.drop("ns1/svc1")
    node.faults.refuse = lambda change: what in change
    failed = node.sync().failed
    assert failed
    assert "ns1/svc1" not in failed
    node.faults.refuse = lambda _: False
    node.backend.retry()
    node.done()
    assert node.state() == node.fresh()


def test_a_virtual_server_of_somebody_else_is_left_alone_and_named() -> None:
    node = IpvsNode()
    theirs = ServerId("TCP", "192.168.0.2", 30001)
    unrelated = ServerId("TCP", "203.0.113.5", 443)
    for server in (theirs, unrelated):
        node.ipvs.table[server] = (VirtualServer("wlc"), {})
    node.put(service(type="NodePort", ports=[port(nodePort=30001)]), eps("10.1.0.1"))
    assert "did not make" in node.sync().failed["ns1/svc1"]
    assert {server: node.ipvs.table[server][0] for server in (theirs, unrelated)} == {
        theirs: VirtualServer("wlc"),
        unrelated: VirtualServer("wlc"),
    }
    for again in (node.backend.retry, node.start):
        again()
        assert "did not make" in node.sync().failed["ns1/svc1"]
        assert node.ipvs.table[theirs] == (VirtualServer("wlc"), {})
    del node.ipvs.table[theirs]
    node.backend.retry()
    node.done()
    assert theirs in node.ipvs.table


def test_a_virtual_server_that_somebody_makes_meanwhile_gets_no_destinations() -> None:
    node = IpvsNode()
    node.done()
    theirs = ServerId("TCP", "192.168.0.2", 30001)
    node.ipvs.table[theirs] = (VirtualServer("wlc"), {})
    node.put(service(type="NodePort", ports=[port(nodePort=30001)]), eps("10.1.0.1"))
    node.sync()
    assert node.ipvs.table[theirs][1] == {}


def test_excluded_ranges_are_not_cleaned_up() -> None:
    node = IpvsNode(with_config(exclude_cidrs=("10.96.9.0/24",)))
    kept = ServerId("TCP", "10.96.9.9", 80)
    node.device.held = {"10.96.9.9", "10.96.8.8"}
    for server in (kept, ServerId("TCP", "10.96.8.8", 80)):
        node.ipvs.table[server] = (VirtualServer("rr"), {})
    node.done()
    assert list(node.ipvs.table) == [kept]


@pytest.mark.parametrize("lost", range(1, 12))
def test_lost_acknowledgements_lose_nothing(lost: int) -> None:
    node = IpvsNode()
    node.put(service(), eps("10.1.0.1", "10.1.0.2"))
    node.faults.lose_soon(lost - 1)
    report = node.sync()
    if report.error is None:
        assert node.faults.lose_at is not None
        return
    assert "lost" in report.error
    node.done()
    assert node.state() == node.fresh()


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


def test_drift_is_named_and_mended() -> None:
    node = IpvsNode()
    node.put(service(), eps("10.1.0.1"))
    node.done()
    node.ipvs.table[CLUSTER_IP][1][DestinationId("10.1.0.9", 80)] = 1
    node.device.held = set()
    named = [str(drift) for drift in node.backend.check(thorough=True)]
    assert named == [
        "address 10.96.0.1 is missing",
        "destination TCP 10.96.0.1 port 80 -> 10.1.0.9 port 80 is not wanted",
    ]
    node.done()
    node.drained()
    assert node.state() == node.fresh()


def test_a_lost_address_is_put_back_without_reading_anything_else() -> None:
    node = IpvsNode()
    node.put(service(), eps("10.1.0.1"))
    node.done()
    node.device.held = set()
    reads = node.ipvs.reads, node.ipset.reads
    named = [str(drift) for drift in node.backend.compare_addresses({"10.96.0.1": False})]
    assert named == ["address 10.96.0.1 is missing"]
    node.done()
    assert node.device.held == {"10.96.0.1"}
    assert (node.ipvs.reads, node.ipset.reads) == reads


def test_a_lost_device_is_made_again() -> None:
    node = IpvsNode()
    node.put(service(), eps("10.1.0.1"))
    node.done()
    node.device.held = None
    assert node.backend.compare_addresses({"10.96.0.1": False})
    node.done()
    assert node.device.held == {"10.96.0.1"}


def test_a_lost_address_of_what_drains_comes_back_and_goes_with_it() -> None:
    node = IpvsNode()
    node.put(service(), eps("10.1.0.1"))
    node.done()
    node.ipvs.connections[CLUSTER_IP, DestinationId("10.1.0.1", 80)] = 1
    node.drop("ns1/svc1")
    node.done()
    assert node.device.held == {"10.96.0.1"}
    node.device.delete()
    assert node.backend.compare_addresses({"10.96.0.1": False})
    node.done()
    assert node.device.held == {"10.96.0.1"}
    node.ipvs.connections.clear()
    node.drained()
    assert node.device.held == set()
    assert not [entries for _, entries in node.ipset.sets.values() if entries]


def test_an_address_that_somebody_added_goes() -> None:
    node = IpvsNode()
    node.put(service(), eps("10.1.0.1"))
    node.done()
    assert node.device.held is not None
    node.device.held.add("10.9.9.9")
    named = [str(drift) for drift in node.backend.compare_addresses({"10.9.9.9": True})]
    assert named == ["address 10.9.9.9 is not wanted"]
    node.done()
    assert node.device.held == {"10.96.0.1"}


def test_news_of_what_we_did_ourselves_cost_nothing() -> None:
    node = IpvsNode()
    node.put(service(), eps("10.1.0.1"))
    node.done()
    reads = node.device.reads
    assert node.backend.compare_addresses({"10.96.0.1": True, "10.96.0.7": False}) == ()
    assert node.device.reads == reads
    node.now += CONFIG.look_period
    assert node.backend.check() == ()
    assert node.device.reads == reads


def test_lost_news_make_all_addresses_be_read() -> None:
    node = IpvsNode()
    node.put(service(), eps("10.1.0.1"))
    node.done()
    node.device.held = set()
    assert node.backend.compare_addresses(None)
    node.done()
    assert node.device.held == {"10.96.0.1"}


def test_addresses_that_could_not_be_read_are_read_at_the_next_look() -> None:
    node = IpvsNode()
    node.put(service(), eps("10.1.0.1"))
    node.done()
    node.device.held = set()
    node.faults.unavailable = "no buffer space"
    with pytest.raises(CheckError):
        node.backend.compare_addresses({"10.96.0.1": False})
    node.faults.unavailable = ""
    node.now += CONFIG.look_period
    assert [str(drift) for drift in node.backend.check()] == ["address 10.96.0.1 is missing"]


def test_what_drains_stays_ours_whatever_becomes_of_sets_and_addresses() -> None:
    node = IpvsNode()
    node.put(service(type="NodePort", ports=[port(nodePort=30001)]), eps("10.1.0.1"))
    node.done()
    for server in node.ipvs.table:
        node.ipvs.connections[server, DestinationId("10.1.0.1", 80)] = 1
    node.drop("ns1/svc1")
    node.done()
    node.device.held = set()
    node.backend.check(thorough=True)
    node.done()
    for _, entries in node.ipset.sets.values():
        entries.clear()
    assert node.backend.check(thorough=True)
    node.done()
    assert set(node.ipvs.table) <= node.listed()
    node.start()
    node.done()
    node.ipvs.connections.clear()
    node.drained()
    assert (node.ipvs.table, node.listed()) == ({}, set())


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


def test_an_iptables_mode_goes_after_the_virtual_servers_stand() -> None:
    node = IpvsNode()
    old = IptablesBackend(StandardLayout(CONFIG.rules), node.xtables, ChangeWatch(node.xtables.stamp))
    node.put(service(), eps("10.1.0.1"))
    old.update(node.planner.update(node.tables.dirty(), NODE).values())
    assert old.sync().error is None
    node.start()

    def covered() -> None:
        assert "KUBE-SERVICES" in node.xtables.chains("nat") or node.serving(CLUSTER_IP)

    node.faults.after = covered
    node.done()
    assert node.state() == node.fresh()


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


def test_retirement_leaves_what_is_not_ours() -> None:
    node = IpvsNode()
    foreign = ServerId("TCP", "203.0.113.5", 443)
    node.ipvs.table[foreign] = (VirtualServer("wlc"), {})
    node.ipset.create(SetSpec("FOREIGN", SetKind.IP, Family.IPV4))
    node.put(service(), eps("10.1.0.1"))
    node.done()
    leaving = Retirement(Family.IPV4, node.handles, 0, lambda: node.now)
    assert leaving.clear()
    assert leaving.dissolve()
    assert list(node.ipvs.table) == [foreign]
    assert list(node.ipset.sets) == ["FOREIGN"]


def test_sets_that_outlived_their_kernels_ipvs_are_destroyed() -> None:
    node = IpvsNode()
    node.ipset.create(KNOWN.cluster_ip)

    def fail(_: Family) -> Any:
        raise IpvsUnavailable("this kernel has no IPVS")

    node.ipvs.servers = fail  # type: ignore[method-assign,assignment]
    leaving = Retirement(Family.IPV4, node.handles, 500.0, lambda: node.now)
    assert leaving.tend() is None
    assert (node.ipset.sets, node.device.held) == ({}, None)


def test_a_kernel_without_ipvs_is_an_error_that_says_so() -> None:
    node = IpvsNode()

    def fail(_: Family) -> Any:
        raise IpvsError("this kernel has no IPVS")

    node.ipvs.servers = fail  # type: ignore[method-assign,assignment]
    node.put(service(), eps("10.1.0.1"))
    assert node.sync().error == "this kernel has no IPVS"


def test_the_default_scheduler_is_the_operators() -> None:
    node = IpvsNode(with_config(scheduler=Scheduler("wlc")))
    node.put(service(), eps("10.1.0.1"))
    node.done()
    assert node.ipvs.table[CLUSTER_IP][0] == VirtualServer("wlc")
