"""What goes beyond a limit is named in the status, by an Event and in a metric; the rest is served."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from kproxy.plan.limits import (
    ANNOTATION_CHARACTERS,
    GLOB_CHARACTERS,
    SELECTORS,
    YAML_CHARACTERS,
    Limits,
)
from kproxy.plan.model import OutsideLimits, ServicePlan
from kproxy.state.kinds import Kind
from kproxy.state.store import ObjectStore
from kproxy.telemetry import series
from kproxy.telemetry.collection import readers
from kproxy.telemetry.events import Notice, Reason
from kproxy.telemetry.metrics import Metrics
from kproxy.telemetry.observer import SyncObserver
from tests import builders
from tests.builders import Json, endpoint_slice, plan_of, port, service

PORTS = [port(80 + n, f"p{n}") for n in range(4)]
WEIGHTS = "kproxy.io/weights"
OUTSIDE = ["198.51.100.1", "198.51.100.2", "198.51.100.3"]


def pods(count: int, ports: list[Json] | None = None) -> Json:
    return endpoint_slice(*(f"10.1.0.{n + 1}" for n in range(count)), ports=ports or [port(80, "p80")])


def served(plan: ServicePlan) -> list[Any]:
    return [len(plan.ports), *(plan.ports[0].endpoints, len(plan.ports[0].external_ips))]


def annotated(text: str) -> tuple[Json, Json]:
    return service(annotations={WEIGHTS: text}), pods(2)


CASES: dict[str, tuple[Limits, tuple[Json, Json], str, Callable[[ServicePlan], object], object]] = {
    "endpoints of a port": (
        Limits(endpoints_per_port=2), (service(), pods(5)), "limits.endpointsPerPort", served, [1, 2, 0],
    ),
    "endpoints of all ports": (
        Limits(endpoints_per_service=8),
        (service(ports=PORTS), pods(5, PORTS)),
        "limits.endpointsPerService",
        served,
        [4, 2, 0],
    ),
    "endpoints with affinity": (
        Limits(endpoints_per_service=50),
        (service(sessionAffinity="ClientIP"), pods(5)),
        "with session affinity (limits.endpointsPerService / 25)",
        served,
        [1, 2, 0],
    ),
    "ports": (
        Limits(ports_per_service=3), (service(ports=PORTS), pods(1, PORTS)), "limits.portsPerService",
        served, [3, 1, 0],
    ),
    "addresses x ports": (
        Limits(frontends_per_service=8),
        (service(ports=PORTS, externalIPs=OUTSIDE), pods(1, PORTS)),
        "limits.frontendsPerService=8",
        served,
        [4, 1, 1],
    ),
    "elements": (
        Limits(elements_per_service=15),
        (service(externalIPs=OUTSIDE), pods(5)),
        "limits.elementsPerService=15",
        served,
        [1, 5, 2],
    ),
    "source ranges": (
        Limits(source_ranges_per_service=1),
        (
            service(
                type="LoadBalancer",
                ingress=["203.0.113.1"],
                loadBalancerSourceRanges=["10.1.0.0/16", "10.2.0.0/16"],
            ),
            pods(1),
        ),
        "limits.sourceRangesPerService",
        lambda plan: plan.ports[0].source_ranges,
        ("10.1.0.0/16",),
    ),
    "a long annotation": (
        Limits(), annotated("[" * (ANNOTATION_CHARACTERS + 1)), f"longer than {ANNOTATION_CHARACTERS}",
        served, [1, 2, 0],
    ),
    "a long annotation of YAML": (
        Limits(), annotated("a: " * YAML_CHARACTERS), f"YAML of at most {YAML_CHARACTERS}",
        served, [1, 2, 0],
    ),
    "many selectors": (
        Limits(),
        annotated(json.dumps({f"pod:a{n}": 1 for n in range(SELECTORS + 1)})),
        f"more than {SELECTORS} selectors",
        served,
        [1, 2, 0],
    ),
    "a long selector": (
        Limits(), annotated(json.dumps({"pod:" + "a" * (GLOB_CHARACTERS + 1): 1})),
        f"longer than {GLOB_CHARACTERS}", served, [1, 2, 0],
    ),
}  # fmt: skip
"""Limits, objects beyond one of them, what is said of it, and what is served nevertheless."""


@pytest.mark.parametrize("case", CASES)
def test_what_is_beyond_a_limit_is_named_and_the_rest_is_served(case: str) -> None:
    limits, objects, said, part, expected = CASES[case]
    # Where the node holds the addresses, as in IPVS mode, every frontend has its own destinations.
    outside = OutsideLimits(holds_addresses=case == "elements")
    node = msgspec.structs.replace(builders.NODE, limits=limits, outside=outside)
    plan = plan_of(*objects, node=node)
    assert part(plan) == expected
    notices: list[Notice] = []
    observer = SyncObserver(Metrics(), notices.append)
    observer.problems({plan.key: plan.problems})
    (problem,) = observer.known_problems()
    assert problem.object == "Service ns1/svc1"
    assert said in problem.reason
    (notice,) = notices
    assert (notice.reason, notice.service) == (Reason.REFUSED, plan.key)
    assert said in notice.note
    found = dict(readers(None, None, ObjectStore([Kind.SERVICE]), observer, 0))["objects"]()  # type: ignore[arg-type]
    assert {each.series: each.value for each in found}[series.PROBLEMS] == 1


def test_nothing_is_named_at_the_limit() -> None:
    limits = Limits(
        endpoints_per_port=2, endpoints_per_service=8, ports_per_service=4, frontends_per_service=16
    )
    node = msgspec.structs.replace(builders.NODE, limits=limits)
    plan = plan_of(service(ports=PORTS, externalIPs=OUTSIDE), pods(2, PORTS), node=node)
    assert (served(plan), plan.problems) == ([4, 2, 3], ())
