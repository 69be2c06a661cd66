"""Contested addresses: who wins, who is told, and that the order of events has no say in it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy.addresses import Family
from kproxy.plan.model import OutsideLimits, ServicePlan
from kproxy.plan.planner import Planner
from kproxy.state.tables import ServiceInput
from tests import builders
from tests.builders import NODE, endpoint, endpoint_slice, port, service
from tests.suite.matrix import examples

OLD, NEW = "2025-01-01T00:00:00Z", "2026-01-01T00:00:00Z"


def _plans(*documents: dict[str, Any]) -> dict[str, ServicePlan]:
    return {p.key: p for p in builders.plans_of([builders.given(d) for d in documents])}


def _one(name: str, ip: str, created: str | None = NEW, **fields: Any) -> dict[str, Any]:
    return service(name, ip, created=created, **fields)


def test_the_older_service_keeps_an_external_ip_and_the_other_reports_it() -> None:
    plans = _plans(
        _one("a", "10.96.0.1", NEW, externalIPs=["1.2.3.4", "1.2.3.5"]),
        _one("b", "10.96.0.2", OLD, externalIPs=["1.2.3.4"]),
    )
    loser, winner = plans["ns1/a"], plans["ns1/b"]
    assert winner.ports[0].external_ips == ("1.2.3.4",)
    assert winner.problems == ()
    assert loser.ports[0].external_ips == ("1.2.3.5",)
    (problem,) = loser.problems
    assert (problem.object, problem.field, problem.value) == (
        "Service ns1/a",
        "spec.externalIPs",
        '"1.2.3.4"',
    )
    assert "TCP port 80" in problem.reason
    assert "ns1/b:p80" in problem.reason


def test_services_of_one_age_are_ordered_by_name() -> None:
    plans = _plans(
        _one("b", "10.96.0.2", externalIPs=["1.2.3.4"]), _one("a", "10.96.0.1", externalIPs=["1.2.3.4"])
    )
    assert plans["ns1/a"].ports[0].external_ips == ("1.2.3.4",)
    assert plans["ns1/b"].ports[0].external_ips == ()


def test_a_service_without_age_counts_as_the_newest() -> None:
    plans = _plans(
        _one("a", "10.96.0.1", None, externalIPs=["1.2.3.4"]), _one("b", "10.96.0.2", externalIPs=["1.2.3.4"])
    )
    assert plans["ns1/b"].ports[0].external_ips == ("1.2.3.4",)


def test_a_cluster_ip_beats_an_older_external_ip() -> None:
    plans = _plans(
        _one("thief", "10.96.0.1", OLD, externalIPs=["10.96.0.2"]), _one("owner", "10.96.0.2", NEW)
    )
    assert plans["ns1/thief"].ports[0].external_ips == ()
    assert plans["ns1/thief"].problems[0].field == "spec.externalIPs"
    assert plans["ns1/owner"].problems == ()


def _elsewhere(name: str) -> dict[str, Any]:
    return endpoint_slice(endpoint("10.1.0.1", node="node2"), service=name)


@pytest.mark.parametrize("policy", ["Cluster", "Local"])
@pytest.mark.parametrize("kind", ["external", "balancer", "node port"])
def test_only_a_service_that_would_refuse_loses_to_a_younger_one(policy: str, kind: str) -> None:
    """Policy Local on a node without an endpoint drops packets, so that a load balancer goes elsewhere."""
    fields: dict[str, Any] = {"externalTrafficPolicy": policy, "type": "LoadBalancer"}
    if kind == "node port":
        fields["ports"] = [port(nodePort=30080)]
    else:
        fields["externalIPs" if kind == "external" else "ingress"] = ["1.2.3.4"]
    older = _one("older", "10.96.0.1", OLD, **fields)
    newer = _one("newer", "10.96.0.2", NEW, **fields)
    theirs, ours = _elsewhere("older"), _elsewhere("newer")

    def who(*given: ServiceInput) -> set[str]:
        return {p.key for p in builders.plans_of(given) if p.ports[0].externally_accessible}

    assert who(builders.given(older), builders.given(newer)) == {"ns1/older"}
    assert who(builders.given(older), builders.given(newer, ours)) == {"ns1/newer"}
    assert who(builders.given(older, theirs), builders.given(newer)) == {"ns1/older"}
    assert who(builders.given(older, theirs), builders.given(newer, ours)) == {"ns1/older"}


@pytest.mark.parametrize("place", ["node1", "node2", None])
@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_every_node_finds_the_same_winner(policy: str, place: str | None) -> None:
    """An older service with policy Local keeps its address where it has no endpoint, and where it has one."""
    older = _one("older", "10.96.0.1", OLD, ingress=["1.2.3.4"], externalTrafficPolicy=policy)
    older["spec"]["type"] = "LoadBalancer"
    newer = _one("newer", "10.96.0.2", NEW, ingress=["1.2.3.4"])
    theirs = endpoint_slice(endpoint("10.1.0.1", node=place), service="older")
    local = endpoint_slice(endpoint("10.1.0.2", node="node1"), service="newer")
    given_now = [builders.given(older, theirs), builders.given(newer, local)]
    for name in ("node1", "node2"):
        plans = builders.plans_of(given_now, node=msgspec.structs.replace(NODE, name=name))
        assert {p.key for p in plans if p.ports[0].load_balancer_ips} == {"ns1/older"}


@pytest.mark.parametrize("serving", [True, False], ids=["with endpoints", "without"])
def test_a_load_balancers_address_is_not_taken_by_an_external_ip(serving: bool) -> None:
    """Not even by an older service, nor from one that has no endpoint just now."""
    owner = _one("owner", "10.96.0.1", NEW, ingress=["1.2.3.4"], type="LoadBalancer")
    thief = _one("thief", "10.96.0.2", OLD, externalIPs=["1.2.3.4"])
    plans = builders.plans_of(
        [
            builders.given(owner, *[_elsewhere("owner")] * serving),
            builders.given(thief, _elsewhere("thief")),
        ]
    )
    assert plans[0].ports[0].load_balancer_ips == ("1.2.3.4",)
    assert plans[1].ports[0].external_ips == ()
    assert "ns1/owner" in plans[1].problems[0].reason


def test_a_cluster_ip_is_never_taken_even_without_endpoints() -> None:
    thief = _one("thief", "10.96.0.1", OLD, externalIPs=["10.96.0.2"])
    plans = builders.plans_of(
        [
            builders.given(thief, _elsewhere("thief")),
            builders.given(_one("owner", "10.96.0.2")),
        ]
    )
    assert plans[0].ports[0].external_ips == ()


def test_an_endpoint_that_comes_and_goes_takes_the_address_along() -> None:
    planner = Planner(Family.IPV4)
    older = _one("older", "10.96.0.1", OLD, externalIPs=["1.2.3.4"])
    newer = builders.given(_one("newer", "10.96.0.2", externalIPs=["1.2.3.4"]), _elsewhere("newer"))
    planner.update([builders.given(older), newer], NODE)
    for slices, holds in (((_elsewhere("older"),), True), ((), False)):
        changed = planner.update([builders.given(older, *slices)], NODE)
        assert {key: bool(p.ports[0].external_ips) for key, p in changed.items()} == {
            "ns1/older": holds,
            "ns1/newer": not holds,
        }


def test_another_port_or_protocol_is_no_contest() -> None:
    plans = _plans(
        _one("a", "10.96.0.1", externalIPs=["1.2.3.4"]),
        _one("b", "10.96.0.2", externalIPs=["1.2.3.4"], ports=[port(81)]),
        _one("c", "10.96.0.3", externalIPs=["1.2.3.4"], ports=[port(80, protocol="UDP")]),
    )
    assert all(p.problems == () and p.ports[0].external_ips == ("1.2.3.4",) for p in plans.values())


def test_node_ports_and_load_balancer_addresses_are_contested_too() -> None:
    plans = _plans(
        _one("a", "10.96.0.1", NEW, ingress=["1.2.3.4"], ports=[port(nodePort=30080)]),
        _one("b", "10.96.0.2", OLD, ingress=["1.2.3.4"], ports=[port(nodePort=30080)]),
    )
    assert (plans["ns1/a"].ports[0].load_balancer_ips, plans["ns1/a"].ports[0].node_port) == ((), 0)
    assert sorted(p.field for p in plans["ns1/a"].problems) == ["nodePort", "status.loadBalancer.ingress"]


def test_of_two_equal_cluster_ips_one_is_not_served() -> None:
    plans = _plans(_one("a", "10.96.0.1", NEW), _one("b", "10.96.0.1", OLD))
    assert plans["ns1/a"].ports == ()
    assert plans["ns1/a"].problems[0].field == "spec.clusterIP"
    assert len(plans["ns1/b"].ports) == 1


def test_a_port_that_is_not_served_takes_no_address_from_others() -> None:
    """`a` lost its cluster IP, and with it its port: the older `a` has no use for 1.2.3.4, `c` has."""
    plans = _plans(
        _one("a", "10.96.0.1", "2025-06-01T00:00:00Z", externalIPs=["1.2.3.4"], ports=[port(nodePort=30080)]),
        _one("b", "10.96.0.1", OLD),
        _one("c", "10.96.0.3", NEW, externalIPs=["1.2.3.4"], ports=[port(nodePort=30080)]),
    )
    assert plans["ns1/a"].ports == ()
    assert plans["ns1/c"].ports[0].external_ips == ("1.2.3.4",)
    assert plans["ns1/c"].ports[0].node_port == 30080
    assert plans["ns1/c"].problems == ()


def test_one_service_may_name_its_own_address_twice() -> None:
    plan = builders.plan_of(_one("a", "10.96.0.1", externalIPs=["10.96.0.1", "1.2.3.4"], ingress=["1.2.3.4"]))
    assert plan.problems == ()
    assert plan.ports[0].external_ips == ("10.96.0.1", "1.2.3.4")
    assert plan.ports[0].load_balancer_ips == ("1.2.3.4",)


def test_two_ports_of_a_service_cannot_share_a_node_port() -> None:
    plan = builders.plan_of(service(ports=[port(nodePort=30080), port(81, "z", nodePort=30080)]))
    assert [p.node_port for p in plan.ports] == [30080, 0]
    assert plan.problems[0].field == "nodePort"


def test_when_the_winner_leaves_the_loser_takes_over() -> None:
    planner = Planner(Family.IPV4)
    winner = builders.given(_one("w", "10.96.0.1", OLD, externalIPs=["1.2.3.4"]))
    loser = builders.given(_one("l", "10.96.0.2", NEW, externalIPs=["1.2.3.4"]))
    planner.update([loser], NODE)
    changed = planner.update([winner], NODE)
    assert set(changed) == {"ns1/w", "ns1/l"}
    assert changed["ns1/l"].ports[0].external_ips == ()
    changed = planner.update([ServiceInput("ns1/w", 2, None, ())], NODE)
    assert changed["ns1/w"].ports == ()
    assert changed["ns1/l"].ports[0].external_ips == ("1.2.3.4",)
    assert changed["ns1/l"].problems == ()


@pytest.mark.parametrize("internal", ["Cluster", "Local"])
@pytest.mark.parametrize("external", ["Cluster", "Local"])
def test_losing_an_address_leaves_the_plan_of_a_service_that_never_named_it(
    internal: str, external: str
) -> None:
    """Policies in use depend on the addresses that are left; so do the endpoints that need chains."""
    slices = endpoint_slice(
        endpoint("10.1.0.1", node="node1"), endpoint("10.1.0.2", node="node2"), service="loser"
    )
    fields: dict[str, Any] = {
        "internalTrafficPolicy": internal,
        "externalTrafficPolicy": external,
        "type": "NodePort",
    }
    loser = service("loser", "10.96.0.2", ports=[port(nodePort=30080)], **fields)
    alone = service("loser", "10.96.0.2", **fields)
    winner = service("winner", "10.96.0.1", created=OLD, ports=[port(nodePort=30080)])
    settled = builders.plans_of(
        [
            builders.given(loser, slices),
            builders.given(winner, _elsewhere("winner")),
        ]
    )[0]
    assert settled.ports == builders.plan_of(alone, slices).ports


LOCAL = msgspec.structs.replace(NODE, outside=OutsideLimits(local=frozenset({"192.168.0.2"})))


@pytest.mark.parametrize(
    ("claimant", "kept"), [(OLD, True), (NEW, False)], ids=["older keeps it", "younger does not get it"]
)
def test_a_health_check_port_is_not_captured_by_a_younger_service(claimant: str, *, kept: bool) -> None:
    """The agent answers the load balancer's checks at this port itself, on every address of the node."""
    checked = _one(
        "checked",
        "10.96.0.1",
        "2025-06-01T00:00:00Z",
        type="LoadBalancer",
        externalTrafficPolicy="Local",
        healthCheckNodePort=31000,
    )
    thief = _one(
        "thief",
        "10.96.0.2",
        claimant,
        externalIPs=["192.168.0.2", "1.2.3.4"],
        ports=[port(31000), port(81, "b", nodePort=31000), port(31000, "c", protocol="UDP")],
    )
    inputs = [builders.given(checked), builders.given(thief)]
    plan = builders.plans_of(inputs, node=LOCAL)[1]
    at_port, other, datagrams = plan.ports
    assert ("192.168.0.2" in at_port.external_ips, other.node_port == 31000) == (kept, kept)
    assert "1.2.3.4" in at_port.external_ips
    assert datagrams.external_ips == ("192.168.0.2", "1.2.3.4")
    assert ["healthCheckNodePort of ns1/checked" in p.reason for p in plan.problems] == [True] * (
        2 - 2 * kept
    )

    planner = Planner(Family.IPV4)
    alone = planner.update([inputs[1]], LOCAL)["ns1/thief"]
    assert alone.ports[0].external_ips == ("192.168.0.2", "1.2.3.4")
    changed = planner.update([inputs[0]], LOCAL)
    assert changed.get("ns1/thief", alone) == plan
    gone = planner.update([ServiceInput("ns1/checked", 2, None, ())], LOCAL)
    assert gone.get("ns1/thief", alone) == alone


