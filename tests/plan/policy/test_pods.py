"""The points of the API's semantics, each by an example: pods and their addresses (7 to 12)."""

import pytest

from kproxy.addresses import Family
from kproxy.plan.model import Protocol
from kproxy.plan.policy.model import Direction
from kproxy.plan.policy.planner import PolicyPlanner
from tests.plan.policy.objects import (
    NODE,
    Json,
    labels,
    planner,
    pod,
    pods_of,
    policies_of,
    policy,
)
from tests.plan.policy.small_cluster import DB, OTHER, OUTSIDE, PODS, WEB, allowed, with_policy


def test_7_pods_in_the_hosts_network_are_neither_subjects_nor_peers() -> None:
    host = pod("host", "192.0.2.10", labels={"app": "web"}, hostNetwork=True)
    rule = policy("p", ingress=[{"from": [{"podSelector": {}}, {"ipBlock": {"cidr": "192.0.2.0/28"}}]}])
    found = planner([*PODS, host], [rule])
    assert allowed(found, OUTSIDE, "192.0.2.10")
    assert allowed(found, "192.0.2.10", WEB)
    assert "192.0.2.10" not in found.tables[Family.IPV4].local
    described = found.policies_of("shop/host")
    assert described is not None
    assert described.note == "uses the host's network"


def test_8_the_node_reaches_its_pods_and_other_nodes_are_plain_addresses() -> None:
    found = with_policy(podSelector={})
    assert found.judge(Protocol.TCP, "192.0.2.10", WEB, 80, from_node=True).allowed
    assert not found.judge(Protocol.TCP, "192.0.2.11", WEB, 80).allowed


def test_8_egress_to_the_own_node_is_judged() -> None:
    found = with_policy(policyTypes=["Egress"], egress=[{"to": [{"podSelector": {}}]}])
    assert not allowed(found, WEB, "192.0.2.10", 10250)


def test_11_a_pod_that_reaches_itself_needs_rules_for_its_own_namespace_only() -> None:
    own: list[Json] = [{"podSelector": {}}]
    found = with_policy(ingress=[{"from": own}], egress=[{"to": own}])
    assert allowed(found, WEB, WEB)
    closed = with_policy(ingress=[{"from": [{"podSelector": labels(app="db")}]}])
    assert not allowed(closed, WEB, WEB)


def test_12_a_finished_pod_has_no_address_and_its_heir_has_its_own_policies() -> None:
    done = pod("done", "10.0.0.9", labels={"app": "job"}, phase="Failed", created="2026-01-02T00:00:00Z")
    heir = pod("heir", "10.0.0.9", labels={"app": "x"}, created="2026-01-01T00:00:00Z")
    found = planner([done, heir], [policy("p", podSelector=labels(app="job"))])
    assert allowed(found, OUTSIDE, "10.0.0.9")
    assert found.pod_at("10.0.0.9") == "shop/heir"
    described = found.policies_of("shop/done")
    assert described is not None
    assert described.note == "is finished"


def test_12_a_terminating_pod_is_isolated_until_it_ends() -> None:
    ending = pod("ending", "10.0.0.9", deleted="2026-01-01T00:00:00Z")
    found = planner([ending], [policy("p")])
    assert not allowed(found, OUTSIDE, "10.0.0.9")
    found.update({"shop/ending": None}, {}, {})
    assert found.tables[Family.IPV4].local == {}
    assert allowed(found, OUTSIDE, "10.0.0.9")


def test_12_a_pending_pod_with_an_address_is_isolated() -> None:
    found = planner([pod("init", "10.0.0.9", phase="Pending")], [policy("p")])
    assert not allowed(found, OUTSIDE, "10.0.0.9")


OLD = pod("old", "10.0.0.9", labels={"app": "old"}, created="2026-01-01T00:00:00Z")
NEW = pod("new", "10.0.0.9", labels={"app": "new"}, created="2026-01-02T00:00:00Z")
OLD_ENDS = pod(
    "old", "10.0.0.9", labels={"app": "old"}, created="2026-01-03T00:00:00Z", deleted="2026-01-04T00:00:00Z"
)


