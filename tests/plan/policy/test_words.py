"""What the planner says of flows and pods: which rule allows, what the nearest one lacks, what isolates."""

from typing import Any

import pytest

from kproxy.plan.model import Protocol
from kproxy.plan.policy.model import FlowEnd
from tests.plan.policy.objects import Json, labels, namespace, planner, pod, policy

FRONT, DB, MONITOR = "10.0.0.1", "10.0.0.2", "10.0.1.1"
PODS = [
    pod("front", FRONT, labels={"app": "front"}),
    pod("db", DB, "fd00::2", labels={"app": "db"}, ports=[("sql", "TCP", 5432)]),
    pod("prom", MONITOR, namespace="monitoring", node="node2"),
]
DENY = policy("deny", policyTypes=["Ingress", "Egress"])


def reason(*policies: Json, source: str = FRONT, destination: str = DB, port: int = 80) -> str:
    return (
        planner(PODS, policies, [namespace("monitoring", {"team": "ops"})])
        .judge(Protocol.TCP, source, destination, port)
        .reason
    )


def db(*rules: Json) -> Json:
    return policy("db", podSelector=labels(app="db"), ingress=list(rules))


def front(*rules: Json) -> Json:
    return policy("front", podSelector=labels(app="front"), policyTypes=["Egress"], egress=list(rules))


BY_DB = "ingress of shop/db is isolated by shop/db: "
BY_FRONT = "egress of shop/front is isolated by shop/front: "
FIRST = "shop/db ingress[0] "


