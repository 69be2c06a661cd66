"""The points of the API's semantics, each by an example: ports (6)."""

from kproxy.addresses import Family
from kproxy.plan.model import Protocol
from tests.plan.policy.objects import (
    planner,
    pod,
    pods_of,
    policy,
)
from tests.plan.policy.small_cluster import OUTSIDE, PODS, WEB, allowed, directions, with_policy


def test_6_ports() -> None:
    found = with_policy(
        ingress=[
            {"ports": [{"port": 80, "endPort": 82}, {"protocol": "UDP"}, {"protocol": "SCTP", "port": 90}]}
        ]
    )
    assert [allowed(found, OUTSIDE, WEB, port) for port in (79, 80, 82, 83)] == [False, True, True, False]
    assert allowed(found, OUTSIDE, WEB, 65535, "UDP")
    assert allowed(found, OUTSIDE, WEB, 90, "SCTP")
    assert not allowed(found, OUTSIDE, WEB, 90)
    assert not allowed(found, OUTSIDE, WEB, 80, "SCTP")


def test_6_all_ports_of_all_protocols_are_not_all_traffic() -> None:
    """ICMP passes only rules without ports (point 9)."""
    found = with_policy(ingress=[{"ports": [{"protocol": each} for each in ("TCP", "UDP", "SCTP")]}])
    assert directions(found) == {"ingress"}


NAMED = [
    pod(
        "one", "10.0.0.11", "fd00::11", labels={"app": "n"}, ports=[("web", "TCP", 8080), ("web", "UDP", 53)]
    ),
    pod("two", "10.0.0.12", labels={"app": "n"}, ports=[("web", "TCP", 9090)]),
    pod("none", "10.0.0.13", labels={"app": "n"}, ports=[("web", "UDP", 1)]),
    pod("far", "10.0.1.14", namespace="other", node="node2", sidecar_ports=[("web", "TCP", 7070)]),
    pod(
        "init",
        "10.0.0.15",
        labels={"app": "n"},
        initContainers=[{"ports": [{"name": "web", "containerPort": 6060}]}],
    ),
]


def test_6_names_of_ports_at_ingress_are_those_of_the_pod() -> None:
    found = planner(NAMED, [policy("p", ingress=[{"ports": [{"port": "web"}]}])])
    numbers = (8080, 9090, 53, 1, 6060)
    open_ports = {
        ip: [number for number in numbers if allowed(found, OUTSIDE, ip, number)]
        for ip in ("10.0.0.11", "10.0.0.12", "10.0.0.13", "10.0.0.15")
    }
    assert open_ports == {"10.0.0.11": [8080], "10.0.0.12": [9090], "10.0.0.13": [], "10.0.0.15": []}
    assert not allowed(found, OUTSIDE, "10.0.0.11", 53, "UDP")


def test_6_names_of_ports_at_egress_are_those_of_each_destination() -> None:
    found = planner(NAMED, [policy("p", policyTypes=["Egress"], egress=[{"ports": [{"port": "web"}]}])])
    source = "10.0.0.13"
    assert allowed(found, source, "10.0.0.11", 8080)
    assert not allowed(found, source, "10.0.0.11", 9090)
    assert allowed(found, source, "10.0.0.12", 9090)
    assert allowed(found, source, "10.0.1.14", 7070)
    assert not allowed(found, source, OUTSIDE, 8080)
    assert not allowed(found, source, "10.0.0.15", 6060)
    table = found.tables[Family.IPV4]
    assert list(table.named_protocols.values()) == [("web", Protocol.TCP)]
    assert list(table.named.values()) == [{("10.0.0.11", 8080), ("10.0.0.12", 9090), ("10.0.1.14", 7070)}]


def test_6_a_rule_whose_names_no_pod_has_allows_nothing() -> None:
    found = planner(PODS, [policy("p", ingress=[{"ports": [{"port": "web"}]}])])
    assert not allowed(found, OUTSIDE, WEB)
    assert {group.rules for group in found.tables[Family.IPV4].groups.values()} == {()}


def test_6_a_named_set_follows_the_pods() -> None:
    found = planner(NAMED, [policy("p", policyTypes=["Egress"], egress=[{"ports": [{"port": "web"}]}])])
    touched = found.update(
        pods_of([pod("two", "10.0.0.12", labels={"app": "n"}, ports=[("web", "TCP", 91)])]), {}, {}
    )
    assert allowed(found, "10.0.0.13", "10.0.0.12", 91)
    assert not allowed(found, "10.0.0.13", "10.0.0.12", 9090)
    assert touched[Family.IPV4].members == found.tables[Family.IPV4].named.keys()
    assert not touched[Family.IPV4].groups
