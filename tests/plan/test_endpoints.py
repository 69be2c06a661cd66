"""Endpoints from slices: of duplicates the better wins, whatever the order; a bad one costs only itself."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from kproxy.plan.limits import AFFINITY_COUNTS, Limits
from kproxy.plan.model import ServicePlan
from tests import builders
from tests.builders import endpoint, endpoint_slice, given, plan_of, plans_of, port, service

GOOD: dict[str, Any] = {"ready": True, "serving": True, "terminating": False}
DRAINING: dict[str, Any] = {"ready": False, "serving": True, "terminating": True}
DOWN: dict[str, Any] = {"ready": False, "serving": False, "terminating": False}
GONE: dict[str, Any] = {"ready": False, "serving": False, "terminating": True}
UNTIL_GONE: dict[str, Any] = {"ready": True, "serving": True, "terminating": True}
"""Of a service with publishNotReadyAddresses."""


@pytest.mark.parametrize(
    ("one", "other", "used"),
    [
        (GOOD, DRAINING, True),
        (GOOD, DOWN, True),
        (GOOD, GONE, True),
        (DRAINING, GONE, True),
        (DOWN, GONE, False),
        (DOWN, DRAINING, False),
        (DOWN, UNTIL_GONE, False),
    ],
)
def test_the_better_of_two_entries_wins(one: dict[str, Any], other: dict[str, Any], used: bool) -> None:
    for conditions in ((one, other), (other, one)):
        slices = [endpoint_slice(endpoint("10.1.0.1", **c), name=f"s{n}") for n, c in enumerate(conditions)]
        planned = builders.port_of(service(), *slices)
        assert [e.address_port for e in planned.cluster] == (["10.1.0.1:80"] if used else [])
        assert planned.endpoints == 1


def test_the_order_of_slices_never_matters() -> None:
    entries: list[dict[str, Any]] = [
        endpoint("10.1.0.1", node=node, **conditions)
        for node in (None, "node1", "node2")
        for conditions in (GOOD, DRAINING, DOWN)
    ]
    document = service(internalTrafficPolicy="Local", ports=[builders.port(nodePort=30000)], type="NodePort")
    for some in itertools.combinations(entries, 3):
        outcomes = {
            plans_of([given(document, *[endpoint_slice(e, name=f"s{n}") for n, e in enumerate(order)])])[0]
            for order in itertools.permutations(some)
        }
        assert len(outcomes) == 1


def test_the_same_pod_on_two_ports_is_two_endpoints() -> None:
    ports = [builders.port(80, "a"), builders.port(81, "b")]
    plan = builders.plan_of(service(ports=ports), endpoint_slice("10.1.0.1", ports=ports))
    assert [[e.address_port for e in p.cluster] for p in plan.ports] == [["10.1.0.1:80"], ["10.1.0.1:81"]]


def test_slices_with_different_target_ports_add_up() -> None:
    """During a rollout that renumbers a named target port, old and new pods stand in different slices."""
    old = endpoint_slice("10.1.0.1", name="old", ports=[builders.port(8080)])
    new = endpoint_slice("10.1.0.2", name="new", ports=[builders.port(9090)])
    planned = builders.port_of(service(), old, new)
    assert [e.address_port for e in planned.cluster] == ["10.1.0.1:8080", "10.1.0.2:9090"]


@pytest.mark.parametrize("entry", [{}, {"addresses": None}, {"addresses": []}], ids=str)
def test_an_endpoint_without_addresses_costs_only_itself(entry: dict[str, Any]) -> None:
    plan = plan_of(service(), endpoint_slice(entry, "10.1.0.1", address_type="IPv4"))
    assert [e.address_port for e in plan.ports[0].cluster] == ["10.1.0.1:80"]
    (problem,) = plan.problems
    assert (problem.object, problem.field) == ("EndpointSlice ns1/svc1-1", "endpoints[0].addresses")


def test_endpoints_with_affinity_are_rules_and_count_many_times() -> None:
    """Unready ones are left out first, and the problem names the limit."""
    limits = Limits(endpoints_per_service=4 * AFFINITY_COUNTS)
    node = msgspec.structs.replace(builders.NODE, limits=limits)
    numbers = [port(80, "a"), port(81, "b")]
    slices = endpoint_slice(
        endpoint("10.1.0.1", **DOWN), "10.1.0.2", "10.1.0.3", endpoint("10.1.0.4", **DOWN), ports=numbers
    )

    def planned(affinity: str) -> ServicePlan:
        return plan_of(service(ports=numbers, sessionAffinity=affinity), slices, node=node)

    sticky, plain = planned("ClientIP"), planned("None")
    assert [[each.ip for each in of.cluster] for of in sticky.ports] == [["10.1.0.2", "10.1.0.3"]] * 2
    assert [of.endpoints for of in sticky.ports] == [2, 2]
    assert "limits.endpointsPerService / 25" in sticky.problems[0].reason
    assert sticky.problems[0].refused
    assert [of.endpoints for of in plain.ports] == [4, 4]
    assert not plain.problems
