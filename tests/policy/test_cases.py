"""The table without packets: the oracle and the program's plan agree with every hand-written verdict."""

import ipaddress
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any, cast

import pytest

from kproxy.addresses import Family
from kproxy.plan.model import Protocol
from kproxy.plan.policy.planner import PolicyPlanner
from kproxy.state.decode import decode
from kproxy.state.kinds import Kind
from kproxy_lab.lab import Pod
from kproxy_lab.lab.topology import NODE, PEER
from tests.packets.objects import FAMILIES
from tests.plan.policy.kernel import passes
from tests.policy import objects
from tests.policy.cases import ALL, Case
from tests.policy.objects import JSON
from tests.policy.oracle import Oracle, problem
from tests.policy.world import judge, parse

NOWHERE: Any = None


def placed() -> dict[str, Pod]:
    """The pods of the lab without a lab."""
    found = {}
    for key, place in objects.PLACES.items():
        kind, _, number = place.at.partition("-")
        where, addresses = {
            "local": (objects.SPEC.node_name, NODE.pod),
            "routed": (objects.SPEC.node_name, NODE.routed_pod),
            "remote": (objects.SPEC.peer_name, PEER.pod),
        }[kind]
        found[key] = Pod(place.at, *addresses(int(number)), where, kind != "remote", NOWHERE)
    return found


PODS = placed()
HOSTS = [
    Pod("node-a", NODE.ip4[0], NODE.ip6[0], "node-a", True, NOWHERE),  # noqa: FBT003
    Pod("node-b", PEER.ip4[0], PEER.ip6[0], "node-b", False, NOWHERE),  # noqa: FBT003
]


def test_names_are_unique_and_every_point_that_packets_alone_show_has_cases() -> None:
    assert Counter(case.name for case in ALL).most_common(1)[0][1] == 1
    assert {point for case in ALL for point in case.points} == {*range(1, 10), 12, 16}


@pytest.mark.parametrize("case", ALL, ids=str)
def test_the_oracle_agrees_with_the_table(case: Case) -> None:
    standing = objects.base(PODS, HOSTS) | objects.by_key(case.build(PODS))
    for key in case.gone:
        del standing[key]
    oracle = Oracle(standing.values(), objects.SPEC.node_name)
    ips = objects.addresses(PODS)
    flows = parse(case.flows)
    assert {str(each): judge(oracle, ips, each) for each in flows} == {
        str(each): cast("bool", each.open) for each in flows
    }
    unreadable = [
        policy for policy in standing.values() if policy["kind"] == "NetworkPolicy" and problem(policy)
    ]
    assert bool(unreadable) == (16 in case.points)


def planned(standing: Iterable[JSON]) -> PolicyPlanner:
    """What the program plans of these objects."""
    kinds = {"Pod": Kind.POD, "Namespace": Kind.NAMESPACE, "NetworkPolicy": Kind.NETWORK_POLICY}
    found: dict[str, dict[str, Any]] = {name: {} for name in kinds}
    for obj in standing:
        decoded = decode(kinds[obj["kind"]], json.dumps(obj).encode())
        found[obj["kind"]][decoded.key] = decoded
    return PolicyPlanner.full(objects.SPEC.node_name, tuple(Family), *found.values())


@pytest.mark.parametrize("case", ALL, ids=str)
def test_the_program_explains_what_the_table_says(case: Case) -> None:
    standing = objects.base(PODS, HOSTS) | objects.by_key(case.build(PODS))
    for key in case.gone:
        del standing[key]
    planner, ips = planned(standing.values()), objects.addresses(PODS)
    for flow in parse(case.flows):
        if flow.protocol == "ICMP":
            continue
        at = FAMILIES.index(flow.family)
        source, destination = ips[flow.source][at], ips[flow.destination][at]
        judged = planner.judge(
            Protocol(flow.protocol), source, destination, flow.port, from_node=flow.source == "node"
        )
        assert judged.allowed == flow.open, f"{flow}: {judged.reason}"
        assert judged.allowed != bool(judged.reason)
        table = planner.tables[Family.IPV4 if flow.family == 4 else Family.IPV6]
        if flow.source != "node":
            assert (
                passes(table, judged.protocol, canonical(source), canonical(destination), flow.port)
                == flow.open
            )


def canonical(ip: str) -> str:
    return str(ipaddress.ip_address(ip))
