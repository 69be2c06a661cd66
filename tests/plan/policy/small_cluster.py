"""Three pods in two namespaces, and the question whether a flow is allowed, asked in both ways."""

from typing import Any

from kproxy.addresses import Family
from kproxy.plan.model import Protocol
from kproxy.plan.policy.model import Direction
from kproxy.plan.policy.planner import PolicyPlanner
from tests.plan.policy import kernel
from tests.plan.policy.objects import planner, pod, policy

WEB, DB, OTHER, OUTSIDE = "10.0.0.1", "10.0.0.2", "10.0.1.1", "192.0.2.1"
PODS = [
    pod("web", WEB, "fd00::1", labels={"app": "web"}),
    pod("db", DB, "fd00::2", labels={"app": "db"}),
    pod("other", OTHER, "fd00::101", namespace="other", labels={"app": "web"}, node="node2"),
]


def allowed(
    found: PolicyPlanner, source: str, destination: str, port: int = 80, protocol: str = "TCP"
) -> bool:
    """What the judgement says, which must be what the tables do."""
    judged = found.judge(Protocol(protocol), source, destination, port)
    family = Family.IPV6 if ":" in source else Family.IPV4
    table = found.tables[family]
    ends = judged.source.ip, judged.destination.ip
    assert kernel.passes(table, Protocol(protocol), *ends, port) is judged.allowed
    return judged.allowed


def with_policy(**spec: Any) -> PolicyPlanner:
    """The three pods, and a policy of the namespace shop."""
    found = planner(PODS, [policy("p", **spec)])
    assert not found.problems
    return found


def directions(found: PolicyPlanner, ip: str = WEB) -> set[str]:
    """The directions in which a pod of this node is isolated."""
    table = found.tables[Family.IPV4]
    return {direction.value for direction in Direction if ip in table.isolated[direction]}
