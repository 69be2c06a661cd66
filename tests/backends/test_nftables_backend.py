"""What the nftables backend does when things are refused, lost, contested or changed by others."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kproxy.addresses import Family
from kproxy.backends.core.base import CheckPostponed, LocalTraffic
from kproxy.backends.core.foreign_writes import ForeignWrites
from kproxy.backends.nftables import names
from kproxy.backends.nftables.backend import NftablesBackend
from kproxy.backends.nftables.probe import probe
from kproxy.backends.nftables.script import Script
from kproxy.kernel.nft.commands import AddContainer, DeleteTable, Transaction
from kproxy.kernel.nft.netlink import NetlinkNft
from kproxy.kernel.nft.types import NftError, NftFailure, Reading
from tests.backends.nftables_node import CONFIG, NftablesNode, with_config
from tests.builders import endpoint, endpoint_slice, port, service
from tests.kernel import nft_oracle
from tests.kernel.namespace import fresh_network, without_capabilities
from tests.support.fake_nft import FakeNft, FakeTable


def web(name: str = "a", ip: str = "10.96.0.1", **fields: Any) -> dict[str, Any]:
    return service(name, ip, ports=[port(80, None)], **fields)


def pods(name: str, *ips: str) -> dict[str, Any]:
    endpoints = [endpoint(ip, node="node2") for ip in ips]
    return endpoint_slice(*endpoints, service=name, name=f"{name}-1", ports=[port(8080, None)])


def elements(node: NftablesNode, container: str) -> dict[str, str]:
    return node.fake.table(node.config.family).containers[container].elements


def test_a_moved_endpoint_is_one_element() -> None:
    node = NftablesNode()
    node.put(web(), pods("a", "10.1.0.1", "10.1.0.2"))
    node.done()
    node.put(None, pods("a", "10.1.0.1", "10.1.0.3"))
    assert node.done().changes == {"transactions": 1, "elements": 1}
    assert node.fake.scripts[-1].splitlines() == [
        "delete element ip kproxy endpoints-2-19 { 10.96.0.1 . 6 . 80 . 1 }",
        "add element ip kproxy endpoints-2-19 { 10.96.0.1 . 6 . 80 . 1 : 10.1.0.3 . 8080 }",
    ]


def test_a_new_count_brings_its_chains_and_the_old_ones_go() -> None:
    node = NftablesNode()
    node.put(web(), pods("a", "10.1.0.1", "10.1.0.2"))
    node.done()
    node.put(None, pods("a", "10.1.0.1"))
    assert node.done().changes == {
        "transactions": 2,
        "chains": 2,
        "elements": 1,
        "elements_deleted": 1,
        "chains_deleted": 2,
    }
    table = node.fake.table(Family.IPV4)
    assert {"all-1", "cluster-all-1"} <= set(table.chains)
    assert not {"all-2-19", "cluster-all-2-19"} & set(table.chains)
    assert "endpoints-2-19" not in table.containers


def test_a_big_change_is_cut_between_services() -> None:
    node = NftablesNode(piece=10)
    for number in range(1, 9):
        node.put(web(f"s{number}", f"10.96.0.{number}"), pods(f"s{number}", "10.1.0.1", "10.1.0.2"))
    report = node.done()
    groups = [script for script in node.fake.scripts if "add element" in script]
    assert report.changes["transactions"] == len(groups) + 1
    for number in range(1, 9):
        asked = f"10.96.0.{number} . 6 . 80"
        assert sum(asked in script for script in groups) == 1
    assert len(groups) == 3


def test_a_refused_service_is_named_and_the_others_are_written() -> None:
    node = NftablesNode()
    for number in range(1, 9):
        node.put(web(f"s{number}", f"10.96.0.{number}"), pods(f"s{number}", f"10.1.0.{number}"))
    node.fake.refuse = lambda line: "10.1.0.5" in line
    report = node.sync()
    assert report.error is None
    assert list(report.failed) == ["ns1/s5"]
    assert "injected refusal" in report.failed["ns1/s5"]
    assert len(node.served()) == 7
    scripts = len(node.fake.scripts)
    node.put(web("s9", "10.96.0.9"), pods("s9", "10.1.0.9"))
    assert list(node.sync().failed) == ["ns1/s5"]
    assert len(node.fake.scripts) == scripts + 1
    node.fake.refuse = lambda _: False
    node.backend.retry()
    node.done()
    assert node.state() == node.fresh()


def test_a_refused_change_keeps_what_the_service_had() -> None:
    node = NftablesNode()
    node.put(web(), pods("a", "10.1.0.1"))
    node.done()
    node.fake.refuse = lambda line: "10.1.0.2" in line
    node.put(None, pods("a", "10.1.0.2"))
    assert list(node.sync().failed) == ["ns1/a"]
    assert elements(node, "endpoint-0") == {"10.96.0.1 . 6 . 80": "10.1.0.1 . 8080"}


def test_services_that_went_while_it_was_down_go_first() -> None:
    node = NftablesNode()
    node.put(web(), pods("a", "10.1.0.1", "10.1.0.2"))
    node.put(web("b", "10.96.0.2"), pods("b", "10.1.0.3", "10.1.0.4"))
    node.done()
    node.drop("ns1/b")
    node.put(None, pods("a", "10.1.0.1"))
    node.start()
    seen: list[set[str]] = []
    node.fake.after = lambda: seen.append(node.served())
    node.done()
    assert seen[1:] == [{"10.96.0.1 . 6 . 80"}] * (len(seen) - 1)
    assert node.state() == node.fresh()


def test_what_a_refused_change_would_have_removed_goes_with_the_next_one() -> None:
    node = NftablesNode()
    node.put(web(externalIPs=["203.0.113.1"]), pods("a", "10.1.0.1"))
    node.done()
    node.fake.refuse = lambda line: "10.1.0.2" in line
    node.put(web(), pods("a", "10.1.0.2"))
    assert list(node.sync().failed) == ["ns1/a"]
    assert "203.0.113.1 . 6 . 80" in elements(node, "services")
    node.put(None, pods("a", "10.1.0.3"))
    node.done()
    assert node.state() == node.fresh()


def test_after_a_loss_the_table_is_read_again() -> None:
    node = NftablesNode()
    node.put(web(), pods("a", "10.1.0.1"))
    node.done()
    node.put(None, pods("a", "10.1.0.2"))
    node.fake.lose = "after"
    report = node.sync()
    assert report.error is not None
    assert "interrupted" in report.error
    read = node.fake.readings
    node.done()
    assert node.fake.readings == read + 1
    assert node.state() == node.fresh()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_damage_that_follows_a_failed_sync_is_named(moment: str) -> None:
    """What the failed sync may have written itself is not."""
    node = NftablesNode()
    node.put(web(), pods("a", "10.1.0.1"))
    node.done()
    node.put(None, pods("a", "10.1.0.2", "10.1.0.3"))
    node.fake.lose = moment
    assert node.sync().error is not None
    elements(node, "services")["10.96.6.6 . 6 . 80"] = "goto cluster-all-1"
    node.fake.lose = moment
    drifts = [*node.sync().drifts, *node.sync().drifts]
    assert list(map(str, drifts)) == ["element { 10.96.6.6 . 6 . 80 } of services is unexpected"]
    assert node.state() == node.fresh()


@pytest.mark.parametrize("external_first", [True, False])
def test_a_node_port_gives_way_to_an_external_address(external_first: bool) -> None:
    node = NftablesNode(piece=1)
    nodes = service("a", "10.96.0.1", ports=[port(80, None, nodePort=30001)], type="NodePort")
    outside = service("b", "10.96.0.2", ports=[port(30001, None)], externalIPs=["192.168.0.2"])
    asked = "192.168.0.2 . 6 . 30001"
    for document in (outside, nodes) if external_first else (nodes, outside):
        name = document["metadata"]["name"]
        node.put(document, pods(name, *(["10.1.0.1", "10.1.0.2"] if name == "a" else ["10.1.0.9"])))
        node.done()
    assert elements(node, "services")[asked] == "goto external-all-1"
    assert elements(node, "endpoint-0")[asked] == "10.1.0.9 . 8080"
    node.drop("ns1/b")
    node.done()
    assert elements(node, "services")[asked] == "goto external-all-2-19"
    assert elements(node, "endpoint-0")[asked] == "10.1.0.1 . 8080"
    assert node.state() == node.fresh()


def test_what_passes_to_a_service_that_is_not_written_yet_finds_its_chains() -> None:
    node = NftablesNode(piece=1)
    outside = service("a", "10.96.0.2", ports=[port(30001, None)], externalIPs=["192.168.0.2"])
    node.put(outside, pods("a", "10.1.0.9"))
    node.done()
    node.drop("ns1/a")
    nodes = service("b", "10.96.0.1", ports=[port(80, None, nodePort=30001)], type="NodePort")
    node.put(nodes, pods("b", "10.1.0.1", "10.1.0.2"))
    node.done()
    assert node.state() == node.fresh()


def _delete_element(table: FakeTable) -> None:
    del table.containers["endpoint-0"].elements["10.96.0.1 . 6 . 80"]


def _change_element(table: FakeTable) -> None:
    table.containers["endpoint-0"].elements["10.96.0.1 . 6 . 80"] = "6.6.6.6 . 66"


def _add_element(table: FakeTable) -> None:
    table.containers["services"].elements["10.96.6.6 . 6 . 80"] = "drop"


def _flush_chain(table: FakeTable) -> None:
    table.chains["nat-output"] = (table.chains["nat-output"][0], [])


def _change_rule(table: FakeTable) -> None:
    table.chains["refuse"] = ("", ["accept"])


def _change_class(table: FakeTable) -> None:
    table.chains["cluster-all-2-19"] = ("", ["goto all-2-19"])


def _add_chain(table: FakeTable) -> None:
    table.chains["strange"] = ("", [])


def _flush_pick(table: FakeTable) -> None:
    table.chains["all-2-19"] = ("", [])


def _delete_map(table: FakeTable) -> None:
    del table.containers["admitted"]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_delete_element, "element { 10.96.0.1 . 6 . 80 } of endpoint-0 is missing"),
        (_change_element, "element { 10.96.0.1 . 6 . 80 } of endpoint-0 is modified: has another value"),
        (_add_element, "element { 10.96.6.6 . 6 . 80 } of services is unexpected"),
        (_flush_chain, "chain nat-output is modified: has other rules"),
        (_change_rule, "chain refuse is modified: has other rules"),
        (_change_class, "chain cluster-all-2-19 is modified: has other rules"),
        (_add_chain, "chain strange is unexpected"),
        (_flush_pick, "table kproxy is modified: not whole"),
        (_delete_map, "table kproxy is modified: not whole"),
    ],
)
def test_drift_is_named_and_repaired(damage: Any, named: str) -> None:
    node = NftablesNode()
    node.put(web(), pods("a", "10.1.0.1", "10.1.0.2"))
    node.done()
    before = node.state()
    assert node.backend.check() == ()  # takes down how the rules are printed
    damage(node.fake.table(Family.IPV4))
    node.fake.commits += 1
    assert [str(drift) for drift in node.backend.check()] == [named]
    node.done()
    assert node.state() == before
    assert node.backend.check(full=True) == ()


def test_a_glance_reads_nothing_without_foreign_writes() -> None:
    node = NftablesNode()
    node.put(web(), pods("a", "10.1.0.1"))
    node.done()
    node.backend.check()
    read = node.fake.readings
    assert node.backend.check() == ()
    assert node.fake.readings == read
    node.fake.commits += 1
    assert node.backend.check() == ()
    assert node.fake.readings == read + 1


def test_a_table_of_another_layout_is_replaced_at_once() -> None:
    node = NftablesNode()
    node.put(web(), pods("a", "10.1.0.1"))
    node.fake.run("add table ip kproxy\nadd map ip kproxy services { type mark : verdict; }\n")
    node.fake.run("add table ip other\nadd chain ip other services\n")
    scripts = len(node.fake.scripts)
    node.done()
    assert len(node.fake.scripts) == scripts + 1
    assert node.state() == node.fresh()
    assert list(node.fake.table(Family.IPV4, "other").chains) == ["services"]


def test_the_work_for_a_service_of_many_frontends_is_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written in parts; to choose one, each of its elements is counted once."""
    counted = 0
    original = names.most_elements

    def count(container: str) -> int:
        nonlocal counted
        counted += 1
        return original(container)

    monkeypatch.setattr(names, "most_elements", count)

    node = NftablesNode(piece=4000)
    node.put(web("b", "10.96.0.2"), pods("b", "10.1.0.1"))
    node.done()
    node.put(web(externalIPs=[f"198.51.{n // 250}.{n % 250 + 1}" for n in range(1000)]))
    node.put(None, pods("a", "10.1.1.1"))
    node.plan()
    counted = 0
    assert node.backend.sync(1000.0).error is None
    assert 2000 < len(elements(node, names.SERVICES)) + len(elements(node, names.ENDPOINT_0)) < 2100
    assert counted < 20_000


