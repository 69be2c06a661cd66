"""The run loop and another proxy mode: the plan, the order of things, what cannot be, and the way back."""

from __future__ import annotations

import msgspec
import pytest

from kproxy.addresses import Family
from kproxy.agent.mode_switch import is_switch
from kproxy.backends.iptables.dump import parse_save
from kproxy.backends.ipvs.handles import KernelHandles
from kproxy.config.model import ProxyConfig, mode_name
from kproxy.kernel import nfacct, sysctl
from kproxy.kernel.links import AddressNews
from kproxy.kernel.xtables.types import Variant
from kproxy.modes.base import Mode, ModeUnavailable
from kproxy.modes.iptables.mode import IptablesMode
from kproxy.modes.ipvs.mode import IpvsMode
from kproxy.modes.ipvs.teardown import IpvsTeardown
from kproxy.node.facts import FamilyFacts
from kproxy.state.kinds import Kind
from kproxy.state.wire import Node, NodeMeta, ServiceCIDR, ServiceCIDRMeta, ServiceCIDRSpec
from kproxy.telemetry.events import Notice, Reason
from tests.agent.switch_rig import BOTH, CONFIG, FakeBackend, FakeMode, Kernel, Rig, modes_of
from tests.support.fake_ipvs import FakeDevice, FakeIpset, FakeIpvs, Faults
from tests.support.fake_xtables import FakeXtables

IPVS = msgspec.structs.replace(CONFIG, proxy_mode="ipvs")
NFTABLES = msgspec.structs.replace(CONFIG, proxy_mode="nftables")


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def rig(kernel: Kernel) -> Rig:
    made = Rig(lambda config: FakeMode(kernel, config))
    made.work()
    kernel.history.clear()
    made.flows.asked.clear()
    return made


def test_a_node_that_the_api_does_not_know_is_logged_once_each_time(kernel: Kernel) -> None:
    first = Rig(lambda config: FakeMode(kernel, config))
    assert first.work().count("node_missing") == 1
    assert first.said("node_missing")["node"] == "node1"
    first.agent.addresses_changed(AddressNews(elsewhere=True))
    first.add("c", 3)
    assert "node_missing" not in first.work()
    first.store.upsert(Kind.NODE, Node(metadata=NodeMeta(name="node1")))
    first.add("c", 4)
    assert "node_missing" not in first.work()
    first.store.delete(Kind.NODE, "node1")
    first.add("c", 5)
    assert first.work().count("node_missing") == 1


def test_new_rules_stand_before_the_old_ones_go_and_the_plan_comes_first(rig: Rig, kernel: Kernel) -> None:
    events = rig.work(NFTABLES)
    assert events[0] == "mode_switch_planned"
    assert events[-1] == "mode_switched"
    plan = rig.said("mode_switch_planned")
    assert (plan["from"], plan["to"], plan["services"]) == ("iptables", "nftables", 2)
    assert plan["first"] == "tables ip kproxy and ip6 kproxy with every service"
    assert plan["afterwards"] == "the iptables rules that the new mode does not use"
    assert kernel.history == [
        "nftables IPv4: ns1/a ns1/b",
        "nftables IPv6: ns1/a ns1/b",
        "iptables IPv4 gone",
        "iptables IPv6 gone",
    ]
    assert rig.agent.config.proxy_mode == "nftables"
    assert rig.refusal is None


def test_the_new_mode_takes_the_changes_from_then_on(rig: Rig, kernel: Kernel) -> None:
    rig.work(NFTABLES)
    rig.store.delete(Kind.SERVICE, "ns1/a")
    rig.add("c", 3)
    rig.work()
    assert kernel.rules == {("nftables", family): {"ns1/b", "ns1/c"} for family in BOTH}
    assert {status.services for status in rig.observer.family_status().values()} == {2}
    rig.work(CONFIG)
    assert kernel.rules == {("iptables", family): {"ns1/b", "ns1/c"} for family in BOTH}


def test_a_change_that_comes_with_the_switch_is_not_lost_and_its_flows_are_forgotten(
    rig: Rig, kernel: Kernel
) -> None:
    rig.add("a", 1, "10.1.0.2")
    rig.add("c", 3)
    rig.work(NFTABLES)
    assert kernel.of("nftables")[Family.IPV4] == {"ns1/a", "ns1/b", "ns1/c"}
    assert [family for family, _ in rig.flows.asked if family is Family.IPV4]
    assert rig.store.pending_since is None


def test_a_switch_alone_forgets_no_flow(rig: Rig) -> None:
    rig.work(NFTABLES)
    rig.work(CONFIG)
    assert rig.flows.asked == []