_NAMES = ("a", "b", "c", "kubernetes")
_SERVICES = st.fixed_dictionaries({
    "name": st.sampled_from(_NAMES),
    "type": st.sampled_from(["LoadBalancer", "NodePort"]),
    "externalTrafficPolicy": st.sampled_from(["Cluster", "Local"]),
    "healthCheckNodePort": st.sampled_from([0, 80, 30080]),
    "ip": st.sampled_from(["10.96.0.1", "10.96.0.2", "10.96.0.3", "1.2.3.4"]),
    "created": st.sampled_from([OLD, NEW, None]),
    "externalIPs": st.lists(st.sampled_from(["1.2.3.4", "1.2.3.5", "10.96.0.1"]), max_size=2),
    "ingress": st.lists(st.sampled_from(["1.2.3.4", "1.2.3.6"]), max_size=2),
    "ports": st.lists(
        st.builds(
            port,
            st.sampled_from([80, 81]),
            st.sampled_from(["x", "y"]),
            st.sampled_from(["TCP", "UDP"]),
            nodePort=st.sampled_from([0, 30080, 30081]),
        ),
        min_size=1,
        max_size=2,
    ),
})  # fmt: skip


_PORTS_OF_SLICES = [{"name": n, "port": 8080, "protocol": p} for n in ("x", "y") for p in ("TCP", "UDP")]
_VIEW = msgspec.structs.replace(
    NODE,
    outside=OutsideLimits(
        local=frozenset({"1.2.3.5"}),
        listeners=frozenset({("", 30081)}),
        api_servers=frozenset({("1.2.3.6", 80), ("1.2.3.4", 81)}),
    ),
)
_EVENTS = st.tuples(st.booleans(), _SERVICES, st.sampled_from([None, "node1", "node2"]))


