"""Every endpoint of a service port is used or has a reason; those without one are exactly the plan's."""

from typing import Any

import msgspec
import pytest
from hypothesis import given as cases
from hypothesis import settings
from hypothesis import strategies as st

from kproxy.addresses import Family
from kproxy.plan.exclusions import Judged, judge
from kproxy.plan.limits import Limits
from kproxy.plan.model import OutsideLimits, ServicePlan
from kproxy.plan.planner import Planner
from kproxy.plan.topology import Reason
from kproxy.plan.weights import effective
from tests.builders import NODE, Json, endpoint, endpoint_slice, given, plan_of, port, service


def judged(document: Json, *slices: Json, local: bool = False, node: Any = NODE) -> tuple[Judged, ...]:
    """Judge the endpoints of the first port."""
    plan = plan_of(document, *slices, node=node)
    return judge(given(document, *slices), Family.IPV4, node, plan.ports[0], local=local)


def why(found: tuple[Judged, ...]) -> dict[str, tuple[str, str] | None]:
    return {
        each.text: None if each.why is None else (each.why.reason.value, each.why.detail) for each in found
    }


READY = endpoint("10.0.0.1")


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (endpoint("10.0.0.2", ready=False), ("not ready", "")),
        (
            endpoint("10.0.0.2", ready=False, serving=True, terminating=True),
            ("terminating", "ready endpoints exist"),
        ),
        (
            endpoint("10.0.0.2", ready=False, serving=False, terminating=True),
            ("not serving", "terminating, and does not serve any more"),
        ),
    ],
)
def test_conditions_are_reasons(other: Json, expected: tuple[str, str]) -> None:
    found = why(judged(service(), endpoint_slice(READY, other)))
    assert found == {"10.0.0.1:80": None, "10.0.0.2:80": expected}


def test_a_terminating_endpoint_has_no_reason_while_it_is_used() -> None:
    other = endpoint("10.0.0.2", ready=False, serving=True, terminating=True)
    assert why(judged(service(), endpoint_slice(other))) == {"10.0.0.2:80": None}


def test_hints_name_the_zones_or_nodes_of_the_endpoint() -> None:
    zones = endpoint_slice(
        endpoint("10.0.0.1", zones=["zone-a"]), endpoint("10.0.0.2", zones=["zone-c", "zone-b"])
    )
    assert why(judged(service(), zones))["10.0.0.2:80"] == ("hint", "zones zone-b, zone-c")
    nodes = endpoint_slice(endpoint("10.0.0.1", nodes=["node1"]), endpoint("10.0.0.2", nodes=["node2"]))
    assert why(judged(service(), nodes))["10.0.0.2:80"] == ("hint", "nodes node2")


def test_the_policy_local_excludes_endpoints_of_other_nodes() -> None:
    slices = endpoint_slice(endpoint("10.0.0.1", node="node1"), endpoint("10.0.0.2", node="node2"))
    found = why(judged(service(internalTrafficPolicy="Local"), slices, local=True))
    assert found == {"10.0.0.1:80": None, "10.0.0.2:80": ("Local policy", "not on this node")}
    assert set(why(judged(service(externalTrafficPolicy="Cluster"), slices)).values()) == {None}


def test_weight_zero_excludes_unless_all_have_it() -> None:
    annotations = {"kproxy.io/weights": '{"node:old": 0}'}
    slices = endpoint_slice(READY, endpoint("10.0.0.2", node="old"))
    found = why(judged(service(annotations=annotations), slices))
    assert found["10.0.0.2:80"] == ("weight 0", "kproxy.io/weights")
    alone = endpoint_slice(endpoint("10.0.0.2", node="old"))
    assert why(judged(service(annotations=annotations), alone)) == {"10.0.0.2:80": None}


def test_endpoints_of_other_families_and_ports_are_listed_with_their_address() -> None:
    found = why(
        judged(
            service(),
            endpoint_slice(READY),
            endpoint_slice("fd00::1", name="six"),
            endpoint_slice("10.0.0.3", name="other", ports=[port(9090, "metrics")]),
            endpoint_slice("10.0.0.4", name="none", ports=[{"name": "p80", "protocol": "TCP"}]),
            endpoint_slice(endpoint("bad"), name="bad"),
        )
    )
    assert found == {
        "10.0.0.1:80": None,
        "fd00::1": ("wrong family", "IPv6"),
        "10.0.0.3": ("other port name", "metrics/TCP"),
        "10.0.0.4:0": ("no port number", ""),
        "bad:80": ("address not allowed", '"bad": not an IP address'),
    }


