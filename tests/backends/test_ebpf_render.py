"""Which ports are frontends of the socket table, and how often each endpoint is among their slots."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kproxy.addresses import Family
from kproxy.backends.core.shares import slots, slots_of_port
from kproxy.backends.ebpf.config import SocketConfig
from kproxy.backends.ebpf.render import (
    describe_frontend,
    describe_slots,
    frontend_key,
    left_to_packets,
    render_service,
)
from kproxy.kernel.bpf.types import FRONTEND_KEY_BYTES
from kproxy.plan.model import ServicePlan
from tests.backends.ebpf_node import pods
from tests.builders import endpoint, endpoint_slice, plan_of, port, service

CONFIG = SocketConfig(Family.IPV4)
WEB = "10.96.0.1:80/TCP"


def _rendered(*objects: dict[str, Any], config: SocketConfig = CONFIG, **fields: Any) -> dict[str, list[str]]:
    plan = plan_of(service(**fields), *objects, family=config.family)
    return {
        describe_frontend(each.key, config.family): describe_slots(each.slots, config.family)
        for each in render_service(plan, config)
    }


def _ready(*endpoints: dict[str, Any]) -> dict[str, Any]:
    return endpoint_slice(*endpoints, ports=[port(8080)])


def test_a_tcp_cluster_ip_has_a_slot_for_each_endpoint() -> None:
    assert _rendered(pods(1, 2)) == {WEB: ["10.1.0.1:8080", "10.1.0.2:8080"]}


def test_only_the_cluster_ip_is_in_the_table() -> None:
    found = _rendered(
        pods(1),
        type="LoadBalancer",
        ports=[port(nodePort=30080)],
        externalIPs=["203.0.113.1"],
        ingress=["198.51.100.1"],
        loadBalancerSourceRanges=["198.18.0.0/24"],
    )
    assert found == {WEB: ["10.1.0.1:8080"]}


def test_other_protocols_are_left_to_packets() -> None:
    ports = [port(80), port(53, "dns", "UDP"), port(9, "sctp", "SCTP")]
    ready = endpoint_slice(
        endpoint("10.1.0.1"), ports=[port(8080), port(53, "dns", "UDP"), port(9, "sctp", "SCTP")]
    )
    assert list(_rendered(ready, ports=ports)) == [WEB]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"sessionAffinity": "ClientIP"}, "session affinity"),
        ({"internalTrafficPolicy": "Local"}, "no usable endpoint"),
        (
            {
                "type": "LoadBalancer",
                "ingress": ["10.96.0.1"],
                "loadBalancerSourceRanges": ["198.18.0.0/24"],
            },
            "source ranges",
        ),
    ],
    ids=["affinity", "local", "ranges"],
)
def test_what_a_socket_cannot_decide_is_left_to_packets(fields: dict[str, Any], reason: str) -> None:
    plan = plan_of(service(**fields), pods(1), family=Family.IPV4)
    assert render_service(plan, CONFIG) == ()
    assert reason in (left_to_packets(plan.ports[0], CONFIG) or "")


def test_no_endpoint_is_no_frontend() -> None:
    assert _rendered(pods()) == {}
    assert _rendered(pods(1, ready=False, serving=False)) == {}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"masquerade_all": True}, "masqueradeAll"),
        ({"enabled": False}, "off"),
        ({"local_addresses": frozenset({"10.96.0.1"})}, "address of the node"),
    ],
    ids=["masquerade-all", "off", "own address"],
)
def test_settings_of_the_node_keep_services_out(changed: dict[str, Any], reason: str) -> None:
    config = msgspec.structs.replace(CONFIG, **changed)
    plan = plan_of(service(), pods(1), family=Family.IPV4)
    assert render_service(plan, config) == ()
    assert reason in (left_to_packets(plan.ports[0], config) or "")


def test_policy_local_takes_the_endpoints_of_the_node() -> None:
    ready = _ready(endpoint("10.1.0.1", node="node1"), endpoint("10.1.0.2", node="node2"))
    assert _rendered(ready, internalTrafficPolicy="Local") == {WEB: ["10.1.0.1:8080"]}
    external = _rendered(ready, type="NodePort", externalTrafficPolicy="Local")
    assert external == {WEB: ["10.1.0.1:8080", "10.1.0.2:8080"]}


def test_terminating_endpoints_serve_while_there_are_no_others() -> None:
    last = endpoint("10.1.0.1", ready=False, serving=True, terminating=True)
    assert _rendered(_ready(last)) == {WEB: ["10.1.0.1:8080"]}
    assert _rendered(_ready(last, endpoint("10.1.0.2"))) == {WEB: ["10.1.0.2:8080"]}


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ('{"node:node1": 3, "*": 1}', [3, 1]),
        ('{"node:node1": 30, "*": 10}', [3, 1]),
        ('{"node:node1": 0, "*": 7}', [0, 1]),
        ('{"*": 0}', [1, 1]),
        ('{"node:node1": 65535, "*": 1}', [1024, 1]),
    ],
)
def test_weights_have_the_shares_of_the_other_modes(weights: str, shares: list[int]) -> None:
    ready = _ready(endpoint("10.1.0.1", node="node1"), endpoint("10.1.0.2", node="node2"))
    (found,) = _rendered(ready, annotations={"kproxy.io/weights": weights}).values()
    assert [found.count(f"10.1.0.{number}:8080") for number in (1, 2)] == shares


def test_many_ports_share_the_slots_for_weights() -> None:
    many = [port(80 + number, f"p{number}") for number in range(64)]
    ready = endpoint_slice(
        endpoint("10.1.0.1", node="node1"),
        endpoint("10.1.0.2", node="node2"),
        ports=[port(8080 + number, f"p{number}") for number in range(64)],
    )
    weights = {"kproxy.io/weights": '{"node:node1": 1000, "*": 1}'}
    found = _rendered(ready, ports=many, annotations=weights)
    expected = slots([1000, 1], slots_of_port(64))
    assert {len(each) for each in found.values()} == {sum(expected)}


def test_ipv6_slots_are_as_wide_as_the_array_has_them() -> None:
    config = SocketConfig(Family.IPV6)
    ready = _ready(endpoint("fd00:1::1"), endpoint("fd00:1::2"))
    plan = plan_of(service(ip="fd00:96::1"), ready, family=Family.IPV6)
    (frontend,) = render_service(plan, config)
    assert len(frontend.slots) == 2 * 24
    assert describe_frontend(frontend.key, Family.IPV6) == "[fd00:96::1]:80/TCP"
    assert describe_slots(frontend.slots, Family.IPV6) == ["[fd00:1::1]:8080", "[fd00:1::2]:8080"]


@pytest.mark.parametrize(("family", "ip"), [(Family.IPV4, "10.96.0.1"), (Family.IPV6, "fd00::1")])
def test_keys_are_as_long_as_the_map_wants_them(family: Family, ip: str) -> None:
    assert len(frontend_key(ip, 443, family)) == FRONTEND_KEY_BYTES[family]


def test_a_service_without_ports_has_no_frontends() -> None:
    assert render_service(ServicePlan("ns1/gone", Family.IPV4), CONFIG) == ()
