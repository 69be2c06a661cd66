"""Flags of bridges that hold pods, in a real kernel: set, recorded, set again, and restored."""

from __future__ import annotations

import subprocess

import pytest
from structlog.testing import capture_logs

from kproxy.addresses import Family
from kproxy.kernel import bridges, nft_tables
from kproxy.kernel.nft.commands import AddChain, AddTable, Transaction
from kproxy.kernel.nft.netlink import NetlinkNft
from kproxy.node.pod_bridges import MISSING, TABLE, BridgeReport, PodBridges, SetFlag, restore
from tests.kernel.namespace import fresh_network

PODS = ("10.244.1.10", "fd00:10:244:1::10")
BOTH = frozenset(Family)
NONE: frozenset[Family] = frozenset()


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def make_bridge(name: str, *addresses: str) -> None:
    ip("link", "add", name, "type", "bridge")
    for address in addresses:
        ip("addr", "add", address, "dev", name, *(["nodad"] if ":" in address else []))
    ip("link", "set", name, "up")


def pod_bridge() -> None:
    make_bridge("mynet0", "10.244.1.1/24", "fd00:10:244:1::1/64")


def flags() -> dict[str, frozenset[Family] | None]:
    return {bridge.name: bridge.filtered for bridge in bridges.read().values()}


def set_flags(name: str, *, on: bool) -> None:
    value = str(int(on))
    ip("link", "set", name, "type", "bridge", "nf_call_iptables", value, "nf_call_ip6tables", value)


def tables() -> set[Family]:
    return {family for family in Family if TABLE in nft_tables.tables(family)}


@fresh_network
def test_a_bridge_to_which_a_pod_is_routed_is_judged_and_others_stay() -> None:
    pod_bridge()
    make_bridge("other0", "10.9.0.1/24")
    make_bridge("docker0")
    pods = PodBridges(tuple(Family))
    assert pods.ensure([], []) == BridgeReport()
    report = pods.ensure(PODS, [])
    assert report == BridgeReport(("mynet0",), tuple(SetFlag("mynet0", family) for family in Family))
    assert flags() == {"mynet0": BOTH, "other0": NONE, "docker0": NONE}
    assert pods.ensure(PODS, []) == BridgeReport(("mynet0",))
    assert pods.ensure([], []) == BridgeReport()
    assert flags()["mynet0"] == BOTH  # the next pod may come before it is noticed


@fresh_network
def test_a_bridge_without_an_address_is_known_by_results_of_cni() -> None:
    for name in ("named0", "ported0", "other0"):
        make_bridge(name)
    ip("link", "add", "veth1", "type", "veth", "peer", "name", "far")
    ip("link", "set", "veth1", "master", "ported0")
    report = PodBridges([Family.IPV4]).ensure(["10.244.1.10"], ["named0", "veth1", "gone", "far"])
    assert report.bridges == ("named0", "ported0")
    only = frozenset({Family.IPV4})
    assert flags() == {"named0": only, "ported0": only, "other0": NONE}


@fresh_network
def test_a_bridge_that_is_made_again_and_a_flag_that_is_cleared_are_set_again() -> None:
    pod_bridge()
    pods = PodBridges(tuple(Family))
    pods.ensure(PODS, [])
    ip("link", "del", "mynet0")
    assert pods.ensure(PODS, []) == BridgeReport()
    pod_bridge()
    assert pods.ensure(PODS, []).flags == tuple(SetFlag("mynet0", family) for family in Family)
    ip("link", "set", "mynet0", "type", "bridge", "nf_call_ip6tables", "0")
    assert pods.ensure(PODS, []).flags == (SetFlag("mynet0", Family.IPV6, again=True),)
    assert flags() == {"mynet0": BOTH}


@fresh_network
def test_flags_that_kproxy_set_are_restored_by_any_later_process() -> None:
    pod_bridge()
    PodBridges(tuple(Family)).ensure(PODS, [])
    PodBridges(tuple(Family)).ensure(PODS, [])  # after a restart
    assert tables() == set(Family)
    with capture_logs() as logs:
        assert restore()
    assert [(entry["event"], entry["bridge"], entry["flag"]) for entry in logs] == [
        ("bridge_restored", "mynet0", "nf_call_iptables"),
        ("bridge_restored", "mynet0", "nf_call_ip6tables"),
    ]
    assert (flags(), tables()) == ({"mynet0": NONE}, set())
    assert restore()


@fresh_network
def test_flags_that_were_restored_are_no_drift_when_policies_are_turned_on_again() -> None:
    pod_bridge()
    pods = PodBridges(tuple(Family))
    pods.ensure(PODS, [])
    assert restore()
    pods.forget()
    assert pods.ensure(PODS, []).flags == tuple(SetFlag("mynet0", family) for family in Family)


@fresh_network
def test_flags_that_others_set_are_not_restored() -> None:
    pod_bridge()
    set_flags("mynet0", on=True)
    pods = PodBridges(tuple(Family))
    assert pods.ensure(PODS, []).flags == ()
    assert restore()
    assert flags() == {"mynet0": BOTH}
    ip("link", "del", "mynet0")
    pod_bridge()
    PodBridges(tuple(Family)).ensure(PODS, [])
    ip("link", "del", "mynet0")
    pod_bridge()
    set_flags("mynet0", on=True)  # another bridge than the one of the record
    assert restore()
    assert flags() == {"mynet0": BOTH}


@fresh_network
def test_a_process_killed_between_the_record_and_the_flag_does_no_harm() -> None:
    pod_bridge()
    (index,) = bridges.read()
    chain = AddChain(f"bridge-{index}")
    NetlinkNft().commit(Transaction(Family.IPV4, TABLE, (AddTable(), chain)))
    assert restore()
    assert (flags(), tables()) == ({"mynet0": NONE}, set())
    NetlinkNft().commit(Transaction(Family.IPV4, TABLE, (AddTable(), chain)))
    assert len(PodBridges(tuple(Family)).ensure(PODS, []).flags) == 2
    assert restore()
    assert flags() == {"mynet0": NONE}


@fresh_network
def test_a_kernel_without_br_netfilter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridges, "loaded", lambda: False)
    pods = PodBridges(tuple(Family))
    assert pods.ensure(PODS, []).problems == ()  # no bridge, nothing to judge
    pod_bridge()
    assert pods.ensure(PODS, []).problems == (MISSING,)
    assert flags() == {"mynet0": BOTH}  # they count as soon as the module is loaded