def test_a_mode_that_is_unavailable_leaves_everything_as_it_is(kernel: Kernel) -> None:
    def make(config: ProxyConfig) -> Mode:
        if config.proxy_mode == "ipvs":
            raise ModeUnavailable("--proxy-mode ipvs: the kernel has no IPVS")
        return FakeMode(kernel, config)

    rig = Rig(make)
    rig.work()
    kernel.history.clear()
    mode = rig.agent.mode
    assert rig.work(IPVS) == ["mode_switch_planned", "mode_unavailable"]
    told = rig.said("mode_unavailable")
    assert told["reason"] == "--proxy-mode ipvs: the kernel has no IPVS"
    assert told["effect"] == "iptables stays"
    assert rig.refusal == (1, "iptables", "--proxy-mode ipvs: the kernel has no IPVS")
    note = "mode ipvs: --proxy-mode ipvs: the kernel has no IPVS; iptables stays"
    assert rig.notices == [Notice(Reason.MODE, "", note)]
    assert rig.switches() == {"done": 0, "failed": 1}
    assert kernel.history == []
    assert rig.agent.mode is mode
    rig.add("c", 3)
    rig.work()
    assert kernel.of("iptables")[Family.IPV6] == {"ns1/a", "ns1/b", "ns1/c"}


def test_a_mode_that_serves_a_family_less_is_not_taken(kernel: Kernel) -> None:
    def make(config: ProxyConfig) -> Mode:
        return FakeMode(kernel, config, BOTH if config.proxy_mode == "iptables" else (Family.IPV4,))

    rig = Rig(make)
    rig.work()
    rig.work(NFTABLES)
    assert rig.said("mode_unavailable")["reason"] == "it cannot serve IPv6 here"
    assert kernel.of("nftables") == {}


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("family", BOTH)
def test_a_first_sync_that_fails_is_rolled_back(
    rig: Rig, kernel: Kernel, family: Family, *, shares: bool
) -> None:
    if shares:
        kernel.shares = {"iptables", "ipvs"}
    before = dict(kernel.rules)
    mode = rig.agent.mode
    kernel.errors["ipvs", family] = "the kernel is out of memory"
    events = rig.work(IPVS)
    assert [each for each in events if each.startswith("mode_")] == [
        "mode_switch_planned",
        "mode_switch_failed",
        "mode_switch_rolled_back",
    ]
    told = rig.said("mode_switch_failed")
    assert told["reason"] == f"{family.value}: the kernel is out of memory"
    assert told["effect"] == "iptables stays"
    assert kernel.rules == before
    assert rig.agent.mode is mode
    assert rig.agent.config.proxy_mode == "iptables"
    assert rig.health.proxy_healthy()
    assert rig.refusal == (1, "iptables", f"{family.value}: the kernel is out of memory")


def test_after_a_rollback_it_is_tried_again_when_asked_and_not_before(rig: Rig, kernel: Kernel) -> None:
    kernel.errors["nftables", Family.IPV6] = "no"
    rig.work(NFTABLES)
    rig.add("c", 3)
    assert "mode_switch_planned" not in rig.work()
    assert kernel.of("iptables")[Family.IPV6] == {"ns1/a", "ns1/b", "ns1/c"}
    kernel.errors.clear()
    assert rig.work(NFTABLES)[-1] == "mode_switched"
    assert kernel.rules == {("nftables", family): {"ns1/a", "ns1/b", "ns1/c"} for family in BOTH}


def test_one_refused_service_does_not_stop_a_switch_but_all_of_them_do(rig: Rig, kernel: Kernel) -> None:
    kernel.refused = {("ipvs", "ns1/a")}
    assert rig.work(IPVS)[-1] == "mode_switched"
    assert kernel.rules == {("ipvs", family): {"ns1/b"} for family in BOTH}
    status = rig.observer.family_status()[Family.IPV4]
    assert [trouble.service for trouble in status.quarantined] == ["ns1/a"]
    kernel.refused = {("nftables", "ns1/a"), ("nftables", "ns1/b")}
    rig.work(NFTABLES)
    assert "IPv4: every service was refused, the first ns1/a: no such rule" in str(
        rig.said("mode_switch_failed")["reason"]
    )
    assert kernel.rules == {("ipvs", family): {"ns1/a", "ns1/b"} for family in BOTH}


