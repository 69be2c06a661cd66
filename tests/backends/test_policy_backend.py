"""One family's table of network policies: what is written when, what is refused, and what others changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kproxy.addresses import Family
from kproxy.backends.core.base import ServiceState
from kproxy.backends.policy import names
from kproxy.backends.policy.config import Unknown
from kproxy.backends.policy.probe import holding, probe
from kproxy.kernel.nft.types import NftError
from kproxy.plan.policy.model import Direction, RuleMatch
from tests.backends.policy_node import PolicyNode, ip, pods, sample, tcp, with_config
from tests.support.fake_nft import FakeContainer, FakeTable

TABLE = f"ip {names.TABLE}"


def started(**settings: object) -> PolicyNode:
    """A node with rules of every kind in its table."""
    node = PolicyNode(with_config(**settings))
    node.tables = sample()
    node.start()
    assert node.done().changes["transactions"] == 1
    return node


def table(node: PolicyNode) -> FakeTable:
    """The table in the fake kernel."""
    return node.fake.table(node.config.family, names.TABLE)


def elements(node: PolicyNode, name: str) -> dict[str, str]:
    """The elements of a map or set of the table."""
    return table(node).containers[name].elements


def chain_of(node: PolicyNode, address: str, direction: str = "ingress") -> list[str]:
    """The rules of the group to which an address is led."""
    return table(node).chains[elements(node, direction)[address].split()[1]][1]


def test_a_first_sync_is_one_transaction_and_a_second_writes_nothing() -> None:
    node = started()
    assert node.state() == node.fresh()
    assert node.done().changes == {}
    assert len(node.fake.scripts) == 1


def test_a_restart_writes_only_what_differs() -> None:
    node = started()
    node.start()
    report = node.done()
    assert (report.full, report.changes) == (True, {})
    node.tables.members("p-front", {ip(2), ip(9)})
    node.start()
    report = node.done()
    assert report.changes == {"transactions": 1, "elements": 2, "elements_deleted": 2}
    assert node.state() == node.fresh()


def test_a_change_of_members_writes_these_alone() -> None:
    node = started()
    node.tables.members("p-front", {ip(1), ip(2), ip(7)})
    node.done()
    united = next(name for name in table(node).containers if name.startswith("u-"))
    assert node.fake.scripts[-1].splitlines() == [
        f"add element {TABLE} {name} {{ {ip(7)} }}" for name in ("p-front", united)
    ]


def test_another_policy_is_one_transaction_that_moves_the_pod_and_removes_the_old_chain() -> None:
    node = started()
    old = node.tables.table.isolated[Direction.INGRESS][ip(3)]
    new = node.tables.group(Direction.INGRESS, RuleMatch((tcp(7),), (pods("new"),)), policy="default/new")
    node.tables.members("p-new", {ip(1)})
    node.tables.pod(ip(3), ingress=new)
    node.tables.drop_group(old)
    report = node.done()
    assert report.changes == {
        "transactions": 1,
        "chains": 1,
        "elements": 2,
        "chains_deleted": 1,
    }
    assert old not in table(node).chains
    assert elements(node, "ingress")[ip(3)] == f"goto {new}"
    assert node.state() == node.fresh()


def test_what_no_group_needs_any_more_goes_with_the_change() -> None:
    node = started()
    for address in (ip(1), ip(2)):
        node.tables.pod(address)
    for name in tuple(node.tables.table.groups):
        if name not in node.tables.table.isolated[Direction.INGRESS].values():
            node.tables.drop_group(name)
    scripts = len(node.fake.scripts)
    node.done()
    assert len(node.fake.scripts) == scripts + 1
    assert not any(name.startswith(("e-", "n-", "c-")) for name in table(node).containers)
    assert node.state() == node.fresh()


def test_touches_that_change_nothing_write_nothing() -> None:
    node = started()
    node.tables.members("p-front", node.tables.table.peers["p-front"])
    node.tables.members("p-of-no-group", {ip(77)})
    node.tables.pod(ip(4))
    assert node.done().changes == {}
    assert len(node.fake.scripts) == 1


def test_a_set_that_is_given_up_and_used_again_before_a_sync_has_the_members_of_now() -> None:
    node = started()
    web = node.tables.table.isolated[Direction.INGRESS][ip(1)]
    rules = node.tables.table.groups[web]
    for name in ("p-front", "p-back"):
        node.tables.members(name, {ip(9)})
    users = [
        name
        for name in node.tables.table.groups
        if name != node.tables.table.isolated[Direction.INGRESS][ip(3)]
    ]
    kept = [node.tables.table.groups[name] for name in users]
    for name in users:
        node.tables.drop_group(name)
    node.backend.update(node.tables.table, node.tables.touched())
    for group in kept:
        node.tables.group(group.direction, *group.rules, policy=group.policies[0])
    assert node.tables.table.groups[web] == rules
    node.done()
    assert elements(node, "p-front").keys() == {ip(9)}
    assert node.state() == node.fresh()


@pytest.mark.parametrize("word", ["@p-front", "@p-back"])
def test_a_group_that_the_kernel_refuses_is_closed_and_the_others_are_written(word: str) -> None:
    node = PolicyNode()
    node.tables = sample()
    node.fake.refuse = lambda line: line.startswith("add rule") and word in line
    node.start()
    report = node.sync()
    assert report.error is None
    assert set(report.failed) >= {"default/web", "default/many", "default/out"} - {"default/out"}
    assert all(status.state is ServiceState.QUARANTINED for status in report.services.values())
    assert "default/deny" not in report.services
    assert elements(node, "ingress").keys() == {ip(1), ip(2), ip(3), ip(5)}
    assert not any(rule.endswith("accept") for rule in chain_of(node, ip(1)))
    assert any(rule.startswith("counter jump refused-ingress") for rule in chain_of(node, ip(1)))
    assert report.retry_in is not None


def test_a_refused_group_in_a_running_table_is_closed_and_comes_back() -> None:
    node = started()
    new = node.tables.group(Direction.INGRESS, RuleMatch((tcp(7),), (pods("bad"),)), policy="default/bad")
    good = node.tables.group(Direction.INGRESS, RuleMatch((tcp(8),), (pods("front"),)), policy="default/good")
    node.tables.pod(ip(4), ingress=new)
    node.tables.pod(ip(3), ingress=good)
    node.fake.refuse = lambda line: line.startswith("add rule") and "@p-bad" in line
    report = node.sync()
    assert set(report.failed) == {"default/bad"}
    assert elements(node, "ingress")[ip(4)] == f"goto {new}"
    assert not any(rule.endswith("accept") for rule in chain_of(node, ip(4)))
    assert "meta l4proto 6 th dport 8 ip saddr @p-front accept" in chain_of(node, ip(3))
    scripts = len(node.fake.scripts)
    node.tables.members("p-front", {ip(1)})
    node.tables.pod(ip(6), ingress=new)
    assert set(node.sync().failed) == {"default/bad"}
    assert len(node.fake.scripts) == scripts + 1
    assert elements(node, "ingress")[ip(6)] == f"goto {new}"
    node.fake.refuse = lambda _: False
    node.now += 400
    assert node.done().failed == {}
    assert "meta l4proto 6 th dport 7 ip saddr @p-bad accept" in chain_of(node, ip(4))
    assert node.state() == node.fresh()


def test_a_refused_group_that_is_gone_is_forgotten() -> None:
    node = started()
    new = node.tables.group(Direction.INGRESS, RuleMatch((tcp(7),), (pods("bad"),)), policy="default/bad")
    node.tables.pod(ip(4), ingress=new)
    node.fake.refuse = lambda line: line.startswith("add rule") and "@p-bad" in line
    assert set(node.sync().failed) == {"default/bad"}
    node.tables.pod(ip(4))
    node.tables.drop_group(new)
    report = node.done()
    assert (report.services, report.retry_in) == ({}, None)
    assert node.state() == node.fresh()


@pytest.mark.parametrize("lose", ["before", "after"])
def test_after_a_transaction_of_unknown_outcome_the_table_is_read(lose: str) -> None:
    node = started()
    node.tables.members("p-front", {ip(1), ip(8)})
    node.fake.lose = lose
    report = node.sync()
    assert report.error is not None
    report = node.done()
    assert report.full
    assert report.drifts == ()
    assert node.state() == node.fresh()


def damage_chain(node: PolicyNode) -> None:
    table(node).chains[node.tables.table.isolated[Direction.INGRESS][ip(1)]][1].pop(1)


def flush_base(node: PolicyNode) -> None:
    table(node).chains["forward"][1].clear()


def drop_base(node: PolicyNode) -> None:
    del table(node).chains["forward"]


def add_chain(node: PolicyNode) -> None:
    table(node).chains["extra"] = ("", ["accept"])


def add_set(node: PolicyNode) -> None:
    table(node).containers["extra"] = FakeContainer("set", "type ipv4_addr;", {"10.0.0.1": ""})


def add_member(node: PolicyNode) -> None:
    elements(node, "p-front")["10.9.9.9"] = ""


def drop_member(node: PolicyNode) -> None:
    del elements(node, "p-front")[ip(1)]


def lead_away(node: PolicyNode) -> None:
    elements(node, "ingress")[ip(1)] = "accept"


def let_out(node: PolicyNode) -> None:
    del elements(node, "egress")[ip(1)]


def remove(node: PolicyNode) -> None:
    del node.fake.tables[TABLE]


def change_hook(node: PolicyNode) -> None:
    table(node).chains["forward"] = ("type filter hook forward priority 7;", table(node).chains["forward"][1])


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (damage_chain, "chain i-* is modified: has other rules"),
        (flush_base, "chain forward is modified: has other rules"),
        (drop_base, "chain forward is missing"),
        (add_chain, "chain extra is unexpected"),
        (add_set, "set extra is unexpected"),
        (add_member, "element { 10.9.9.9 } of p-front is unexpected"),
        (drop_member, "element { 10.1.0.1 } of p-front is missing"),
        (lead_away, "element { 10.1.0.1 } of ingress is modified: has another value"),
        (let_out, "element { 10.1.0.1 } of egress is missing"),
        (remove, "table kproxy-policy is missing"),
        (change_hook, "table kproxy-policy is modified: not whole"),
    ],
)
def test_what_others_change_is_named_and_repaired_in_one_transaction(
    act: Callable[[PolicyNode], None], expected: str
) -> None:
    node = started()
    assert node.backend.check() == ()
    node.fake.tables["ip foreign"] = FakeTable()
    act(node)
    node.fake.commits += 1
    group = node.tables.table.isolated[Direction.INGRESS][ip(1)]
    found = [str(drift).replace(group, "i-*") for drift in node.backend.check()]
    assert found == [expected]
    scripts = len(node.fake.scripts)
    node.done()
    assert len(node.fake.scripts) == scripts + 1
    assert node.state() == node.fresh()
    assert "ip foreign" in node.fake.tables
    assert node.backend.check(full=True) == ()


def test_quiet_checks_read_the_rules_once_where_their_form_is_known() -> None:
    node = started()
    assert node.backend.check() == ()
    before = node.fake.readings
    new = node.tables.group(Direction.INGRESS, RuleMatch((tcp(7),)), policy="default/new")
    node.tables.pod(ip(4), ingress=new)
    node.done()
    assert node.backend.check() == ()
    assert node.fake.readings == before
    table(node).chains[new][1].pop()
    node.fake.commits += 1
    assert [str(drift) for drift in node.backend.check()] == [f"chain {new} is modified: has other rules"]
    node.done()
    assert node.state() == node.fresh()


@pytest.mark.parametrize("known", [True, False])
def test_rules_in_a_form_that_is_not_known_are_compared_with_a_reading(known: bool) -> None:
    node = PolicyNode()
    if not known:
        node.fake.form = lambda rule: rule.upper()
    node.tables = sample()
    node.start()
    node.done()
    assert node.backend.check() == ()
    node.fake.commits += 1
    assert node.backend.check() == ()
    chain = node.tables.table.isolated[Direction.INGRESS][ip(3)]
    table(node).chains[chain][1][0] = "accept"
    node.fake.commits += 1
    assert [str(drift) for drift in node.backend.check()] == [f"chain {chain} is modified: has other rules"]
    node.done()
    assert node.state() == node.fresh()
    assert node.backend.check() == ()


def test_a_table_of_another_layout_is_replaced_in_one_transaction() -> None:
    node = started()
    table(node).chains["layout-0"] = table(node).chains.pop(names.LAYOUT)
    elements(node, "p-front")["10.7.7.7"] = ""
    node.start()
    scripts = len(node.fake.scripts)
    node.done()
    assert len(node.fake.scripts) == scripts + 1
    assert node.state() == node.fresh()


def test_a_table_that_takes_no_pod_any_more_is_replaced() -> None:
    """Others have declared the map of pods in another way, which no reading tells."""
    node = started()
    table(node).containers["ingress"].declaration = "type inet_service : verdict;"
    replaced = False

    def refuse(line: str) -> bool:
        nonlocal replaced
        replaced = replaced or line.startswith("delete table")
        return line.startswith(f"add element {TABLE} ingress") and not replaced

    node.fake.refuse = refuse
    new = node.tables.group(Direction.INGRESS, RuleMatch((tcp(7),)), policy="default/new")
    node.tables.pod(ip(4), ingress=new)
    assert "injected refusal" in (node.sync().error or "")
    node.done()
    assert node.state() == node.fresh()


def test_a_refused_group_in_a_table_that_is_replaced_leaves_no_moment_without_rules() -> None:
    node = started()
    del table(node).chains[names.LAYOUT]
    node.fake.refuse = lambda line: line.startswith("add rule") and "@p-back" in line
    seen: list[bool] = []
    node.fake.after = lambda: seen.append(ip(3) in elements(node, "ingress"))
    node.start()
    report = node.sync()
    assert (report.error, "default/web" in report.failed) == (None, True)
    assert all(seen)
    assert set(node.fake.tables) == {TABLE}
    node.fake.refuse = lambda _: False
    node.backend.retry()
    assert node.done().failed == {}
    assert node.state() == node.fresh()


def test_objects_that_the_kernel_will_not_delete_are_left_over_and_tried_again() -> None:
    node = started()
    old = node.tables.table.isolated[Direction.INGRESS][ip(3)]
    node.tables.pod(ip(3))
    node.tables.drop_group(old)
    node.fake.refuse = lambda line: line == f"delete chain {TABLE} {old}"
    report = node.sync()
    assert report.failed == {}
    assert set(report.leftovers) == {f"chain {old}"}
    assert ip(3) not in elements(node, "ingress")
    node.fake.refuse = lambda _: False
    node.now += 400
    node.done()
    assert node.state() == node.fresh()


def test_other_settings_are_one_transaction() -> None:
    node = started()
    for settings in (
        {"reject": True},
        {"unknown": Unknown.DROP, "pod_cidrs": ("10.1.0.0/24",)},
        {"unknown": Unknown.HOLD, "pod_cidrs": ("10.1.0.0/24",)},
        {"nflog_group": 5},
        {},
    ):
        node.config = with_config(**settings)
        scripts = len(node.fake.scripts)
        node.backend.reconfigure(node.config)
        node.done()
        assert len(node.fake.scripts) == scripts + 1
        assert node.state() == node.fresh()
    node.backend.reconfigure(node.config)
    assert node.done().changes == {}


def test_every_local_pod_is_known_where_unknown_ones_are_not_let_through() -> None:
    node = started(unknown=Unknown.DROP, pod_cidrs=("10.1.0.0/24",))
    assert elements(node, names.KNOWN).keys() == {ip(n) for n in range(1, 6)}
    node.tables.pod(ip(9))
    node.tables.drop_pod(ip(4))
    node.done()
    assert elements(node, names.KNOWN).keys() == {ip(n) for n in (1, 2, 3, 5, 9)}
    assert node.state() == node.fresh()


def test_the_probe_tries_everything_and_leaves_nothing() -> None:
    node = PolicyNode()
    probe(node.fake, Family.IPV4)
    assert node.fake.tables == {}
    node.fake.refuse = lambda line: "log prefix" in line
    with pytest.raises(NftError, match="injected refusal"):
        probe(node.fake, Family.IPV4)


def test_how_packets_can_be_held_is_tried() -> None:
    node = PolicyNode()
    assert holding(node.fake, node.config) == node.config
    node.fake.refuse = lambda line: " queue num " in line
    assert holding(node.fake, node.config) == with_config(queue_by_target=True)
    node.fake.refuse = lambda line: " num " in line
    assert holding(node.fake, node.config) is None