def test_a_comparison_that_gave_way_is_made_by_the_next_check() -> None:
    node = NftablesNode()
    node.put(web(), pods("a", "10.1.0.1"))
    node.done()
    reading = node.fake.reading

    def patient(*arguments: Any, **options: Any) -> Reading | None:
        if node.fake.gives_way is not None and node.fake.gives_way():
            raise NftError(NftFailure.POSTPONED, "a change waits")
        return reading(*arguments, **options)

    node.fake.reading = patient  # type: ignore[method-assign]
    elements(node, names.SERVICES).clear()
    node.backend.gives_way = lambda: True
    with pytest.raises(CheckPostponed):
        node.backend.check(full=True)
    node.backend.gives_way = lambda: False
    assert {drift.kind for drift in node.backend.check(full=True)} == {"element"}
    node.done()
    assert elements(node, names.SERVICES)


def test_a_service_with_long_affinity_chains_has_a_transaction_of_its_own() -> None:
    """Rules take longer to write than elements, so small changes do not wait for them."""
    node = NftablesNode(piece=400)
    ips = [f"10.1.1.{n}" for n in range(1, 41)]
    node.put(web("b", "10.96.0.2"), pods("b", "10.1.0.1"))
    node.done()
    node.put(web("a", sessionAffinity="ClientIP"), pods("a", *ips))
    node.put(None, pods("b", "10.1.0.2"))
    node.plan()
    assert node.backend.sync(1000.0).error is None
    first, second = (script for script in node.fake.scripts[-2:])
    assert "10.96.0.2" in first
    assert "update @" not in first
    assert "update @" in second


