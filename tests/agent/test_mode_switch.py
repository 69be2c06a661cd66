"""The run loop and another proxy mode: the plan, the order of things, what cannot be, and the way back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping

import msgspec
import pytest
from structlog.testing import capture_logs

from kproxy.addresses import Family
from kproxy.agent import iptables_mode, ipvs_mode
from kproxy.agent.agent import Agent
from kproxy.agent.config import ProxyConfig
from kproxy.agent.departure import Departure
from kproxy.agent.events import Notice, Reason
from kproxy.agent.flows import FlowCleaner
from kproxy.agent.health import HealthState
from kproxy.agent.inbox import Inbox
from kproxy.agent.iptables_mode import IptablesMode
from kproxy.agent.ipvs_mode import IpvsMode
from kproxy.agent.metric_series import MODE_SWITCHES
from kproxy.agent.metrics import Metrics
from kproxy.agent.mode import Mode, ModeUnavailable
from kproxy.agent.mode_switch import is_switch, mode_name
from kproxy.agent.node import FamilyFacts
from kproxy.agent.reporter import Reporter
from kproxy.agent.service_health import ServiceHealth
from kproxy.backends.base import Drift, Measurement, SyncReport
from kproxy.backends.iptables.canonical import parse_save
from kproxy.backends.ipvs.keeper import KernelHandles
from kproxy.kernel import nfacct, sysctl
from kproxy.kernel.links import AddressNews
from kproxy.kernel.xtables.types import Variant
from kproxy.plan.flows import Stale
from kproxy.plan.model import ServicePlan
from kproxy.state.decode import Kind
from kproxy.testing.fake_ipvs import FakeDevice, FakeIpset, FakeIpvs, Faults
from kproxy.testing.fake_xtables import FakeXtables
from tests.builders import as_service, as_slice, endpoint, endpoint_slice, port, service

CONFIG = ProxyConfig(node_name="node1", min_sync_period=0.0, ipvs_graceful_period=10.0)
IPVS = msgspec.structs.replace(CONFIG, proxy_mode="ipvs")
NFTABLES = msgspec.structs.replace(CONFIG, proxy_mode="nftables")
BOTH = (Family.IPV4, Family.IPV6)


class Kernel:
    """What each mode has in the kernel, by family; `history` is every change in its order.

    A mode in `shares` takes away what others have when it writes, as iptables and IPVS do with each other.
    """

    def __init__(self) -> None:
        self.rules: dict[tuple[str, Family], set[str]] = {}
        self.history: list[str] = []
        self.errors: dict[tuple[str, Family], str] = {}
        self.refused: set[tuple[str, str]] = set()
        self.shares: set[str] = set()

    def write(self, mode: str, family: Family, keys: set[str]) -> None:
        self.history.append(f"{mode} {family.value}: {' '.join(sorted(keys))}")
        self.rules[mode, family] = keys
        if mode in self.shares:
            self.clear(other_than=mode, families=[family])

    def clear(self, other_than: str, families: Iterable[Family] = BOTH) -> None:
        for mode, family in list(self.rules):
            if mode != other_than and family in families:
                self.history.append(f"{mode} {family.value} gone")
                del self.rules[mode, family]

    def of(self, mode: str) -> dict[Family, set[str]]:
        return {family: keys for (name, family), keys in self.rules.items() if name == mode}


class FakeBackend:
    """Writes when something changed or nothing is known, like the real ones."""

    def __init__(self, kernel: Kernel, mode: str, family: Family) -> None:
        self.family = family
        self._kernel = kernel
        self._mode = mode
        self._wanted: set[str] = set()
        self._pending = True

    def update(self, plans: Iterable[ServicePlan]) -> None:
        for plan in plans:
            (self._wanted.add if plan.ports else self._wanted.discard)(plan.key)
            self._pending = True

    def sync(self) -> SyncReport:
        failed = {key: "no such rule" for key in self._wanted if (self._mode, key) in self._kernel.refused}
        error = self._kernel.errors.get((self._mode, self.family))
        if self._pending:
            self._kernel.write(self._mode, self.family, set() if error else self._wanted - failed.keys())
        self._pending = error is not None
        return SyncReport(failed, error)

    def doubt(self) -> None:
        self._pending = True

    def retry(self) -> None:
        pass

    def check(self, *, thorough: bool = False) -> tuple[Drift, ...]:
        return ()

    def tend(self) -> float | None:
        return None


class FakeMode:
    """A mode of FakeBackends."""

    variants: Mapping[Family, Variant] = {}

    def __init__(self, kernel: Kernel, config: ProxyConfig, families: tuple[Family, ...] = BOTH) -> None:
        self.families = families
        self.name = config.proxy_mode
        self._kernel = kernel
        self._backends: dict[Family, FakeBackend] = {}

    def configure(self, family: Family, facts: FamilyFacts) -> FakeBackend:
        return self._backends.setdefault(family, FakeBackend(self._kernel, self.name, family))

    def reconfigure(self, config: ProxyConfig) -> None:
        pass

    def settled(self) -> None:
        self._kernel.clear(other_than=self.name)

    def tend(self) -> float | None:
        return None

    def compare_addresses(self, news: AddressNews) -> Mapping[Family, tuple[Drift, ...]]:
        return {}

    def measure(self, family: Family, *, traffic: bool) -> Measurement:
        return Measurement()


class Flows(FlowCleaner):
    """Keeps what it is asked to look for."""

    def __init__(self) -> None:
        self.asked: list[tuple[Family, Stale]] = []

    def submit(self, family: Family, stale: Stale) -> None:
        if stale.kept or stale.gone:
            self.asked.append((family, stale))


class NoChecks(ServiceHealth):
    """Opens no ports."""

    def update(
        self, plans: Iterable[ServicePlan], addresses: Mapping[Family, tuple[str, ...] | None]
    ) -> None:
        pass


class Rig:
    """A run loop with two dual-stack services, in any modes; `refused` are settings that were not taken."""

    def __init__(self, make: Callable[[ProxyConfig], Mode], config: ProxyConfig = CONFIG) -> None:
        self.inbox = Inbox(frozenset(Kind))
        self.flows = Flows()
        self.refused: list[ProxyConfig] = []
        self.on_refusal: Callable[[], None] = lambda: None
        self.notices: list[Notice] = []
        self.metrics = Metrics()
        self.reporter = Reporter(self.metrics, self.notices.append)
        self.health = HealthState(30.0, lambda: 0.0, lambda: None)
        self.agent = Agent(
            config,
            self.inbox,
            make(config),
            self.health,
            lambda: ("192.168.0.2", "fd00:168::2"),
            self.flows,
            NoChecks(lambda: True),
            self.reporter,
            make,
            self._take_back,
        )
        self.inbox.replace(Kind.NODE, [], [])
        self.inbox.replace(Kind.SERVICE, [], [])
        self.inbox.replace(Kind.ENDPOINT_SLICE, [], [])
        self.add("a", 1)
        self.add("b", 2)

    def add(self, name: str, number: int, *pods: str) -> None:
        """Write a service and its endpoints."""
        ips = [f"10.96.0.{number}", f"fd00:96::{number}"]
        obj = service(name, ips, ports=[port(protocol="UDP")], ipFamilyPolicy="RequireDualStack")
        self.inbox.upsert(Kind.SERVICE, as_service(obj))
        ready = [endpoint(pod) for pod in pods or ("10.1.0.1",)]
        self.inbox.upsert(
            Kind.ENDPOINT_SLICE, as_slice(endpoint_slice(*ready, service=name, ports=[port(protocol="UDP")]))
        )

    def work(self, config: ProxyConfig | None = None) -> list[str]:
        """One sync, with other settings if any; the events that were logged."""
        if config is not None:
            self.agent.reconfigure(msgspec.structs.replace(config))
        with capture_logs() as logs:
            self.agent.run_once(threading.Event())
        self.logs = logs
        return [line["event"] for line in logs]

    def said(self, event: str) -> dict[str, object]:
        """The only line of an event in the last work."""
        (line,) = [line for line in self.logs if line["event"] == event]
        return dict(line)

    def switches(self) -> dict[str, object]:
        """How many switches came to which end, as /metrics tells it."""
        return {each.labels[0]: each.value for each in self.metrics.samples() if each.series is MODE_SWITCHES}

    def _take_back(self, wanted: ProxyConfig, kept: ProxyConfig, reason: str) -> None:
        assert kept is self.agent.config
        assert reason
        self.refused.append(wanted)
        self.on_refusal()


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
    assert rig.refused == []


def test_the_new_mode_takes_the_changes_from_then_on(rig: Rig, kernel: Kernel) -> None:
    rig.work(NFTABLES)
    rig.inbox.delete(Kind.SERVICE, "ns1/a")
    rig.add("c", 3)
    rig.work()
    assert kernel.rules == {("nftables", family): {"ns1/b", "ns1/c"} for family in BOTH}
    assert {status.services for status in rig.reporter.family_status().values()} == {2}
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
    assert rig.inbox.pending_since is None


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
    assert [config.proxy_mode for config in rig.refused] == ["ipvs"]
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
    assert [config.proxy_mode for config in rig.refused] == ["ipvs"]


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
    status = rig.reporter.family_status()[Family.IPV4]
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
    for module in (iptables_mode, ipvs_mode):
        monkeypatch.setattr(module, "remove_tables", lambda: True)
    now = 0.0
    faults = Faults()
    handles = KernelHandles(FakeIpvs(faults), FakeIpset(faults), FakeDevice(faults))
    tables = {family: FakeXtables(family, Variant.NFT) for family in BOTH}

    def make(config: ProxyConfig) -> Mode:
        if config.proxy_mode == "ipvs":
            return IpvsMode(config, tables, handles)
        return IptablesMode(config, tables, Departure(handles, 10.0, (), lambda: now))

    def rules() -> list[object]:
        return [parse_save(tables[family].save()) for family in BOTH]

    def break_down() -> None:
        if handles.ipvs.servers(Family.IPV4):
            faults.after = lambda: None
            faults.unavailable = "netlink: connection lost"

    def recover() -> None:
        faults.unavailable = ""

    rig = Rig(make)
    rig.work()
    before = rules()
    faults.after = break_down
    rig.on_refusal = recover
    assert "mode_switch_rolled_back" in rig.work(IPVS)
    assert "connection lost" in str(rig.said("mode_switch_failed")["reason"])
    assert rules() == before
    while (wait := rig.agent.mode.tend()) is not None:
        now += wait
    assert [handles.ipvs.servers(family) for family in BOTH] == [{}, {}]
    assert handles.ipset.headers() == {}
    rig.work(IPVS)
    assert handles.ipvs.servers(Family.IPV4)
    assert rules() != before
