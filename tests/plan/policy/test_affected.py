"""Which pods a change concerns: those with other groups, and those whose groups use a set that changed."""

from __future__ import annotations

from collections.abc import Mapping

from kproxy.addresses import Family
from kproxy.plan.policy.affected import affected
from kproxy.plan.policy.model import Touched
from kproxy.plan.policy.planner import PolicyPlanner
from kproxy.state.policy_wire import Namespace, NetworkPolicy, Pod
from tests.state.policy_objects import namespace, pod, policy

WEB, OTHER = "10.1.0.1", "10.1.0.2"
NAMED = [{"name": "c", "ports": [{"containerPort": 5432, "name": "sql"}]}]


def egress(**rule: object) -> dict[str, object]:
    return {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"], "egress": [rule]}


class Node:
    def __init__(self, spec: dict[str, object]) -> None:
        self.planner = PolicyPlanner("n1", (Family.IPV4,))
        pods = (pod("web", WEB, labels={"app": "web"}), pod("other", OTHER, labels={"app": "other"}))
        self.change({f"shop/{each.metadata.name}": each for each in pods}, {"shop": namespace("shop")})
        self.first = self.change(policies={"shop/p": policy("p", spec)})

    def change(
        self,
        pods: Mapping[str, Pod | None] | None = None,
        namespaces: Mapping[str, Namespace | None] | None = None,
        policies: Mapping[str, NetworkPolicy | None] | None = None,
    ) -> frozenset[str]:
        touched = self.planner.update(pods or {}, namespaces or {}, policies or {})
        return affected(self.planner.tables[Family.IPV4], touched[Family.IPV4])


def test_a_new_policy_concerns_the_pods_that_it_isolates() -> None:
    node = Node(egress())
    node.change(policies={"shop/p": policy("p", egress(to=[{"podSelector": {}}]))})
    assert node.change(policies={"shop/p": policy("p", egress(to=[]))}) == {WEB}


def test_members_of_a_set_concern_the_pods_whose_groups_use_it() -> None:
    node = Node(egress(to=[{"podSelector": {"matchLabels": {"app": "db"}}}]))
    assert node.first == {WEB}
    far = {"shop/db": pod("db", "10.2.0.1", node="n2", labels={"app": "db"})}
    assert node.change(far) == {WEB}
    assert node.change({"shop/db": None}) == {WEB}
    assert node.change({"shop/else": pod("else", "10.2.0.2", node="n2")}) == set()


def test_so_do_destinations_with_a_named_port() -> None:
    node = Node(egress(ports=[{"port": "sql"}]))
    far = {"shop/db": pod("db", "10.2.0.1", node="n2", containers=NAMED)}
    assert node.change(far) == {WEB}


def test_a_pod_that_went_has_no_connections_to_end() -> None:
    node = Node(egress())
    assert node.change({"shop/web": None}) == set()
    assert affected(node.planner.tables[Family.IPV4], Touched(addresses=frozenset({WEB}))) == set()
