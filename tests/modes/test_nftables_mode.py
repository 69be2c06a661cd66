"""The nftables mode at start: what it needs, what it serves, and where node ports answer."""

from __future__ import annotations

import msgspec
import pytest
import structlog.testing

from kproxy.addresses import Family
from kproxy.backends.core.base import MeasureError, Measurement, PortTraffic
from kproxy.backends.core.foreign_writes import ForeignWrites
from kproxy.config.model import ProxyConfig
from kproxy.kernel import nft_tables
from kproxy.kernel.nft.types import NftError, NftFailure
from kproxy.kernel.xtables.types import Variant
from kproxy.modes.base import ModeUnavailable, NoFamilyUsable
from kproxy.modes.kube_proxy_tables import warn_of_kube_proxy_tables
from kproxy.modes.nftables.mode import NftablesMode, nftables_config
from kproxy.node.facts import node_facts
from kproxy.state.wire import Node
from tests import builders
from tests.builders import plan_of
from tests.support.fake_nft import FakeNft

CONFIG = ProxyConfig(node_name="node1", proxy_mode="nftables")
ADDRESSES = ("127.0.0.1", "192.168.0.2", "192.168.0.3", "::1", "fe80::1", "fd00:168::2")
NODE = msgspec.convert(
    {
        "metadata": {"name": "node1"},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.2"}]},
    },
    Node,
)


def make(fake: FakeNft) -> NftablesMode:
    return NftablesMode(CONFIG, fake)


def test_both_families_are_tried_and_nothing_is_left_of_the_trial() -> None:
    fake = FakeNft()
    assert make(fake).families == (Family.IPV4, Family.IPV6)
    assert len(fake.scripts) == 2
    assert fake.tables == {}


def test_a_family_that_the_kernel_refuses_is_left_out() -> None:
    fake = FakeNft()
    fake.refuse = lambda line: " ip6 " in line
    assert make(fake).families == (Family.IPV4,)


def test_a_kernel_that_refuses_both_is_an_error_with_the_reasons() -> None:
    fake = FakeNft()
    fake.refuse = lambda line: "flags interval" in line
    with pytest.raises(NoFamilyUsable) as caught:
        make(fake)
    assert set(caught.value.reasons) == set(Family)
    assert "--proxy-mode nftables: injected refusal: add set ip kproxy-probe ranges-" in str(caught.value)


def test_a_trial_without_an_end_leaves_no_family_out() -> None:
    fake = FakeNft()
    fake.lose = "after"
    with pytest.raises(ModeUnavailable, match="lost after") as caught:
        make(fake)
    assert not isinstance(caught.value, NoFamilyUsable)


class Busy(FakeNft):
    """Reads no counters once it is `busy`."""

    busy = False

    def counts(self, family: Family, table: str, name: str) -> dict[str, tuple[int, int]] | None:
        if self.busy:
            raise NftError(NftFailure.INTERRUPTED, "nft took too long")
        return super().counts(family, table, name)


def test_what_a_family_holds_is_measured_and_a_refusal_is_no_measurement() -> None:
    fake = Busy()
    mode = make(fake)
    facts = node_facts(CONFIG, NODE, ADDRESSES)
    assert facts is not None
    assert mode.measure(Family.IPV4, traffic=True) == Measurement()
    backend = mode.configure(Family.IPV4, facts.families[Family.IPV4])
    backend.update([plan_of(builders.service(), builders.endpoint_slice("10.1.0.1"))])
    backend.sync()
    chains = len(fake.table(Family.IPV4).chains)
    fake.table(Family.IPV4).containers["services"].counts["10.96.0.1 . 6 . 80"] = 3, 180
    objects = {"elements": 4, "chains": chains}
    assert mode.measure(Family.IPV4, traffic=False) == Measurement(objects=objects)
    counted = PortTraffic("ns1/svc1:p80", "TCP", 3, (3, 180))
    assert mode.measure(Family.IPV4, traffic=True) == Measurement((counted,), objects=objects)
    fake.busy = True
    with pytest.raises(MeasureError, match="too long"):
        mode.measure(Family.IPV4, traffic=True)