def test_a_table_that_lost_its_parts_is_replaced_without_a_gap() -> None:
    node = NftablesNode()
    node.put(web(), pods("a", "10.1.0.1", "10.1.0.2"))
    node.put(web("b", "10.96.0.2"), pods("b", "10.1.0.3"))
    node.done()
    del node.fake.table(Family.IPV4).containers["admitted"]
    node.fake.commits += 1
    assert node.backend.check() != ()
    served: list[set[str]] = []
    node.fake.after = lambda: served.append(node.served())
    node.fake.refuse = lambda line: "10.1.0.3" in line
    assert list(node.sync().failed) == ["ns1/b"]
    assert served[-1] == {"10.96.0.1 . 6 . 80"}
    node.fake.refuse = lambda _: False
    del node.fake.table(Family.IPV4).containers["admitted"]
    node.fake.commits += 1
    assert node.backend.check() != ()
    served.clear()
    node.done()
    assert served == [{"10.96.0.1 . 6 . 80", "10.96.0.2 . 6 . 80"}]
    assert node.state() == node.fresh()


def test_other_settings_rewrite_the_chains_they_change() -> None:
    node = NftablesNode()
    node.put(web(type="NodePort"), pods("a", "10.1.0.1"))
    node.done()
    node.config = with_config(masquerade_bit=3, local_traffic=LocalTraffic(interface="veth+"))
    node.backend.reconfigure(node.config)
    node.done()
    assert node.state() == node.fresh()
    rules = node.fake.table(Family.IPV4).chains["cluster-all-1"][1]
    assert rules == ['iifname != "veth*" meta mark set meta mark | 0x8', "goto all-1"]