def test_an_address_in_two_slices_is_a_duplicate_in_one() -> None:
    gone = endpoint("10.0.0.1", ready=False, serving=True, terminating=True)
    found = judged(service(), endpoint_slice(READY, name="new"), endpoint_slice(gone, name="old"))
    assert [each.why and (each.why.reason, each.why.detail) for each in found] == [
        None,
        (Reason.DUPLICATE, "of ns1/new"),
    ]


def test_endpoints_beyond_a_limit_say_so() -> None:
    node = msgspec.structs.replace(NODE, limits=Limits(endpoints_per_port=1))
    found = why(judged(service(), endpoint_slice("10.0.0.1", "10.0.0.2"), node=node))
    assert found["10.0.0.1:80"] is None
    assert (found["10.0.0.2:80"] or ("",))[0] == "limit"


def test_endpoints_that_are_no_api_servers_are_not_allowed_behind_the_api_servers_address() -> None:
    view = msgspec.structs.replace(NODE, outside=OutsideLimits())
    api = given(
        service("kubernetes", "10.96.0.1", namespace="default", ports=[port(443, "https")]),
        endpoint_slice("192.0.2.1", service="kubernetes", namespace="default", ports=[port(443, "https")]),
    )
    front = given(
        service("front", "10.96.0.9", ports=[port(443, "https")], ingress=["192.0.2.1"]),
        endpoint_slice("192.0.2.1", "10.0.0.2", service="front", ports=[port(443, "https")]),
    )
    plans = Planner(Family.IPV4).update([api, front], view)
    found = why(judge(front, Family.IPV4, view, plans["ns1/front"].ports[0], local=False))
    assert found["192.0.2.1:443"] is None
    assert (found["10.0.0.2:443"] or ("",))[0] == "address not allowed"


def test_a_pod_is_named_by_the_endpoints_reference() -> None:
    named = READY | {"targetRef": {"kind": "Pod", "name": "web-1"}, "zone": "z", "nodeName": "n"}
    (found,) = judged(service(), endpoint_slice(named))
    assert (found.pod, found.node, found.zone) == ("ns1/web-1", "n", "z")


_ENDPOINTS = st.builds(
    lambda ip, node, zones, nodes, conditions: endpoint(
        ip, node=node, zones=zones, nodes=nodes, **conditions
    ),
    st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "no"]),
    st.sampled_from([None, "node1", "node2"]),
    st.sampled_from([[], [], ["zone-a"], ["zone-b"]]),
    st.sampled_from([[], [], ["node1"], ["node2"]]),
    st.fixed_dictionaries(
        {name: st.sampled_from([None, True, False]) for name in ("ready", "serving", "terminating")}
    ),
)
_PORTS = st.lists(
    st.builds(
        port,
        st.sampled_from([80, 81, 0, 70000]),
        st.sampled_from(["p80", "p81"]),
        st.sampled_from(["TCP", "UDP"]),
    ),
    min_size=1,
    max_size=2,
    unique_by=lambda each: (each["name"], each["protocol"]),
)
_SLICES = st.lists(
    st.builds(
        lambda endpoints, ports, family: endpoint_slice(*endpoints, ports=ports, address_type=family),
        st.lists(_ENDPOINTS, max_size=4),
        _PORTS,
        st.sampled_from(["IPv4", "IPv4", "IPv6"]),
    ),
    max_size=4,
)


@settings(max_examples=150, deadline=None)
@cases(
    slices=_SLICES,
    local=st.booleans(),
    weights=st.sampled_from([None, '{"node:node2": 0}', '{"*": 0}']),
    most=st.sampled_from([1, 2, 20_000]),
)
def test_those_without_a_reason_are_exactly_the_plans(
    slices: list[Json], local: bool, weights: str | None, most: int
) -> None:
    named = [each | {"metadata": each["metadata"] | {"name": f"s{n}"}} for n, each in enumerate(slices)]
    policy = "Local" if local else "Cluster"
    annotations = {"kproxy.io/weights": weights} if weights else None
    document = service(
        ports=[port(80, "p80"), port(81, "p81", "UDP")], annotations=annotations, internalTrafficPolicy=policy
    )
    node = msgspec.structs.replace(NODE, limits=Limits(endpoints_per_port=most))
    plan: ServicePlan = plan_of(document, *named, node=node)
    for planned in plan.ports:
        listed = planned.local if local else planned.cluster
        served = sorted(e.address_port for e, weight in zip(listed, effective(listed), strict=True) if weight)
        found = judge(given(document, *named), Family.IPV4, node, planned, local=local)
        assert [each.text for each in found if each.why is None] == served
        assert len(found) == sum(len(each["endpoints"]) for each in named)