@pytest.mark.parametrize(
    ("policies", "words"),
    [
        (
            [db({"from": [{"podSelector": labels(app="front")}], "ports": [{"port": 8080}]})],
            BY_DB + "shop/db ingress[0] allows this source, but only TCP 8080",
        ),
        (
            [db({"ports": [{"protocol": "UDP"}]}, {"ports": [{"port": 8080, "endPort": 8090}, {"port": 1}]})],
            BY_DB + "shop/db ingress[1] allows this source, but only TCP 8080-8090, TCP 1",
        ),
        (
            [db({"ports": [{"protocol": "UDP"}]})],
            BY_DB + "shop/db ingress[0] allows this source, but only UDP",
        ),
        (
            [db({"ports": [{"port": "sql"}, {"port": "web"}]})],
            BY_DB + FIRST + "allows this source, but only TCP sql (5432), TCP web (not a port of shop/db)",
        ),
        (
            [db({"from": [{"podSelector": labels(app="back")}], "ports": [{"port": 80}]})],
            BY_DB + "shop/db ingress[0] allows TCP 80, but only from pods app=back in shop",
        ),
        (
            [
                db(
                    {
                        "from": [
                            {"namespaceSelector": labels(team="ops")},
                            {"namespaceSelector": {}, "podSelector": labels(app="back")},
                            {"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.128/25"]}},
                        ]
                    }
                )
            ],
            BY_DB + "shop/db ingress[0] allows every port, but only from all pods in namespaces team=ops or "
            "pods app=back in all namespaces or 192.0.2.0/24 except 192.0.2.128/25",
        ),
        (
            [db({"from": [{"podSelector": labels(app="back")}], "ports": [{"port": 81}]})],
            BY_DB + "no rule allows this source, and none allows TCP 80",
        ),
        ([db()], BY_DB + "shop/db allows nothing"),
        (
            [front({"to": [{"podSelector": labels(app="db")}], "ports": [{"port": "sql"}]})],
            BY_FRONT + "shop/front egress[0] allows this destination, but only TCP sql (5432)",
        ),
        (
            [front({"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]})],
            BY_FRONT + "shop/front egress[0] allows every port, but only to 192.0.2.0/24",
        ),
        (
            [DENY],
            "; ".join(
                f"{end} is isolated by shop/deny: shop/deny allows nothing"
                for end in ("egress of shop/front", "ingress of shop/db")
            ),
        ),
        (
            [DENY, front({}), db({"from": [{"podSelector": labels(app="back")}]})],
            BY_DB.replace(": ", ", shop/deny: ")
            + FIRST
            + "allows every port, but only from pods app=back in shop",
        ),
    ],
)
def test_a_refusal_names_policies_and_the_nearest_miss(policies: list[Json], words: str) -> None:
    assert reason(*policies) == words


def test_long_lists_are_cut() -> None:
    peers = [{"podSelector": labels(app=f"a{n}")} for n in range(50)]
    ports = [{"port": n} for n in range(100, 150)]
    assert reason(db({"from": peers})).endswith("pods app=a4 in shop and 45 more")
    assert reason(db({"ports": ports})).endswith("TCP 104 and 45 more")


def test_a_judgement_names_both_ends_and_the_rules_that_allow() -> None:
    judged = planner(PODS, [DENY, db({"ports": [{"port": "sql"}]}), front({}, {})]).judge(
        Protocol.TCP, FRONT, DB, 5432
    )
    assert (judged.source, judged.destination) == (
        FlowEnd(FRONT, "shop/front", local=True),
        FlowEnd(DB, "shop/db", local=True),
    )
    assert judged.allowed
    assert judged.reason == ""
    assert [(each.pod, each.policies, each.allowed_by) for each in judged.by] == [
        ("shop/front", ("shop/deny", "shop/front"), "shop/front egress[0]"),
        ("shop/db", ("shop/db", "shop/deny"), "shop/db ingress[0]"),
    ]


def test_only_ends_on_this_node_are_judged() -> None:
    judged = planner(PODS, [policy("deny", namespace="monitoring", policyTypes=["Egress"])]).judge(
        Protocol.UDP, MONITOR, "192.0.2.1", 53
    )
    assert judged.allowed
    assert judged.by == ()
    assert judged.source == FlowEnd(MONITOR, "monitoring/prom")
    assert judged.destination == FlowEnd("192.0.2.1")


def lines(name: str, *policies: Any) -> list[str]:
    found = planner(PODS, policies).policies_of(name)
    assert found is not None
    return found.lines()


def test_a_pod_is_described() -> None:
    bad = policy("bad", podSelector=labels(app="db"), x=1)
    sql = db({"from": [{"podSelector": labels(app="front")}], "ports": [{"port": "sql"}]}, {})
    assert lines("shop/db", DENY, sql, bad) == [
        "shop/db: 10.0.0.2, fd00::2, on this node",
        "  ingress: isolated by shop/bad, shop/db, shop/deny",
        "    shop/bad cannot be obeyed and allows nothing",
        "    TCP sql (5432) from pods app=front in shop (shop/db ingress[0])",
        "    every port from everyone (shop/db ingress[1])",
        "  egress: isolated by shop/bad, shop/deny",
        "    shop/bad cannot be obeyed and allows nothing",
        "    nothing is allowed",
    ]
    assert lines("monitoring/prom") == [
        "monitoring/prom: 10.0.1.1, on another node",
        "  ingress: not isolated",
        "  egress: not isolated",
    ]


def test_a_pod_without_address_says_why() -> None:
    found = planner([pod("new")]).policies_of("shop/new")
    assert found is not None
    assert found.note == "has no address yet"
    assert planner().policies_of("shop/new") is None


def test_everything_that_is_allowed_is_named_by_its_first_rule() -> None:
    found = planner(PODS, [db({"ports": [{"port": 1}]}, {}, {})]).policies_of("shop/db")
    assert found is not None
    assert [each.everything for each in found.directions] == ["shop/db ingress[1]", ""]


def test_pods_of_a_policy() -> None:
    found = planner([*PODS, pod("new", labels={"app": "db"})], [DENY, db(), policy("db", namespace="other")])
    assert found.pods_of("shop/deny") == ("shop/db", "shop/front")
    assert found.pods_of("shop/db") == ("shop/db",)
    assert found.pods_of("other/db") == ()
    assert found.pods_of("shop/unknown") == ()


def test_the_pod_at_an_address() -> None:
    found = planner(PODS)
    assert found.pod_at("fd00:0::2") == "shop/db"
    assert found.pod_at("::ffff:10.0.0.1") == "shop/front"
    assert found.pod_at("192.0.2.1") is None
    assert found.pod_at("web") is None
