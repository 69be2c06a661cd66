"""Which UDP flows a change leaves stale, as a table."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from kproxy.plan.model import ServicePlan
from kproxy.plan.stale_conntrack import ConntrackTracker, StaleConntrack, stale_after, together
from tests.builders import endpoint, endpoint_slice, plan_of, port, service

DNS = [port(53, "dns", "UDP")]


def plan(*endpoints: Any, ports: list[Any] | None = None, **spec: Any) -> ServicePlan:
    """The plan of one DNS service."""
    pieces = [endpoint(e) if isinstance(e, str) else e for e in endpoints]
    return plan_of(
        service(ports=ports or DNS, **spec),
        endpoint_slice(*pieces, ports=[port(5353, "dns", "UDP")], address_type="IPv4"),
    )


ONE = ("10.1.0.1", 5353)
VIP = ("10.96.0.1", 53)


@pytest.mark.parametrize(
    ("before", "after", "stale", "kept"),
    [
        pytest.param(["10.1.0.1"], ["10.1.0.2"], [ONE, VIP], [("10.1.0.2", 5353)], id="endpoint replaced"),
        pytest.param(
            ["10.1.0.1", "10.1.0.2"], ["10.1.0.2"], [ONE], [("10.1.0.2", 5353)], id="one of two left"
        ),
        pytest.param(["10.1.0.1"], [], [ONE], [], id="the last one left"),
        pytest.param([], ["10.1.0.1"], [VIP], [ONE], id="the first one came"),
        pytest.param(["10.1.0.1"], ["10.1.0.1", "10.1.0.2"], [], [ONE, VIP], id="another one came"),
        pytest.param(["10.1.0.1"], ["10.1.0.1"], [], [ONE, VIP], id="nothing changed"),
        pytest.param(["10.1.0.1"], None, [ONE], [VIP, ("10.9.9.9", 53)], id="service deleted"),
        pytest.param(None, ["10.1.0.1"], [VIP], [ONE], id="service created, or found at a start"),
        pytest.param(None, [], [VIP, ONE], [], id="found at a start, its last endpoint gone"),
    ],
)
def test_changes(
    before: list[str] | None,
    after: list[str] | None,
    stale: list[tuple[str, int]],
    kept: list[tuple[str, int]],
) -> None:
    found = stale_after(
        plan(*before) if before is not None else None, plan(*after) if after is not None else None
    )
    for answers in stale:
        assert found.covers(*VIP, *answers)
    for answers in kept:
        assert not found.covers(*VIP, *answers)
    assert not found.covers("10.96.0.2", 53, *ONE)


def test_an_endpoint_that_terminates_but_answers_keeps_its_flows() -> None:
    ending = endpoint("10.1.0.1", ready=False, serving=True, terminating=True)
    found = stale_after(plan("10.1.0.1"), plan(ending, "10.1.0.2"))
    assert not found.covers(*VIP, *ONE)


def test_every_address_of_a_service_counts() -> None:
    exposed: dict[str, Any] = {
        "type": "LoadBalancer",
        "ingress": ["203.0.113.1"],
        "externalIPs": ["203.0.113.2"],
        "ports": [port(53, "dns", "UDP", nodePort=30053)],
    }
    found = stale_after(plan("10.1.0.1", **exposed), plan("10.1.0.2", **exposed))
    for ip, number in (("203.0.113.1", 53), ("203.0.113.2", 53), ("192.168.0.2", 30053)):
        assert found.covers(ip, number, *ONE)
    assert found.ports == {53, 30053}
    lost = stale_after(plan("10.1.0.1", **exposed), plan("10.1.0.1"))
    assert lost.covers("203.0.113.1", 53, *ONE)
    assert not lost.covers(*VIP, *ONE)


def test_flows_to_an_address_that_the_service_did_not_have_are_stale() -> None:
    exposed: dict[str, Any] = {
        "type": "NodePort",
        "externalIPs": ["203.0.113.2"],
        "ports": [port(53, "dns", "UDP", nodePort=30053)],
    }
    found = stale_after(plan("10.1.0.1"), plan("10.1.0.1", **exposed))
    for ip, number in (("203.0.113.2", 53), ("192.168.0.2", 30053)):
        assert found.covers(ip, number, ip, number)
        assert not found.covers(ip, number, *ONE)
    assert not found.covers(*VIP, *VIP)


def test_a_flow_to_a_node_ports_number_at_another_host_is_left_alone() -> None:
    spec: dict[str, Any] = {"type": "NodePort", "ports": [port(53, "dns", "UDP", nodePort=30053)]}
    found = stale_after(plan("10.1.0.1", **spec), plan("10.1.0.2", **spec))
    elsewhere, node = ("198.51.100.9", 30053), ("192.168.0.2", 30053)
    assert not found.covers(*elsewhere, *elsewhere, answered=True)
    assert found.covers(*node, *node, answered=False)
    assert found.covers(*node, *ONE, answered=True)
    assert found.covers(*VIP, *VIP, answered=True)


def test_tcp_is_left_alone() -> None:
    tcp = [port(80, "web")]
    before = plan_of(service(ports=tcp), endpoint_slice("10.1.0.1", ports=tcp))
    after = plan_of(service(ports=tcp), endpoint_slice("10.1.0.2", ports=tcp))
    assert stale_after(before, after) == StaleConntrack()


def test_services_that_exchange_addresses_at_once_take_over_the_flows() -> None:
    here: dict[str, Any] = {"ip": "10.96.0.1"}
    there: dict[str, Any] = {"ip": "10.96.0.2"}
    for changes in itertools.permutations(
        (
            stale_after(plan("10.1.0.1", **here), plan("10.1.0.1", **there)),
            stale_after(plan("10.1.0.2", **there), plan("10.1.0.2", **here)),
        )
    ):
        found = together(changes)
        assert found.covers(*VIP, *ONE)
        assert found.covers(*VIP, *VIP)
        assert not found.covers(*VIP, "10.1.0.2", 5353)
        assert found.covers("10.96.0.2", 53, "10.1.0.2", 5353)
        assert not found.covers("10.96.0.2", 53, *ONE)


def test_flows_are_unknown_when_a_service_is_first_applied_and_after_an_invalidation() -> None:
    tracker, here = ConntrackTracker(), {"ns/svc": plan("10.1.0.1")}
    assert tracker.update(here).covers(*VIP, *VIP)
    assert tracker.update(here) == StaleConntrack()
    assert tracker.update({"ns/svc": plan("10.1.0.2")}).covers(*VIP, *ONE)
    tracker.invalidate()
    again = tracker.update({"ns/svc": plan("10.1.0.2")})
    assert again.covers(*VIP, *ONE)
    assert not again.covers(*VIP, "10.1.0.2", 5353)
    assert tracker.update({"ns/svc": plan("10.1.0.2")}) == StaleConntrack()


def test_the_flows_of_a_service_stay_unknown_until_it_is_applied_itself() -> None:
    """A service that the kernel refuses is left out of the sync that applies the others."""
    tracker, late = ConntrackTracker(), plan("10.1.0.1")
    tracker.update({"ns/late": late, "ns/other": plan("10.1.0.3", ip="10.96.0.3")})
    tracker.invalidate()
    assert not tracker.update({"ns/other": plan("10.1.0.3", ip="10.96.0.3")}).covers(*VIP, *VIP)
    assert tracker.update({"ns/late": late}).covers(*VIP, *VIP)


def test_of_two_changes_the_later_counts() -> None:
    away = stale_after(plan("10.1.0.1"), None)
    back = stale_after(None, plan("10.1.0.1"))
    assert not away.then(back).covers(*VIP, *ONE)
    assert back.then(away).covers(*VIP, *ONE)


@pytest.mark.parametrize("serving", [["10.1.0.2"], []], ids=["others", "nobody"])
def test_at_a_start_all_flows_are_stale_but_those_to_endpoints_that_answer(serving: list[str]) -> None:
    found = stale_after(None, plan(*serving, type="NodePort", ports=[port(53, "dns", "UDP", nodePort=30053)]))
    for ip, number in (VIP, ("192.168.0.2", 30053)):
        assert found.covers(ip, number, *ONE)
        assert found.covers(ip, number, ip, number)
        assert [found.covers(ip, number, pod, 5353) for pod in serving] == [False] * len(serving)
    assert not found.covers("10.96.0.2", 53, *ONE)


@pytest.mark.parametrize("first", ["the one that goes", "the one that comes"])
def test_an_address_that_moves_to_another_service_keeps_what_that_one_answers(first: str) -> None:
    away, back = stale_after(plan("10.1.0.1", "10.1.0.3"), None), stale_after(None, plan("10.1.0.1"))
    found = together([away, back] if first == "the one that goes" else [back, away])
    assert not found.covers(*VIP, *ONE)
    assert found.covers(*VIP, "10.1.0.3", 5353)
