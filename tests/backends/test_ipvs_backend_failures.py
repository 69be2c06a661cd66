"""The IPVS backend when requests are refused or lost, and among what others have made or changed."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.addresses import Family
from kproxy.backends.core.base import CheckError, LocalTraffic
from kproxy.backends.core.retries import LONGEST_RETRY
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.ipvs.teardown import FamilyTeardown
from kproxy.kernel.ipset.types import SetKind, SetSpec
from kproxy.kernel.ipvs.types import (
    DestinationId,
    IpvsError,
    IpvsUnavailable,
    ServerId,
    VirtualServer,
)
from kproxy.kernel.xtables.types import FailureKind, RestoreError
from tests.backends.ipvs_node import CLUSTER_IP, CONFIG, IpvsNode, eps, with_config
from tests.backends.test_ipvs_backend import KNOWN
from tests.builders import endpoint, endpoint_slice, port, service


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
    for tried in (True, False):
        report = node.sync()
        assert (report.error, report.failed) == (None, {})
        assert report.leftovers
        assert bool(report.kept) is tried
    node.faults.refuse = lambda _: False
    node.now += LONGEST_RETRY
    assert node.done().leftovers == {}
    assert node.state() == node.fresh()


def test_leftovers_are_named_one_by_one_and_are_no_services() -> None:
    rules = IptablesConfig(Family.IPV6, local_traffic=LocalTraffic(cidr="fd00:1::/64"))
    node = IpvsNode(with_config(rules=rules, node_addresses=(), local_addresses=frozenset()))
    ports = [port(53, "dns", "UDP")]
    for n in (1, 2):
        pods = endpoint_slice(
            endpoint(f"fd00:1::{n}", node="node2"), service=f"svc{n}", ports=ports, address_type="IPv6"
        )
        node.put(service(f"svc{n}", f"fd00:96::{n}", ports=ports), pods)
    node.done()
    for n in (1, 2):
        node.drop(f"ns1/svc{n}")
    node.faults.refuse = lambda change: "DEL_SERVICE" in change
    report = node.done()
    assert set(report.leftovers) == {f"virtual server UDP fd00:96::{n} port 53" for n in (1, 2)}
    assert all("DEL_SERVICE" in reason for reason in report.leftovers.values())
    assert report.services == {}


def test_a_foreign_virtual_server_is_left_alone_and_named() -> None:
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


def test_a_virtual_server_that_another_program_makes_meanwhile_gets_no_destinations() -> None:
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
    assert node.done().drifts == ()
    assert node.state() == node.fresh()


@pytest.mark.parametrize("lost", range(1, 5))
def test_damage_that_follows_a_failed_sync_is_named(lost: int) -> None:
    """What the failed sync may have written itself is not."""
    node = IpvsNode()
    node.put(service(), eps("10.1.0.1"))
    node.done()
    node.put(service(), eps("10.1.0.2", "10.1.0.3"))
    node.put(service("other", "10.96.0.9"), eps("10.1.0.4", name="other"))
    node.faults.lose_soon(lost - 1)
    assert "lost" in str(node.sync().error)
    del node.ipvs.table[CLUSTER_IP]
    assert [str(drift) for drift in node.done().drifts] == ["virtual server TCP 10.96.0.1 port 80 is missing"]
    node.drained()
    assert node.state() == node.fresh()


def test_drift_is_named_and_mended() -> None:
    node = IpvsNode()
    node.put(service(), eps("10.1.0.1"))
    node.done()
    node.ipvs.table[CLUSTER_IP][1][DestinationId("10.1.0.9", 80)] = 1
    node.device.held = set()
    named = [str(drift) for drift in node.backend.check(full=True)]
    assert named == [
        "address 10.96.0.1 is missing",
        "destination TCP 10.96.0.1 port 80 -> 10.1.0.9 port 80 is unexpected",
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


def test_an_address_that_another_program_added_goes() -> None:
    node = IpvsNode()
    node.put(service(), eps("10.1.0.1"))
    node.done()
    assert node.device.held is not None
    node.device.held.add("10.9.9.9")
    named = [str(drift) for drift in node.backend.compare_addresses({"10.9.9.9": True})]
    assert named == ["address 10.9.9.9 is unexpected"]
    node.done()
    assert node.device.held == {"10.96.0.1"}


def test_news_of_what_we_did_ourselves_cost_nothing() -> None:
    node = IpvsNode()
    node.put(service(), eps("10.1.0.1"))
    node.done()
    reads = node.device.reads
    assert node.backend.compare_addresses({"10.96.0.1": True, "10.96.0.7": False}) == ()
    assert node.device.reads == reads
    node.now += CONFIG.drift_check_interval
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


def test_addresses_that_could_not_be_read_are_read_at_the_next_check() -> None:
    node = IpvsNode()
    node.put(service(), eps("10.1.0.1"))
    node.done()
    node.device.held = set()
    node.faults.unavailable = "no buffer space"
    with pytest.raises(CheckError):
        node.backend.compare_addresses({"10.96.0.1": False})
    node.faults.unavailable = ""
    node.now += CONFIG.drift_check_interval
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
    node.backend.check(full=True)
    node.done()
    for _, entries in node.ipset.sets.values():
        entries.clear()
    assert node.backend.check(full=True)
    node.done()
    assert set(node.ipvs.table) <= node.listed()
    node.start()
    node.done()
    node.ipvs.connections.clear()
    node.drained()
    assert (node.ipvs.table, node.listed()) == ({}, set())


def test_retirement_leaves_what_is_not_ours() -> None:
    node = IpvsNode()
    foreign = ServerId("TCP", "203.0.113.5", 443)
    node.ipvs.table[foreign] = (VirtualServer("wlc"), {})
    node.ipset.create(SetSpec("FOREIGN", SetKind.IP, Family.IPV4))
    node.put(service(), eps("10.1.0.1"))
    node.done()
    leaving = FamilyTeardown(Family.IPV4, node.handles, 0, lambda: node.now)
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
    leaving = FamilyTeardown(Family.IPV4, node.handles, 500.0, lambda: node.now)
    assert leaving.run_timers() is None
    assert (node.ipset.sets, node.device.held) == ({}, None)


def test_a_kernel_without_ipvs_is_an_error_that_says_so() -> None:
    node = IpvsNode()

    def fail(_: Family) -> Any:
        raise IpvsError("this kernel has no IPVS")

    node.ipvs.servers = fail  # type: ignore[method-assign,assignment]
    node.put(service(), eps("10.1.0.1"))
    assert node.sync().error == "this kernel has no IPVS"


def test_damage_that_a_sync_meets_is_named_and_repaired_by_it() -> None:
    node = IpvsNode()
    node.put(service(), eps("10.1.0.1"))
    node.done()
    del node.ipvs.table[CLUSTER_IP]
    node.put(service(), eps("10.1.0.1", "10.1.0.2"))
    report = node.sync()
    assert (report.error, dict(report.failed)) == (None, {})
    assert [str(drift) for drift in report.drifts] == ["virtual server TCP 10.96.0.1 port 80 is missing"]
    assert node.state() == node.fresh()


def test_what_drained_and_was_taken_away_is_not_waited_for() -> None:
    node = IpvsNode()
    node.put(service(), eps("10.1.0.1"))
    node.done()
    node.put(service(), eps("10.1.0.2"))
    node.done()
    assert node.backend.run_timers() is not None
    del node.ipvs.table[CLUSTER_IP]
    assert node.backend.check(full=True) != ()
    node.done()
    assert node.backend.run_timers() is None
    assert node.state() == node.fresh()


def test_the_mark_of_the_nodes_own_connections_comes_back_and_goes_with_the_mode() -> None:
    node = IpvsNode()
    node.put(service(), eps("10.1.0.1"))
    node.done()
    marks = set(node.ipvs.local_marks)
    assert len(marks) == 1
    node.ipvs.local_marks.clear()
    assert [drift.found for drift in node.backend.check(full=True)] == ["missing"]
    node.done()
    assert node.ipvs.local_marks == marks
    assert FamilyTeardown(Family.IPV4, node.handles, 0, lambda: node.now).dissolve()
    assert node.ipvs.local_marks == set()


def test_a_mark_that_cannot_be_had_keeps_no_service_back() -> None:
    node = IpvsNode()

    def refuse(*_: object) -> bool:
        raise IpvsError("cannot make it")

    node.ipvs.add_local_mark = refuse  # type: ignore[method-assign,assignment]
    node.put(service(), eps("10.1.0.1"))
    node.done()
    assert node.serving(CLUSTER_IP)
    assert node.backend.check(full=True) == ()


@pytest.mark.parametrize("rules_too", [False, True])
def test_sets_that_others_destroyed_are_made_again_by_the_next_sync(*, rules_too: bool) -> None:
    node = IpvsNode()
    node.put(service(), eps("10.1.0.1"))
    node.done()
    restore = node.xtables.restore

    def as_the_kernel(text: bytes) -> None:
        named = {word for word in text.decode().split() if word.startswith("KPROXY-")}
        if missing := named - node.ipset.sets.keys() - {"KPROXY-PROBE"}:
            told = f"Set {min(missing)} doesn't exist."
            raise RestoreError(FailureKind.RULE, told)
        restore(text)

    node.xtables.restore = as_the_kernel  # type: ignore[method-assign]
    node.ipset.sets.clear()
    if rules_too:
        node.xtables.edit("*nat\n-F\nCOMMIT\n*filter\n-F\nCOMMIT\n*mangle\n-F\nCOMMIT\n")
        assert node.backend.check() != ()
    node.put(service("other", "10.96.0.2"), eps("10.1.0.2", service="other"))
    node.done()
    assert node.state() == node.fresh()


def test_a_set_of_another_type_in_the_place_of_ours_is_replaced() -> None:
    node = IpvsNode()
    node.ipset.sets[KNOWN.cluster_ip.name] = (SetSpec(KNOWN.cluster_ip.name, SetKind.IP, Family.IPV4), set())
    node.put(service(), eps("10.1.0.1"))
    node.done()
    assert node.state() == node.fresh()


def test_a_device_that_is_gone_unheard_is_made_again_by_the_sync_that_needs_it() -> None:
    node = IpvsNode()
    node.put(service(), eps("10.1.0.1"))
    node.done()
    node.device.delete()
    node.put(service("other", "10.96.0.2"), eps("10.1.0.2", service="other"))
    node.done()
    assert node.device.held == {"10.96.0.1", "10.96.0.2"}
    assert node.state() == node.fresh()
