"""The IPVS mode before its first sync: what it refuses, what it sets, what it makes of the node."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from kproxy.addresses import Family
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.ipvs.handles import KernelHandles
from kproxy.config.model import ProxyConfig
from kproxy.kernel import sysctl
from kproxy.kernel.ipvs.types import IpvsUnavailable, Timeouts
from kproxy.kernel.xtables.types import Variant
from kproxy.modes.base import ModeUnavailable
from kproxy.modes.ipvs import mode as ipvs
from kproxy.modes.ipvs.mode import IpvsMode, ipvs_config, set_sysctls
from kproxy.node.facts import FamilyFacts, node_facts
from kproxy.plan.schedulers import Scheduler
from tests.support.fake_ipvs import FakeDevice, FakeIpset, FakeIpvs
from tests.support.fake_xtables import FakeXtables

CONFIG = ProxyConfig(node_name="node1", proxy_mode="ipvs")


class Sysctls:
    """/proc/sys as a dict; `fixed` cannot be written."""

    def __init__(self, *fixed: str) -> None:
        self.values: dict[str, int] = {}
        self._fixed = fixed

    def ensure(self, name: str, value: int) -> bool:
        if name in self._fixed:
            raise sysctl.SysctlError(name, "is 0, cannot be set to 1: Read-only file system")
        self.values[name] = value
        return True


@pytest.fixture
def sysctls(monkeypatch: pytest.MonkeyPatch) -> Sysctls:
    fake = Sysctls()
    monkeypatch.setattr(sysctl, "ensure", fake.ensure)
    return fake


def mode(ipvs: FakeIpvs, **settings: Any) -> IpvsMode:
    config = msgspec.structs.replace(CONFIG, **settings)
    tables = {Family.IPV4: FakeXtables(Family.IPV4, Variant.NFT)}
    return IpvsMode(config, tables, KernelHandles(ipvs, FakeIpset(), FakeDevice()))


def test_a_scheduler_that_the_kernel_lacks_ends_with_a_list_of_those_it_has(sysctls: Sysctls) -> None:
    with pytest.raises(ModeUnavailable, match=r"--ipvs-scheduler mh: .* it has rr, sh$"):
        mode(FakeIpvs(schedulers=["rr", "sh"]), ipvs_scheduler="mh")
    assert sysctls.values == {}


def test_a_kernel_without_ipvs_ends_with_the_reason(sysctls: Sysctls) -> None:
    ipvs = FakeIpvs()

    def fail(_: Family) -> Any:
        raise IpvsUnavailable("this kernel has no IPVS (tried: modprobe ip_vs)")

    ipvs.servers = fail  # type: ignore[method-assign,assignment]
    with pytest.raises(ModeUnavailable, match="modprobe ip_vs"):
        mode(ipvs)


def test_timeouts_are_set_where_they_are_given(sysctls: Sysctls) -> None:
    ipvs = FakeIpvs()
    mode(ipvs)
    assert ipvs.timeouts == Timeouts()
    mode(ipvs, ipvs_tcp_timeout=900.0)
    assert ipvs.timeouts == Timeouts(tcp=900)


@pytest.mark.parametrize(
    ("release", "strict", "expected"),
    [
        ("6.1.0-13-amd64", False, {}),
        ("5.4.0", False, {"net/ipv4/vs/conn_reuse_mode": 0}),
        ("5.9.0", False, {}),
        ("4.0.1", False, {}),
        ("6.1.0", True, {"net/ipv4/conf/all/arp_ignore": 1, "net/ipv4/conf/all/arp_announce": 2}),
    ],
)
def test_sysctls_are_those_that_the_mode_depends_on(
    sysctls: Sysctls, release: str, strict: bool, expected: dict[str, int]
) -> None:
    set_sysctls(strict_arp=strict, release=release)
    always = {
        "net/ipv4/vs/conntrack": 1,
        "net/ipv4/vs/expire_nodest_conn": 1,
        "net/ipv4/vs/expire_quiescent_template": 1,
        "net/ipv4/ip_forward": 1,
    }
    assert sysctls.values == always | expected


def test_strict_arp_is_put_back_as_it_was_found_unless_others_changed_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values: dict[str, str] = dict.fromkeys(ipvs.STRICT_ARP, "0")
    monkeypatch.setattr(sysctl, "read", lambda name: values[name])

    def ensure(name: str, value: int | str) -> bool:
        values[name] = str(value)
        return True

    monkeypatch.setattr(sysctl, "ensure", ensure)
    made, strict = mode(FakeIpvs(), ipvs_strict_arp=True), {"ipvs_strict_arp": True}
    ignore, announce = ipvs.STRICT_ARP
    assert (values[ignore], values[announce]) == ("1", "2")
    made.reconfigure(msgspec.structs.replace(CONFIG, **strict))
    values[announce] = "1"
    made.reconfigure(CONFIG)
    assert (values[ignore], values[announce]) == ("0", "1")
    values[ignore] = "1"
    made.reconfigure(CONFIG)
    assert values[ignore] == "1"


def test_a_sysctl_that_cannot_be_set_is_the_end_only_if_nothing_works_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sysctl, "ensure", Sysctls("net/ipv4/ip_forward").ensure)
    set_sysctls(strict_arp=False)
    monkeypatch.setattr(sysctl, "ensure", Sysctls("net/ipv4/vs/conntrack").ensure)
    with pytest.raises(ModeUnavailable, match="vs/conntrack"):
        set_sysctls(strict_arp=False)


def test_node_ports_are_where_the_node_has_addresses() -> None:
    local = ("127.0.0.1", "192.168.0.2", "10.244.1.1")
    facts = FamilyFacts(None, None, localhost_node_ports=True, local_addresses=local)
    config = ipvs_config(CONFIG, IptablesConfig(Family.IPV4), facts)
    assert config.node_addresses == ("192.168.0.2", "10.244.1.1")
    assert config.local_addresses == frozenset(local)
    chosen = msgspec.structs.replace(facts, node_port_addresses=("127.0.0.1", "192.168.0.2"))
    assert ipvs_config(CONFIG, IptablesConfig(Family.IPV4), chosen).node_addresses == ("192.168.0.2",)
    six = msgspec.structs.replace(facts, local_addresses=("::1", "fe80::1", "fd00::2"))
    assert ipvs_config(CONFIG, IptablesConfig(Family.IPV6), six).node_addresses == ("fd00::2",)


def test_only_this_mode_needs_to_know_every_address() -> None:
    addresses = ("192.168.0.2", "fd00::2")
    for name, expected in (("ipvs", ("192.168.0.2",)), ("iptables", ())):
        config = msgspec.structs.replace(CONFIG, proxy_mode=name)
        facts = node_facts(config, None, addresses)
        assert facts is not None
        assert facts.families[Family.IPV4].local_addresses == expected


def test_the_default_scheduler_has_its_flags() -> None:
    facts = FamilyFacts(None, None, localhost_node_ports=True)
    config = ipvs_config(
        msgspec.structs.replace(CONFIG, ipvs_scheduler="mh"), IptablesConfig(Family.IPV4), facts
    )
    assert config.scheduler == Scheduler("mh", hash_port=True)


def test_new_settings_are_taken_while_it_runs(sysctls: Sysctls) -> None:
    ipvs = FakeIpvs()
    running = mode(ipvs)
    facts = FamilyFacts(None, None, localhost_node_ports=True)
    backend = running.configure(Family.IPV4, facts)
    changed = msgspec.structs.replace(
        CONFIG, ipvs_scheduler="sh", ipvs_tcp_timeout=900.0, ipvs_strict_arp=True, masquerade_all=True
    )
    running.reconfigure(changed)
    assert ipvs.timeouts.tcp == 900
    assert sysctls.values["net/ipv4/conf/all/arp_ignore"] == 1
    assert running.configure(Family.IPV4, facts) is backend


def test_a_new_scheduler_that_the_kernel_lacks_is_not_taken(sysctls: Sysctls) -> None:
    running = mode(FakeIpvs(schedulers=["rr", "sh"]))
    with capture_logs() as logs:
        running.reconfigure(msgspec.structs.replace(CONFIG, ipvs_scheduler="mh", masquerade_all=True))
    assert [(line["event"], line["scheduler"]) for line in logs if line["log_level"] == "warning"] == [
        ("scheduler_missing", "mh")
    ]


def test_kernel_parameters_that_others_changed_are_set_again(monkeypatch: pytest.MonkeyPatch) -> None:
    values: dict[str, str] = {}

    def ensure(name: str, value: int | str) -> bool:
        changed, values[name] = values.get(name) != str(value), str(value)
        return changed

    monkeypatch.setattr(sysctl, "read", lambda name: values.get(name, "0"))
    monkeypatch.setattr(sysctl, "ensure", ensure)
    now = 100.0
    tables = {Family.IPV4: FakeXtables(Family.IPV4, Variant.NFT)}
    config = msgspec.structs.replace(CONFIG, ipvs_strict_arp=True)
    running = IpvsMode(
        config, tables, KernelHandles(FakeIpvs(), FakeIpset(), FakeDevice()), clock=lambda: now
    )
    wanted = dict(values)
    assert ipvs.CONNTRACK in wanted
    assert running.run_timers() == config.sync_period
    values |= dict.fromkeys(wanted, "7")
    assert running.run_timers() == config.sync_period
    assert values == dict.fromkeys(wanted, "7")
    now += config.sync_period
    with capture_logs() as logs:
        running.run_timers()
    assert values == wanted
    assert {line["name"] for line in logs if line["event"] == "sysctl_restored"} == wanted.keys()


def test_a_kernel_parameter_that_cannot_be_set_again_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Sysctls()
    monkeypatch.setattr(sysctl, "ensure", fake.ensure)
    now = 100.0
    tables = {Family.IPV4: FakeXtables(Family.IPV4, Variant.NFT)}
    running = IpvsMode(
        CONFIG, tables, KernelHandles(FakeIpvs(), FakeIpset(), FakeDevice()), clock=lambda: now
    )
    monkeypatch.setattr(sysctl, "ensure", Sysctls(ipvs.CONNTRACK).ensure)
    with capture_logs() as logs:
        for _ in range(3):
            now += CONFIG.sync_period
            running.run_timers()
    assert [line["name"] for line in logs if line["event"] == "sysctl_failed"] == [ipvs.CONNTRACK]
