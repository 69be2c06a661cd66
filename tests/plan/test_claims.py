"""Contested addresses: who wins, who is told, and that the order of events has no say in it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy.addresses import Family
from kproxy.plan.model import ServicePlan
from kproxy.plan.planner import Planner
from kproxy.state.tables import ServiceInput
from tests import builders
from tests.builders import NODE, endpoint, endpoint_slice, port, service

OLD, NEW = "2025-01-01T00:00:00Z", "2026-01-01T00:00:00Z"


def _plans(*documents: dict[str, Any]) -> dict[str, ServicePlan]:
    return {p.key: p for p in builders.plans_of([builders.given(d) for d in documents])}


def _one(name: str, ip: str, created: str | None = NEW, **fields: Any) -> dict[str, Any]:
    return service(name, ip, created=created, **fields)


def test_the_older_service_keeps_an_external_ip_and_the_other_is_told() -> None:
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


def test_services_of_one_age_are_told_apart_by_name() -> None:
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


@pytest.mark.parametrize(
    ("policy", "holder"), [("Cluster", "older"), ("Local", "newer")], ids=["somewhere", "nowhere here"]
)
def test_an_address_goes_to_who_can_answer(policy: str, holder: str) -> None:
    """kube-proxy's rules for endpoints come before those that refuse, whatever the order of services."""
    older = _one("older", "10.96.0.1", OLD, externalIPs=["1.2.3.4"], externalTrafficPolicy=policy)
    newer = _one("newer", "10.96.0.2", NEW, externalIPs=["1.2.3.4"])
    theirs, ours = _elsewhere("older"), _elsewhere("newer")

    def who(*given: ServiceInput) -> set[str]:
        return {p.key for p in builders.plans_of(given) if p.ports[0].external_ips}

    assert who(builders.given(older), builders.given(newer)) == {"ns1/older"}
    assert who(builders.given(older), builders.given(newer, ours)) == {"ns1/newer"}
    assert who(builders.given(older, theirs), builders.given(newer)) == {"ns1/older"}
    assert who(builders.given(older, theirs), builders.given(newer, ours)) == {f"ns1/{holder}"}


def test_a_cluster_ip_is_never_taken_even_if_nobody_answers_there() -> None:
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
        _one("b", "10.96.0.2", OLD, externalIPs=["1.2.3.4"], ports=[port(nodePort=30080)]),
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


_NAMES = ("a", "b", "c", "d")
_SERVICES = st.fixed_dictionaries({
    "name": st.sampled_from(_NAMES),
    "externalTrafficPolicy": st.sampled_from(["Cluster", "Local"]),
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
_EVENTS = st.tuples(st.booleans(), _SERVICES, st.sampled_from([None, "node1", "node2"]))


@given(st.lists(_EVENTS, max_size=12), st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_any_history_ends_as_if_planned_from_scratch(
    events: list[tuple[bool, dict[str, Any], str | None]], random: Any
) -> None:
    planner = Planner(Family.IPV4)
    known: dict[str, ServiceInput] = {}
    held: dict[str, ServicePlan] = {}
    for present, fields, place in events:
        key = f"ns1/{fields['name']}"
        slices = [
            endpoint_slice(endpoint("10.1.0.1", node=place), service=fields["name"], ports=_PORTS_OF_SLICES)
        ] * (place is not None)
        given_now = (
            builders.given(service(**fields), *slices)
            if present
            else ServiceInput(key=key, revision=1, service=None, slices=())
        )
        known[key] = given_now
        held |= planner.update([given_now], NODE)
    inputs = list(known.values())
    random.shuffle(inputs)
    assert held == {p.key: p for p in builders.plans_of(inputs)}

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
