"""A dry run ends where the performance ends, and what it tells is what the kernel does not have yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy.addresses import Family
from kproxy.backends.core.change import Change
from kproxy.backends.core.foreign_writes import ForeignWrites
from kproxy.backends.iptables.backend import IptablesBackend
from kproxy.backends.iptables.dryrun import DryRunXtables
from kproxy.backends.iptables.dump import parse_save
from kproxy.backends.iptables.layout import Layout, StandardLayout
from kproxy.backends.iptables.scalable import ScalableLayout
from kproxy.backends.ipvs.backend import IpvsBackend
from kproxy.backends.ipvs.dryrun import DryRunDevice, DryRunIpset, DryRunIpvs
from kproxy.backends.ipvs.handles import KernelHandles
from kproxy.kernel.xtables.types import FailureKind, RestoreError, Variant
from kproxy.modes.ipvs.rules import IpvsRules
from kproxy.plan.planner import Planner
from tests.backends.iptables_node import CONFIG, IptablesNode
from tests.backends.ipvs_node import CONFIG as IPVS_CONFIG
from tests.backends.ipvs_node import IpvsNode
from tests.builders import NODE, endpoint_slice, port, service
from tests.suite.matrix import examples
from tests.support.fake_xtables import FakeXtables

DAMAGE = (
    "*nat\n-F KUBE-SERVICES\nCOMMIT\n",
    "*nat\n-D POSTROUTING 1\nCOMMIT\n",
    "*nat\n:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]\nCOMMIT\n",
    "*filter\n-A KUBE-FORWARD -j ACCEPT\nCOMMIT\n",
    "*filter\n:KUBE-AT-10.96 - [0:0]\nCOMMIT\n",
    "*nat\n:MINE - [0:0]\n-A MINE -j RETURN\n-A PREROUTING -j MINE\nCOMMIT\n",
)


def _put(cluster: IptablesNode | IpvsNode, number: int, pods: int, **spec: Any) -> None:
    cluster.put(
        service(
            f"svc{number}",
            f"10.96.0.{number}",
            type="NodePort",
            ports=[port(nodePort=30000 + number)],
            **spec,
        ),
        endpoint_slice(
            *(f"10.1.{number}.{n}" for n in range(1, pods + 1)), service=f"svc{number}", address_type="IPv4"
        ),
    )


def _rehearsed(cluster: IptablesNode, layout: Layout) -> DryRunXtables:
    """Let a new backend sync once over what the cluster's kernel holds, in memory."""
    tables = DryRunXtables(Family.IPV4, cluster.fake.variant, cluster.fake.save())
    backend = IptablesBackend(layout, tables, ForeignWrites(tables.generation), batch_size=cluster.piece)
    inputs = [cluster.tables.read(key) for key in sorted(cluster.plans)]
    backend.update(Planner(Family.IPV4).update(inputs, NODE).values())
    report = backend.sync()
    assert (report.error, report.failed) == (None, {})
    return tables


def _told(tables: DryRunXtables) -> list[str]:
    return sorted(map(str, tables.changes()))


@settings(max_examples=examples(60), deadline=None)
@given(
    st.sampled_from([StandardLayout, ScalableLayout]),
    st.sampled_from([(Variant.LEGACY, None), (Variant.NFT, None), (Variant.NFT, 1), (Variant.NFT, 2)]),
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), max_size=4),
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), max_size=4),
    st.sets(st.sampled_from(DAMAGE)),
)
def test_a_rehearsal_ends_where_the_performance_ends(
    layout: Callable[[Any], Layout],
    way: tuple[Variant, int | None],
    before: list[tuple[int, int]],
    after: list[tuple[int, int]],
    damage: set[str],
) -> None:
    cluster = IptablesNode(way[0], piece=way[1])
    for number, pods in before:
        _put(cluster, number, pods)
    if before:
        cluster.sync()
        for text in sorted(damage):
            try:
                cluster.fake.edit(text)
            except RestoreError:
                continue
    for number, pods in after:
        _put(cluster, number, pods)
    cluster.layout = layout
    cluster.start()
    cluster.plan()
    stood = cluster.state()
    tables = _rehearsed(cluster, layout(CONFIG))
    assert cluster.state() == stood
    cluster.tables.touch_all()
    report = cluster.sync()
    assert (report.error, report.failed) == (None, {})
    assert parse_save(tables.save()) == cluster.state()
    assert bool(_told(tables)) == (cluster.state() != stood)
    assert _told(_rehearsed(cluster, layout(CONFIG))) == []


def test_each_object_is_a_line() -> None:
    cluster = IptablesNode()
    _put(cluster, 1, 2)
    cluster.sync()
    cluster.fake.edit(
        "*nat\n-D POSTROUTING 1\n-F KUBE-SERVICES\n:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]\nCOMMIT\n"
        "*filter\n-A KUBE-FORWARD -j ACCEPT\nCOMMIT\n"
    )
    assert _told(_rehearsed(cluster, StandardLayout(CONFIG))) == [
        '+ rule nat/POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING',
        "- chain nat/KUBE-SVC-AAAAAAAAAAAAAAAA (0 rules)",
        "~ chain filter/KUBE-FORWARD (lacks 0 rules and has 1 not wanted)",
        "~ chain nat/KUBE-SERVICES (lacks 2 rules and has 0 not wanted)",
    ]