@pytest.mark.parametrize(
    ("tables", "warned"),
    [
        ({}, []),
        ({Family.IPV4: {"kproxy", "nat"}, Family.IPV6: {"kproxy"}}, []),
        ({Family.IPV6: {"kube-proxy"}, Family.IPV4: {"kube-proxy"}}, ["ip kube-proxy", "ip6 kube-proxy"]),
    ],
    ids=["none", "others", "both"],
)
def test_tables_of_kube_proxy_are_named(
    monkeypatch: pytest.MonkeyPatch, tables: dict[Family, set[str]], warned: list[str]
) -> None:
    monkeypatch.setattr(nft_tables, "tables", lambda family: tables.get(family, set()))
    with structlog.testing.capture_logs() as logs:
        warn_of_kube_proxy_tables()
    assert [each["tables"] for each in logs] == ([warned] if warned else [])


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ((), {Family.IPV4: ("192.168.0.2",), Family.IPV6: ()}),
        (("primary",), {Family.IPV4: ("192.168.0.2",), Family.IPV6: ()}),
        (("0.0.0.0/0",), {Family.IPV4: ("192.168.0.2", "192.168.0.3"), Family.IPV6: ("fd00:168::2",)}),
        (("192.168.0.3/32", "::/0"), {Family.IPV4: ("192.168.0.3",), Family.IPV6: ("fd00:168::2",)}),
    ],
    ids=["default", "primary", "all", "cidr"],
)
def test_node_ports_answer_at_these_addresses(
    flag: tuple[str, ...], expected: dict[Family, tuple[str, ...]]
) -> None:
    config = msgspec.structs.replace(CONFIG, node_port_addresses=flag)
    facts = node_facts(config, NODE, ADDRESSES)
    assert facts is not None
    found = {f: nftables_config(config, f, facts.families[f]).node_addresses for f in Family}
    assert found == expected


def test_settings_reach_the_family_they_are_of() -> None:
    config = msgspec.structs.replace(
        CONFIG,
        service_cidrs=("10.96.0.0/16", "fd00:96::/112"),
        cluster_cidrs=("10.1.0.0/16",),
        nftables_reject_unallocated=False,
        masquerade_bit=3,
    )
    facts = node_facts(config, NODE, ADDRESSES)
    assert facts is not None
    four, six = (nftables_config(config, family, facts.families[family]) for family in Family)
    assert (four.service_cidrs, six.service_cidrs) == (("10.96.0.0/16",), ("fd00:96::/112",))
    assert four.local_traffic is not None
    assert four.local_traffic.cidr == "10.1.0.0/16"
    assert six.local_traffic is None
    assert (four.mark, four.reject_unallocated) == ("0x8", False)


def of_both(config: ProxyConfig, *ranges: str) -> list[tuple[str, ...]]:
    facts = node_facts(config, NODE, ADDRESSES, ranges)
    assert facts is not None
    return [facts.families[family].service_ranges for family in Family]


@pytest.mark.parametrize(
    ("setting", "ranges", "expected"),
    [
        ((), (), [(), ()]),
        ((), ("10.96.0.0/16", "fd00:96::/112"), [("10.96.0.0/16",), ("fd00:96::/112",)]),
        ((), ("10.97.0.0/24", "9.0.0.0/8", "10.97.0.0/16"), [("9.0.0.0/8", "10.97.0.0/16"), ()]),
        (("10.1.0.0/16",), ("10.96.0.0/16", "fd00:96::/112"), [("10.1.0.0/16",), ()]),
    ],
    ids=["none", "both families", "sorted, none within another", "the setting wins"],
)
def test_the_ranges_of_service_cidrs_reach_the_family_they_are_of(
    setting: tuple[str, ...], ranges: tuple[str, ...], expected: list[tuple[str, ...]]
) -> None:
    config = msgspec.structs.replace(CONFIG, service_cidrs=setting)
    assert of_both(config, *ranges) == expected
    assert of_both(msgspec.structs.replace(config, proxy_mode="ipvs"), *ranges) == [(), ()]


def test_what_others_in_this_process_write_is_not_foreign_and_is_not_compared() -> None:
    fake, watches = FakeNft(), dict[object, ForeignWrites]()
    mode = make(fake)
    mode.share_writes(watches)
    facts = node_facts(CONFIG, NODE, ADDRESSES)
    assert facts is not None
    backend = mode.configure(Family.IPV4, facts.families[Family.IPV4])
    backend.sync()
    backend.check()
    before = fake.readings
    with watches[Variant.NFT].writing():
        fake.commits += 1
    assert backend.check() == ()
    assert fake.readings == before
    fake.commits += 1
    assert backend.check() == ()
    assert fake.readings == before + 1