def test_other_service_cidrs_rewrite_the_fixed_chains_alone_in_one_transaction() -> None:
    node = NftablesNode()
    node.put(web(type="NodePort"), pods("a", "10.1.0.1"))
    node.done()
    node.fake.scripts.clear()
    node.config = with_config(service_cidrs=("10.96.0.0/16",))
    node.backend.reconfigure(node.config)
    node.done()
    assert node.state() == node.fresh()
    (script,) = node.fake.scripts
    assert "ct state new ip daddr { 10.96.0.0/16 } drop" in script
    assert not [line for line in script.splitlines() if " element " in line or "all-1" in line]


@pytest.mark.parametrize("way", ["reload", "restart"])
def test_another_mark_is_set_and_obeyed_from_the_same_transaction_on(way: str) -> None:
    """Between two, new connections from outside would go out unmasqueraded, and never be answered."""
    node = NftablesNode(piece=1)
    for number in (1, 2, 3):
        sticky = {"sessionAffinity": "ClientIP"} if number == 3 else {}
        node.put(
            web(f"s{number}", f"10.96.0.{number}", type="NodePort", **sticky),
            pods(f"s{number}", *[f"10.1.{number}.{n}" for n in range(1, number + 1)]),
        )
    node.sync()
    node.fake.scripts.clear()
    if way == "reload":
        node.backend.reconfigure(with_config(masquerade_bit=20))
    else:
        node.config = with_config(masquerade_bit=20)
        node.start()
    assert node.sync().error is None
    about = [script for script in node.fake.scripts if "0x4000" in script or "0x100000" in script]
    assert len(about) == 1
    assert "add rule ip kproxy nat-postrouting" in about[0]


