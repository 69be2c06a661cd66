"""The points of the API's semantics, each by an example: types, directions, rules and peers (1 to 5)."""

from typing import Any

import pytest

from kproxy.addresses import Family
from kproxy.plan.model import Protocol
from kproxy.plan.policy.model import Direction
from tests.plan.policy.objects import (
    Json,
    labels,
    namespace,
    planner,
    pod,
    policy,
)
from tests.plan.policy.small_cluster import DB, OTHER, OUTSIDE, PODS, WEB, allowed, directions, with_policy


@pytest.mark.parametrize(
    ("spec", "isolated"),
    [
        ({}, {"ingress"}),
        ({"policyTypes": []}, {"ingress"}),
        ({"policyTypes": None, "ingress": []}, {"ingress"}),
        ({"egress": []}, {"ingress"}),
        ({"egress": [{"ports": [{"port": 1}]}]}, {"ingress", "egress"}),
        ({"policyTypes": ["Egress"]}, {"egress"}),
        ({"policyTypes": ["Egress"], "ingress": [{"ports": [{"port": 1}]}]}, {"egress"}),
        ({"policyTypes": ["Ingress"], "egress": [{"ports": [{"port": 1}]}]}, {"ingress"}),
        ({"policyTypes": ["Ingress", "Egress"]}, {"ingress", "egress"}),
        ({"podSelector": labels(app="db")}, set()),
        ({"podSelector": None}, {"ingress"}),
    ],
)
def test_1_policy_types_have_defaults(spec: dict[str, Any], isolated: set[str]) -> None:
    assert directions(with_policy(**spec)) == isolated


def test_1_a_policy_without_spec_isolates_its_namespace_for_ingress() -> None:
    found = planner(PODS, [{"metadata": {"name": "p", "namespace": "shop"}}])
    assert directions(found) == {"ingress"}
    assert not found.problems


def test_1_protocol_defaults_to_tcp() -> None:
    found = with_policy(ingress=[{"ports": [{"port": 80}, {"protocol": None, "port": 81}]}])
    assert allowed(found, OUTSIDE, WEB, 80)
    assert allowed(found, OUTSIDE, WEB, 81)
    assert not allowed(found, OUTSIDE, WEB, 80, "UDP")


def test_2_policies_add_up_and_isolate_only_pods_of_their_namespace() -> None:
    found = planner(
        PODS,
        [
            policy("a", ingress=[{"ports": [{"port": 80}]}]),
            policy("b", podSelector=labels(app="web"), ingress=[{"ports": [{"port": 81}]}]),
            policy("c", namespace="other"),
        ],
    )
    assert [allowed(found, OUTSIDE, WEB, port) for port in (80, 81, 82)] == [True, True, False]
    assert [allowed(found, OUTSIDE, DB, port) for port in (80, 81)] == [True, False]


def test_2_both_ends_must_allow() -> None:
    egress = policy(
        "e", podSelector=labels(app="web"), policyTypes=["Egress"], egress=[{"ports": [{"port": 1}]}]
    )
    ingress = policy("i", podSelector=labels(app="db"), ingress=[{"ports": [{"port": 2}]}])
    both = policy("both", egress=[{"ports": [{"port": 3}]}], ingress=[{"ports": [{"port": 3}]}])
    found = planner(PODS, [egress, ingress, both])
    assert [allowed(found, WEB, DB, port) for port in (1, 2, 3)] == [False, False, True]
    refused = found.judge(Protocol.TCP, WEB, DB, 1)
    assert [each.allowed for each in refused.by] == [True, False]


def test_2_rules_of_other_directions_are_ignored() -> None:
    found = with_policy(policyTypes=["Ingress"], egress=[{"ports": [{"port": 1}]}])
    assert allowed(found, WEB, OUTSIDE, 80)
    assert not allowed(found, OUTSIDE, WEB, 1)


@pytest.mark.parametrize(
    ("rules", "passes"),
    [
        ([], False),
        (None, False),
        ([{}], True),
        ([{"from": [], "ports": []}], True),
        ([{"from": None, "ports": None}], True),
        ([{"from": [], "ports": [{"port": 81}]}], False),
    ],
)
def test_3_empty_lists_and_empty_rules(rules: list[Json] | None, passes: bool) -> None:
    found = with_policy(ingress=rules, policyTypes=["Ingress"])
    assert allowed(found, OUTSIDE, WEB) is passes


def test_3_a_rule_that_allows_everything_needs_no_group() -> None:
    found = with_policy(ingress=[{"ports": [{"port": 80}]}, {}])
    assert directions(found) == set()
    (judged,) = found.judge(Protocol.TCP, OUTSIDE, WEB, 99).by
    assert (judged.allowed, judged.allowed_by, judged.policies) == (True, "shop/p ingress[1]", ("shop/p",))


def test_3_peers_and_ports_of_one_rule_belong_together() -> None:
    found = with_policy(
        podSelector=labels(app="web"),
        ingress=[
            {
                "from": [{"podSelector": labels(app="db")}, {"ipBlock": {"cidr": "192.0.2.0/24"}}],
                "ports": [{"port": 1}],
            },
            {"from": [{"podSelector": {}}], "ports": [{"port": 2}, {"protocol": "UDP", "port": 3}]},
        ],
    )
    assert [allowed(found, DB, WEB, port) for port in (1, 2, 3)] == [True, True, False]
    assert [allowed(found, OUTSIDE, WEB, port) for port in (1, 2, 3)] == [True, False, False]
    assert allowed(found, DB, WEB, 3, "UDP")