@pytest.mark.parametrize(
    "events",
    [
        [OLD, NEW],
        [NEW, OLD],
        [OLD, NEW, None],
        [OLD, None, NEW],
        [NEW, OLD_ENDS],
        [OLD_ENDS, NEW],
        [OLD, OLD_ENDS, NEW, None],
        [NEW, OLD_ENDS, None],
    ],
    ids=str,
)
def test_12_of_two_pods_with_one_address_the_newer_live_one_counts(events: list[Json | None]) -> None:
    found = planner(policies=[policy("p", podSelector=labels(app="old"))])
    for each in events:
        found.update({"shop/old": None} if each is None else pods_of([each]), {}, {})
    assert found.pod_at("10.0.0.9") == "shop/new"
    assert allowed(found, OUTSIDE, "10.0.0.9")
    assert found.tables[Family.IPV4].local == {"10.0.0.9": "shop/new"}


def test_12_the_older_pod_has_its_address_again_when_the_newer_one_goes() -> None:
    found = planner([OLD, NEW], [policy("p", podSelector=labels(app="old"))])
    found.update({"shop/new": None}, {}, {})
    assert found.pod_at("10.0.0.9") == "shop/old"
    assert not allowed(found, OUTSIDE, "10.0.0.9")


def test_12_a_pod_of_both_families_is_isolated_in_both() -> None:
    found = with_policy(podSelector={})
    assert not allowed(found, OUTSIDE, WEB)
    assert not allowed(found, "2001:db8::1", "fd00::1")
    assert found.pod_at("fd00:0:0::1") == "shop/web"


def test_12_the_single_address_of_a_status_counts_without_a_list() -> None:
    lone = PODS[0] | {"status": {"phase": "Running", "podIP": WEB}}
    assert not allowed(planner([lone], [policy("p")]), OUTSIDE, WEB)


def test_only_pods_of_this_node_have_groups() -> None:
    found = planner(PODS, [policy("p", namespace="other", ingress=[{"from": [{"podSelector": {}}]}])])
    assert allowed(found, OUTSIDE, OTHER)
    table = found.tables[Family.IPV4]
    assert (table.groups, table.peers, table.local) == ({}, {}, {WEB: "shop/web", DB: "shop/db"})


def test_families_that_are_not_wanted_have_no_table() -> None:
    found = PolicyPlanner.full(NODE, [Family.IPV6], pods_of(PODS), {}, policies_of([policy("p")]))
    assert found.tables.keys() == {Family.IPV6}
    assert found.tables[Family.IPV6].local.keys() == {"fd00::1", "fd00::2"}


def test_a_remote_pod_that_nothing_mentions_touches_nothing() -> None:
    found = with_policy(ingress=[{"from": [{"podSelector": labels(app="db")}]}])
    far = [pod(f"far{n}", f"10.0.2.{n}", labels={"app": "web"}, node="node2") for n in range(3)]
    assert not any(found.update(pods_of(far), {}, {}).values())
    assert not any(found.update({"shop/far1": None}, {}, {}).values())
    named = [pod("far", "10.0.2.9", labels={"app": "db"}, node="node2")]
    touched = found.update(pods_of(named), {}, {})
    assert touched[Family.IPV4].members == found.tables[Family.IPV4].peers.keys()
    assert not touched[Family.IPV6]


def test_pods_that_policies_treat_alike_share_a_group() -> None:
    pods = [pod(f"w{n}", f"10.0.0.{n}", labels={"app": "web", "n": str(n)}) for n in range(5)]
    found = planner(pods, [policy("p", podSelector=labels(app="web"), ingress=[{"ports": [{"port": 80}]}])])
    assert len(found.tables[Family.IPV4].groups) == 1
    assert len(found.tables[Family.IPV4].isolated[Direction.INGRESS]) == 5


def test_a_flow_has_two_addresses_of_one_family() -> None:
    with pytest.raises(ValueError, match="different IP families"):
        with_policy().judge(Protocol.TCP, WEB, "fd00::1", 80)
    with pytest.raises(ValueError, match="not an IP address"):
        with_policy().judge(Protocol.TCP, "web", WEB, 80)