@given(st.lists(_EVENTS, max_size=12), st.randoms(use_true_random=False))
@settings(max_examples=examples(300), deadline=None)
def test_any_history_ends_as_if_planned_from_scratch(
    events: list[tuple[bool, dict[str, Any], str | None]], random: Any
) -> None:
    planner = Planner(Family.IPV4)
    known: dict[str, ServiceInput] = {}
    held: dict[str, ServicePlan] = {}
    for present, fields, place in events:
        space = "default" if fields["name"] == "kubernetes" else "ns1"
        key = f"{space}/{fields['name']}"
        slices = [
            endpoint_slice(
                endpoint("10.1.0.1", node=place),
                service=fields["name"],
                namespace=space,
                ports=_PORTS_OF_SLICES,
            )
        ] * (place is not None)
        given_now = (
            builders.given(service(**fields, namespace=space), *slices)
            if present
            else ServiceInput(key=key, revision=1, service=None, slices=())
        )
        known[key] = given_now
        held |= planner.update([given_now], _VIEW)
    inputs = list(known.values())
    random.shuffle(inputs)
    assert held == {p.key: p for p in builders.plans_of(inputs, node=_VIEW)}

    owners: dict[tuple[str, int, str], str] = {}
    for plan in held.values():
        for each in plan.ports:
            frontends = {
                (ip, each.port) for ip in (each.cluster_ip, *each.external_ips, *each.load_balancer_ips)
            }
            if each.node_port:
                frontends.add(("", each.node_port))
            for address, number in frontends:
                owner = f"{each.name} {each.protocol}"
                assert owners.setdefault((address, number, each.protocol), owner) == owner