@pytest.mark.parametrize(
    ("peer", "sources"),
    [
        ({"podSelector": {}}, {WEB, DB}),
        ({"podSelector": labels(app="web")}, {WEB}),
        ({"namespaceSelector": {}}, {WEB, DB, OTHER}),
        ({"namespaceSelector": labels(team="x")}, {OTHER}),
        ({"namespaceSelector": {}, "podSelector": labels(app="web")}, {WEB, OTHER}),
        ({"namespaceSelector": labels(team="x"), "podSelector": labels(app="db")}, set()),
        ({"namespaceSelector": labels(**{"kubernetes.io/metadata.name": "other"})}, {OTHER}),
        (
            {"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}},
            {WEB, DB},
        ),
        (
            {
                "namespaceSelector": {
                    "matchExpressions": [
                        {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["shop"]}
                    ]
                }
            },
            {OTHER},
        ),
        (
            {"podSelector": {"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["x"]}]}},
            {WEB, DB},
        ),
    ],
)
def test_4_peers_select_by_pods_and_namespaces(peer: Json, sources: set[str]) -> None:
    found = planner(
        PODS,
        [policy("p", ingress=[{"from": [peer]}])],
        [namespace("other", {"team": "x"}), namespace("shop")],
    )
    assert {each for each in (WEB, DB, OTHER, OUTSIDE) if allowed(found, each, DB)} == sources


def test_4_the_label_of_a_namespaces_name_is_always_its_name() -> None:
    peer = {
        "namespaceSelector": {
            "matchExpressions": [
                {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["other", "x"]}
            ]
        }
    }
    rule = policy("p", ingress=[{"from": [peer]}])
    assert allowed(planner(PODS, [rule]), OTHER, WEB)
    lies = namespace("shop", {"kubernetes.io/metadata.name": "other"})
    found = planner(PODS, [rule], [lies, namespace("other")])
    assert allowed(found, OTHER, WEB)
    assert not allowed(found, DB, WEB)


def test_4_a_namespace_that_loses_its_object_loses_its_labels() -> None:
    found = planner(
        PODS,
        [policy("p", ingress=[{"from": [{"namespaceSelector": labels(team="x")}]}])],
        [namespace("other", {"team": "x"})],
    )
    assert allowed(found, OTHER, WEB)
    touched = found.update({}, {"other": None}, {})
    assert not allowed(found, OTHER, WEB)
    assert len(touched[Family.IPV4].members) == 1
    assert not touched[Family.IPV4].groups


def test_5_selectors_select_only_pods_with_an_address_of_their_own() -> None:
    host = pod("host", "192.0.2.10", hostNetwork=True)
    done = pod("done", "10.0.0.9", phase="Succeeded")
    found = planner([*PODS, host, done], [policy("p", ingress=[{"from": [{"namespaceSelector": {}}]}])])
    assert not allowed(found, "192.0.2.10", WEB)
    assert not allowed(found, "10.0.0.9", WEB)
    (members,) = found.tables[Family.IPV4].peers.values()
    assert members == {WEB, DB, OTHER}


@pytest.mark.parametrize(
    ("blocks", "passes"),
    [
        ([{"cidr": "10.0.0.0/24"}], {WEB, DB}),
        ([{"cidr": "10.0.0.77/24"}], {WEB, DB}),
        ([{"cidr": "::ffff:10.0.0.0/120"}], {WEB, DB}),
        ([{"cidr": "10.0.0.0/8", "except": ["10.0.0.2/32"]}], {WEB, OTHER}),
        ([{"cidr": "10.0.0.0/8", "except": ["10.0.0.0/24"]}, {"cidr": "10.0.0.2/32"}], {DB, OTHER}),
        (
            [
                {"cidr": "10.0.0.0/8", "except": ["10.0.0.2/32"]},
                {"cidr": "10.0.0.0/24", "except": ["10.0.0.1/32"]},
            ],
            {WEB, DB, OTHER},
        ),
        ([{"cidr": "0.0.0.0/0"}], {WEB, DB, OTHER, OUTSIDE}),
        ([{"cidr": "0.0.0.0/1"}, {"cidr": "128.0.0.0/1"}], {WEB, DB, OTHER, OUTSIDE}),
        ([{"cidr": "::/0"}], set()),
        ([{"cidr": "fd00::/64"}, {"cidr": "10.0.1.0/24"}], {OTHER}),
    ],
)
def test_5_ip_blocks_match_any_address_of_their_family(blocks: list[Json], passes: set[str]) -> None:
    found = with_policy(ingress=[{"from": [{"ipBlock": each} for each in blocks]}])
    assert {each for each in (WEB, DB, OTHER, OUTSIDE) if allowed(found, each, WEB)} == passes


def test_5_a_block_of_all_ipv4_addresses_opens_nothing_of_ipv6() -> None:
    found = with_policy(ingress=[{"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}])
    assert allowed(found, OUTSIDE, WEB)
    assert not allowed(found, "2001:db8::1", "fd00::1")
    assert found.tables[Family.IPV4].isolated[Direction.INGRESS] == {}
    assert found.tables[Family.IPV6].isolated[Direction.INGRESS].keys() == {"fd00::1", "fd00::2"}


def test_5_two_halves_are_everything() -> None:
    halves = [{"ipBlock": {"cidr": each}} for each in ("0.0.0.0/1", "128.0.0.0/1")]
    found = with_policy(ingress=[{"from": halves, "ports": [{"port": 80}]}])
    table = found.tables[Family.IPV4]
    assert table.ranges == {}
    assert [rule.peers for group in table.groups.values() for rule in group.rules] == [()]