def test_a_chain_that_others_use_is_left_and_tried_again() -> None:
    node = NftablesNode()
    node.put(web(), pods("a", "10.1.0.1", "10.1.0.2"))
    node.done()
    node.fake.table(Family.IPV4).chains["strange"] = ("", ["goto cluster-all-2-19"])
    node.put(None, pods("a", "10.1.0.1"))
    node.done()
    assert "cluster-all-2-19" in node.fake.table(Family.IPV4).chains
    del node.fake.table(Family.IPV4).chains["strange"]
    node.backend.retry()
    node.done()
    assert node.state() == node.fresh()


def test_a_node_that_cannot_carry_the_mode_says_why() -> None:
    fake = FakeNft()
    probe(fake, CONFIG)
    assert fake.tables == {}
    fake.refuse = lambda line: "fib" in line or "numgen inc" in line
    with pytest.raises(NftError, match="numgen inc"):
        probe(fake, CONFIG)


@pytest.mark.parametrize("family", list(Family))
def test_the_kernel_holds_what_was_written_and_a_restart_changes_no_element(family: Family) -> None:
    _over_the_kernel(family)


@fresh_network
def _over_the_kernel(family: Family) -> None:
    six = family is Family.IPV6
    cidr = "fd00:1::/64" if six else "10.1.0.0/16"
    config = with_config(
        family=family,
        local_traffic=LocalTraffic(cidr=cidr),
        node_addresses=("fd00:168::2", "::2:1") if six else ("192.168.0.2",),
        service_cidrs=("fd00:96::/112",) if six else ("10.96.0.0/16",),
    )

    def ip(number: int, of: str = "96") -> str:
        return f"fd00:{of}::{number:x}" if six else f"10.{of}.0.{number}"

    nft = NetlinkNft()
    node = NftablesNode(config, nft)
    ranges = (
        ["fd00:7::/48", "fd00:7:0:1::/64", "fd00:8::1/128"] if six else ["198.18.0.0/15", "198.18.1.9/32"]
    )
    settings: tuple[dict[str, Any], ...] = (
        {},
        {"type": "NodePort", "nodePort": 30001},
        {"sessionAffinity": "ClientIP", "type": "NodePort", "nodePort": 30002},
        {"externalTrafficPolicy": "Local", "type": "LoadBalancer", "ingress": [ip(3, "97")]},
        {"loadBalancerSourceRanges": ranges, "type": "LoadBalancer", "ingress": [ip(4, "97")]},
        {"internalTrafficPolicy": "Local"},
    )
    for number, fields in enumerate(settings, 1):
        ports = [port(80, None, nodePort=fields.pop("nodePort", 0)), port(53, "dns", "UDP")]
        node.put(
            service(f"s{number}", ip(number), ports=ports, **fields),
            endpoint_slice(
                *(endpoint(ip(n, "1"), node=f"node{n % 2 + 1}") for n in range(1, number + 1)),
                service=f"s{number}",
                name=f"s{number}-1",
                ports=[port(8080, None), port(5353, "dns", "UDP")],
            ),
        )
    assert node.done().changes["elements"] > 50
    assert node.backend.check(full=True) == ()
    node.start()
    changes = node.done().changes
    assert "elements" not in changes
    assert "elements_deleted" not in changes
    assert node.backend.check(full=True) == ()
    assert node.done().changes == {}
    node.drop("ns1/s5")
    node.drop("ns1/s3")
    node.done()
    assert node.backend.check(full=True) == ()