def test_another_mode_before_the_first_sync(kernel: Kernel) -> None:
    rig = Rig(lambda config: FakeMode(kernel, config))
    assert rig.work(NFTABLES)[-1] == "mode_switched"
    assert kernel.rules == {("nftables", family): {"ns1/a", "ns1/b"} for family in BOTH}
    again = Rig(lambda config: FakeMode(kernel, config))
    kernel.errors["nftables", Family.IPV4] = "no"
    again.work(NFTABLES)
    assert kernel.rules == {("iptables", family): {"ns1/a", "ns1/b"} for family in BOTH}


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        ({}, False),
        ({"masquerade_all": True}, False),
        ({"proxy_mode": "ipvs"}, True),
        ({"iptables_variant": Variant.LEGACY}, True),
        ({"proxy_mode": "nftables", "iptables_variant": Variant.LEGACY}, True),
    ],
)
def test_what_counts_as_another_mode(new: dict[str, object], expected: bool) -> None:
    assert is_switch(CONFIG, msgspec.structs.replace(CONFIG, **new)) is expected


def test_the_variant_matters_where_rules_are_written_in_it() -> None:
    legacy = msgspec.structs.replace(NFTABLES, iptables_variant=Variant.LEGACY)
    assert not is_switch(NFTABLES, legacy)
    assert mode_name(legacy) == "nftables"
    assert mode_name(msgspec.structs.replace(IPVS, iptables_variant=Variant.LEGACY)) == "ipvs/legacy"


def test_a_rollback_restores_iptables_rules_and_lets_virtual_servers_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The real modes over kernels in memory: IPVS breaks down once its rules and a server are there."""
    monkeypatch.setattr(sysctl, "ensure", lambda name, value: False)
    monkeypatch.setattr(nfacct, "ensure", lambda name: False)
    now = 0.0
    faults = Faults()
    handles = KernelHandles(FakeIpvs(faults), FakeIpset(faults), FakeDevice(faults))
    tables = {family: FakeXtables(family, Variant.NFT) for family in BOTH}

    def make(config: ProxyConfig) -> Mode:
        if config.proxy_mode == "ipvs":
            return IpvsMode(config, tables, handles)
        return IptablesMode(config, tables)

    teardown = IpvsTeardown(handles, 10.0, (), lambda: now)

    def rules() -> list[object]:
        return [parse_save(tables[family].save()) for family in BOTH]

    def break_down() -> None:
        if handles.ipvs.servers(Family.IPV4):
            faults.after = lambda: None
            faults.unavailable = "netlink: connection lost"

    def recover() -> None:
        faults.unavailable = ""

    rig = Rig(make, modes=modes_of(make, {"ipvs": lambda: teardown}))
    rig.work()
    before = rules()
    faults.after = break_down
    monkeypatch.setattr(rig.agent.reported, "report", lambda _: recover())
    assert "mode_switch_rolled_back" in rig.work(IPVS)
    assert "connection lost" in str(rig.said("mode_switch_failed")["reason"])
    assert rules() == before
    while (wait := teardown.run_timers()) is not None:
        now += wait
    assert [handles.ipvs.servers(family) for family in BOTH] == [{}, {}]
    assert handles.ipset.headers() == {}
    rig.work(IPVS)
    assert handles.ipvs.servers(Family.IPV4)
    assert rules() != before


@pytest.mark.parametrize(
    ("config", "told"),
    [(NFTABLES, [(Family.IPV4, ("10.96.0.0/16",)), (Family.IPV6, ("fd00:96::/112",))]), (CONFIG, [])],
    ids=["nftables", "iptables"],
)
def test_the_ranges_of_service_cidrs_reach_the_nftables_mode_alone_and_plan_no_service(
    kernel: Kernel, config: ProxyConfig, told: list[tuple[Family, tuple[str, ...]]]
) -> None:
    seen: list[tuple[Family, tuple[str, ...]]] = []

    class Listening(FakeMode):
        def configure(self, family: Family, facts: FamilyFacts) -> FakeBackend:
            seen.append((family, facts.service_ranges))
            return super().configure(family, facts)

    rig = Rig(lambda wanted: Listening(kernel, wanted), config)
    rig.work()
    assert {ranges for _, ranges in seen} == {()}
    seen.clear()
    kernel.history.clear()
    obj = ServiceCIDR(ServiceCIDRMeta("a"), ServiceCIDRSpec(("10.96.0.0/16", "fd00:96::/112")))
    rig.store.upsert(Kind.SERVICE_CIDR, obj)
    assert "node_changed" not in rig.work()
    assert seen == told
    assert kernel.history == []
    assert rig.store.pending_since is None
    seen.clear()
    rig.work(NFTABLES)
    rig.store.delete(Kind.SERVICE_CIDR, "a")
    rig.work()
    assert seen[-2:] == [(family, ()) for family in BOTH]