def test_another_spelling_of_the_same_rules_is_no_change() -> None:
    cluster = IptablesNode()
    _put(cluster, 1, 1)
    cluster.sync()
    spelled = cluster.fake.save().replace(b"-j MARK --set-xmark 0x4000/0x4000", b"-j MARK --or-mark 0x4000")
    assert spelled != cluster.fake.save()
    cluster.fake = type(cluster.fake)(Family.IPV4, Variant.NFT)
    cluster.fake.restore(spelled)
    assert _told(_rehearsed(cluster, StandardLayout(CONFIG))) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("*nat\n-D OUTPUT -j MINE\nCOMMIT\n", "does a matching rule exist"),
        ("*nat\n-A KUBE-NONE -j RETURN\nCOMMIT\n", "No chain/target/match by that name"),
        ("*nat\n:OURS - [0:0]\n-A OURS -j RETURN\n:THEIRS - [0:0]\n-X THEIRS\nCOMMIT\n", "resource busy"),
        ("*nat\n:NEW - [0:0]\n-Z NEW\nCOMMIT\n", "unknown option '-Z'"),
    ],
)
def test_what_depends_on_the_tables_is_refused_as_a_whole(text: str, told: str) -> None:
    dump = b"*nat\n:OUTPUT ACCEPT [0:0]\n:THEIRS - [0:0]\n-A OUTPUT -j THEIRS\nCOMMIT\n"
    tables = DryRunXtables(Family.IPV4, Variant.NFT, dump)
    with pytest.raises(RestoreError, match=told) as refused:
        tables.restore(text.encode())
    assert refused.value.kind is FailureKind.RULE
    assert list(tables.changes()) == []


def test_a_table_that_does_not_exist_yet_has_its_built_in_chains() -> None:
    real, tables = FakeXtables(Family.IPV4), DryRunXtables(Family.IPV4, Variant.NFT, b"")
    text = b"*nat\n:KUBE-X - [0:0]\n-I OUTPUT -j KUBE-X\n-I OUTPUT 2 -j RETURN\n-A KUBE-X -j RETURN\nCOMMIT\n"
    real.restore(text)
    tables.restore(text)
    assert parse_save(tables.save())["nat"] == parse_save(real.save())["nat"]
    assert _told(tables) == [
        "+ chain nat/KUBE-X (1 rule)", "+ rule nat/OUTPUT -j KUBE-X", "+ rule nat/OUTPUT -j RETURN",
    ]  # fmt: skip


def test_a_dump_that_was_cut_off_is_refused() -> None:
    with pytest.raises(ValueError, match="COMMIT"):
        DryRunXtables(Family.IPV4, Variant.NFT, b"*nat\n:OUTPUT ACCEPT [0:0]\n")


# IPVS ---------------------------------------------------------------------------------------------------


def _ipvs_changes(node: IpvsNode) -> Iterator[Change]:
    """What a new backend's first sync would change on this node."""
    ipvs, ipset = DryRunIpvs(node.ipvs, lambda _: True), DryRunIpset(node.ipset)
    device = DryRunDevice(node.device, exists=node.device.held is not None)
    tables = DryRunXtables(Family.IPV4, Variant.NFT, node.xtables.save())
    rules = IpvsRules(IPVS_CONFIG.rules, tables, ForeignWrites(tables.generation))
    backend = IpvsBackend(IPVS_CONFIG, KernelHandles(ipvs, ipset, device), rules, lambda: node.now)
    node.tables.touch_all()
    backend.update(Planner(Family.IPV4).update(node.tables.dirty(), NODE).values())
    report = backend.sync()
    assert (report.error, report.failed) == (None, {})
    for part in (device, ipset, ipvs, tables):
        yield from part.changes()


@settings(max_examples=examples(60), deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), max_size=4),
    st.sets(st.integers(1, 4)),
)
def test_an_ipvs_dry_run_changes_nothing_and_predicts_whether_a_sync_does(
    before: list[tuple[int, int]], after: list[tuple[int, int]], gone: set[int]
) -> None:
    node = IpvsNode()
    for number, pods in before:
        _put(node, number, pods)
    node.done()
    for number, pods in after:
        _put(node, number, pods)
    for number in gone:
        node.drop(f"ns1/svc{number}")
    node.start()
    stood = node.state()
    told = list(_ipvs_changes(node))
    assert node.state() == stood
    node.tables.touch_all()
    node.done()
    assert bool(told) == (node.state() != stood)
    assert list(_ipvs_changes(node)) == []


def test_each_object_of_ipvs_is_a_line() -> None:
    node = IpvsNode()
    _put(node, 1, 2)
    _put(node, 2, 1)
    node.done()
    _put(node, 1, 1, sessionAffinity="ClientIP")
    node.drop("ns1/svc2")
    _put(node, 3, 1)
    node.start()
    told = sorted(str(change) for change in _ipvs_changes(node) if "192.168.0" not in change.object)
    assert told == [
        "+ address 10.96.0.3 on kube-ipvs0",
        "+ virtual server TCP 10.96.0.3 port 80 (rr, 1 destination)",
        "~ destination TCP 10.96.0.1 port 80 -> 10.1.1.2 port 80 (weight 1 -> 0, to drain)",
        "~ destination TCP 10.96.0.2 port 80 -> 10.1.2.1 port 80 (weight 1 -> 0, to drain)",
        "~ set KPROXY-CLUSTER-IP (lacks 1 entry and has 0 not wanted)",
        "~ set KPROXY-DRAINING (lacks 3 entries and has 0 not wanted)",
        "~ set KPROXY-EXTERNAL-IP (lacks 2 entries and has 0 not wanted)",
        "~ set KPROXY-IPVS-IPS (lacks 1 entry and has 0 not wanted)",
        "~ set KPROXY-LOOP-BACK (lacks 1 entry and has 2 not wanted)",
        "~ virtual server TCP 10.96.0.1 port 80 (rr -> rr, affinity 10800 s)",
    ]