@pytest.mark.parametrize("family", list(Family))
def test_a_table_that_was_switched_off_acts_again(family: Family) -> None:
    _dormant(family)


@fresh_network
def _dormant(family: Family) -> None:
    node = NftablesNode(with_config(family=family), NetlinkNft())
    switch_off = f"add table {node.config.ip} kproxy {{ flags dormant; }}\n"
    node.done()
    assert node.backend.check() == ()
    nft_oracle.write(switch_off)
    assert "dormant" in nft_oracle.listing(family)
    assert [str(drift) for drift in node.backend.check()] == ["table kproxy is modified: dormant"]
    node.done()
    assert "dormant" not in nft_oracle.listing(family)
    assert node.backend.check(full=True) == ()
    nft_oracle.write(switch_off)
    node.start()
    node.done()
    assert "dormant" not in nft_oracle.listing(family)


@fresh_network
def test_what_the_kernel_refuses_is_distinguished_from_what_is_missing() -> None:
    nft = NetlinkNft()
    script = Script(CONFIG)
    script.declare(CONFIG)
    script.add_elements("cluster-ips", {"10.0.0.1": ""})
    wrong = Script(CONFIG)
    wrong.declare(CONFIG)
    wrong.add_elements(
        "services", {f"10.0.0.{n} . 6 . 80": "drop" if n != 7 else "goto nowhere" for n in range(9)}
    )
    with pytest.raises(NftError) as caught:
        nft.commit(wrong.transaction())
    assert caught.value.kind is NftFailure.REFUSED
    assert caught.value.message == (
        "element ip kproxy services { 10.0.0.7 . 6 . 80 : goto nowhere }: No such file or directory"
    )
    assert nft.reading(Family.IPV4, "kproxy") is None
    without_capabilities()
    with pytest.raises(NftError) as caught:
        nft.commit(script.transaction())
    assert caught.value.kind is NftFailure.MISSING
    assert "Operation not permitted" in caught.value.message


@fresh_network
def test_both_families_share_one_watch() -> None:
    nft = NetlinkNft()
    watch = ForeignWrites(nft.generation)
    backends = [
        NftablesBackend(with_config(family=family, node_addresses=(), local_traffic=None), nft, watch)
        for family in Family
    ]
    for backend in backends:
        assert backend.sync().error is None
    for backend in backends:
        assert backend.check() == ()
    nft.commit(Transaction(Family.IPV4, "kproxy", [DeleteTable()]))
    assert [str(drift) for drift in backends[0].check()] == ["table kproxy is missing"]
    assert backends[1].check() == ()
    assert backends[0].sync().error is None
    assert nft.reading(Family.IPV4, "kproxy") is not None


def test_damage_that_a_sync_meets_is_named_and_repaired_by_it() -> None:
    node = NftablesNode()
    node.put(web(), pods("a", "10.1.0.1"))
    node.done()
    elements(node, "endpoint-0").clear()
    node.fake.commits += 1
    node.put(web(), pods("a", "10.1.0.2"))
    report = node.sync()
    assert (report.error, dict(report.failed)) == (None, {})
    assert [str(drift) for drift in report.drifts] == [
        "element { 10.96.0.1 . 6 . 80 } of endpoint-0 is missing"
    ]
    assert node.state() == node.fresh()


