"""Faults in the rules of NetworkPolicies are named by rule, whatever the mode, and packets agree."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from kproxy.addresses import Family
from kproxy.plan.model import Protocol
from kproxy_lab.lab import Lab, Namespace
from tests.explain.judge import Judge, Verdicts, judge_round
from tests.explain.policies import objects
from tests.explain.site import Site
from tests.explain.test_differences import JudgedCluster, ask
from tests.explain.test_faults import CONFIGS
from tests.explain.world import Probe, World
from tests.peer.objects import SPEC
from tests.state import policy_objects as k8s

WEB = "10.244.1.10"
FRIEND = Probe("remote-0", "10.244.2.10", Protocol.TCP, WEB, 8080)
STRANGER = Probe("remote-1", "10.244.2.11", Protocol.TCP, WEB, 8080)
POLICY = k8s.policy(
    "web",
    {
        "podSelector": {"matchLabels": {"place": "local-0"}},
        "ingress": [
            {
                "from": [{"namespaceSelector": {"matchLabels": {"side": "a"}}, "podSelector": {}}],
                "ports": [{"port": 9}],
            },
            {"from": [{"namespaceSelector": {"matchLabels": {"side": "b"}}}], "ports": [{"port": 8080}]},
        ],
    },
    namespace="even",
)
LET_THROUGH = f"what goes to {WEB}:8080 is let through by "
REFUSED = ", but should be refused: ingress of even/local-0 is isolated by even/web"
IN_GROUP = "ip kproxy-policy %group: meta l4proto 6"
DROPPED = "the packet is dropped by "


@dataclass(frozen=True)
class Fault:
    """Commands for nft, a packet, and what explain says of it.

    `%group` is the chain of the pod's policies, `%peers` the set of the second rule's peers.
    """

    name: str
    command: str
    probe: Probe
    difference: str


FAULTS = (
    Fault(
        "a member lost",
        "delete element ip kproxy-policy %peers { 10.244.2.10 }",
        FRIEND,
        f"{DROPPED}ip kproxy-policy %group: drop, but should be left as it is",
    ),
    Fault(
        "a member too many",
        "add element ip kproxy-policy %peers { 10.244.2.11 }",
        STRANGER,
        f"{LET_THROUGH}{IN_GROUP} th dport 8080 ip saddr @%peers accept{REFUSED}",
    ),
    Fault(
        "an element of the map missing",
        f"delete element ip kproxy-policy ingress {{ {WEB} }}",
        STRANGER,
        f"{LET_THROUGH}every rule of NetworkPolicies{REFUSED}",
    ),
    Fault(
        "a rule of the group changed",
        "insert rule ip kproxy-policy %group tcp dport 8080 accept",
        STRANGER,
        f"{LET_THROUGH}{IN_GROUP} th dport 8080 accept{REFUSED}",
    ),
    Fault(
        "the rules of the group lost",
        "flush chain ip kproxy-policy %group",
        STRANGER,
        f"{LET_THROUGH}ip kproxy-policy forward: ip daddr vmap @ingress -> goto %group{REFUSED}",
    ),
    Fault(
        "a refusal at the hook",
        f"insert rule ip kproxy-policy forward ip daddr {WEB} drop",
        FRIEND,
        f"{DROPPED}ip kproxy-policy forward: ip daddr {WEB} drop, but should be left as it is",
    ),
    Fault(
        "the hook without rules",
        "flush chain ip kproxy-policy forward",
        STRANGER,
        f"{LET_THROUGH}every rule of NetworkPolicies{REFUSED}",
    ),
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if reasons := Lab.missing():
        pytest.skip("; ".join(reasons))
    with Lab(SPEC) as made:
        yield made


@pytest.fixture(scope="module")
def site(lab: Lab) -> Iterator[Site]:
    made = Site(lab, Family.IPV4)
    yield made
    made.close()


@pytest.mark.root
@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        pytest.param(("nftables", "legacy")[number % 2], fault, id=fault.name)
        for number, fault in enumerate(FAULTS)
    ],
)
def test_a_planted_fault_is_named(lab: Lab, site: Site, kind: str, fault: Fault) -> None:
    judge = lab.node.call(Judge, lab, CONFIGS[kind])
    world = World(policies=objects(POLICY))
    lab.node.call(judge.program, world)
    try:
        cluster = lab.node.call(JudgedCluster, judge, CONFIGS[kind], world)
        (healthy,) = lab.node.call(ask, cluster, [fault.probe])
        assert healthy.differences == ()
        names = _names(lab.node)
        lab.node.run(["nft", _named(fault.command, names)])
        (report,) = lab.node.call(ask, cluster, [fault.probe])
        assert report.differences == (_named(fault.difference, names),)
        verdicts = Verdicts()
        judge_round(judge, lab, site, Family.IPV4, [fault.probe] * 3, verdicts)
        assert not verdicts.wrong, verdicts.wrong[0]
    finally:
        lab.node.run(["nft", "flush", "ruleset"])
        if kind == "legacy":
            for table in ("nat", "filter", "mangle"):
                lab.node.run(["iptables-legacy", "-t", table, "-F"])
                lab.node.run(["iptables-legacy", "-t", table, "-X"])


def _names(node: Namespace) -> dict[str, str]:
    """The group's chain, and the set of its last rule's peers."""
    listing = node.run(["nft", "list", "table", "ip", "kproxy-policy"]).stdout
    group = re.search(r"goto (i-\w+)", listing)
    peers = re.search(r"dport 8080 ip saddr @(p-\w+) accept", listing)
    assert group is not None
    assert peers is not None
    return {"%group": group[1], "%peers": peers[1]}


def _named(text: str, names: dict[str, str]) -> str:
    for word, name in names.items():
        text = text.replace(word, name)
    return text