@fresh_network
def test_a_service_that_the_kernel_refuses_is_named_and_the_others_are_written() -> None:
    """A table of this layout, whose map of frontends was made too small, is one that can be kept."""
    nft = NetlinkNft()
    small = Script(CONFIG)
    small.declare(CONFIG)
    small.base(CONFIG)
    commands = [
        msgspec.structs.replace(command, declaration=command.declaration + " size 3;")
        if isinstance(command, AddContainer) and command.name == "services"
        else command
        for command in small.transaction().commands
    ]
    nft.commit(Transaction(Family.IPV4, "kproxy", commands))
    node = NftablesNode(CONFIG, nft)
    for number in range(1, 5):
        node.put(web(f"s{number}", f"10.96.0.{number}"), pods(f"s{number}", f"10.1.0.{number}"))
    report = node.sync()
    assert report.error is None
    (refused,) = report.failed
    assert "services { " in report.failed[refused]
    assert report.failed[refused].endswith(": Too many open files in system")
    reading = nft.reading(Family.IPV4, "kproxy")
    assert reading is not None
    assert reading.elements is not None
    which = refused.removeprefix("ns1/s")
    assert len(reading.elements["services"]) == 3
    assert f"10.96.0.{which} . 6 . 80" not in reading.elements["services"]
    node.drop("ns1/s1" if which != "1" else "ns1/s2")
    node.backend.retry()
    assert dict(node.sync().failed) == {}
    assert node.backend.check(full=True) == ()


@pytest.mark.parametrize("family", list(Family))
def test_a_table_that_nft_made_is_kept(family: Family) -> None:
    _adopted(family)


@fresh_network
def _adopted(family: Family) -> None:
    """As an earlier version of kproxy left it."""
    config = with_config(family=family, node_addresses=(), local_traffic=None, service_cidrs=())
    nft, node = NetlinkNft(), NftablesNode(config)
    ip = "fd00:96::" if family is Family.IPV6 else "10.96.0."
    for number in range(1, 4):
        sticky = {"sessionAffinity": "ClientIP"} if number == 3 else {}
        node.put(
            web(f"s{number}", f"{ip}{number}", **sticky),
            pods(f"s{number}", *(f"{ip.replace('96', '1')}{n}" for n in range(1, number + 1))),
        )
    node.done()
    nft_oracle.write("".join(node.fake.scripts))
    before = nft.reading(family, "kproxy")
    node.nft = nft
    node.start()
    changes = node.done().changes
    assert not {"elements", "elements_deleted", "chains_deleted"} & changes.keys()
    assert node.backend.check(full=True) == ()
    after = nft.reading(family, "kproxy")
    assert before is not None
    assert after is not None
    assert (after.elements, after.containers) == (before.elements, before.containers)


def test_a_map_that_is_not_understood_makes_the_table_anew() -> None:
    node = NftablesNode()
    node.put(web(), pods("a", "10.1.0.1"))
    node.done()
    kept = node.fake.reading
    table = f"set {names.CLUSTER_IPS}"
    wrong = [{names.CLUSTER_IPS: f"{table}: flags 0x2"}, {"others": "set others: type 0x29"}]

    def reading(*args: Any, **kwargs: Any) -> Any:
        found = kept(*args, **kwargs)
        return msgspec.structs.replace(found, unreadable=wrong.pop()) if wrong and found else found

    node.fake.reading = reading  # type: ignore[method-assign]
    scripts = len(node.fake.scripts)
    assert node.backend.check(full=True) == ()
    assert [str(each) for each in node.backend.check(full=True)] == ["table kproxy is modified: not whole"]
    node.done()
    assert len(node.fake.scripts) == scripts + 1
    assert node.state() == node.fresh()


@fresh_network
def test_a_restart_writes_no_chain_again_but_those_that_others_changed() -> None:
    nft = NetlinkNft()
    node = NftablesNode(CONFIG, nft, piece=500)
    for number in (1, 2):
        ips = [f"10.{number}.0.{n}" for n in range(1, 71)]
        node.put(web(f"long{number}", f"10.96.0.{number}"), pods(f"long{number}", *ips))
    assert node.done().changes["chains"] == 4
    node.start()
    assert node.done().changes == {"transactions": 1}
    before = _rules()
    other = nft_oracle.listing(Family.IPV4).replace("random mod 70", "random mod 7", 1)
    nft_oracle.write(f"delete table ip kproxy\n{other}")
    assert _rules() != before
    node.start()
    assert node.done().changes["chains"] == 1
    assert _rules() == before


def _rules() -> dict[str, tuple[str, ...]]:
    return nft_oracle.read_chains(nft_oracle.listing(Family.IPV4))
