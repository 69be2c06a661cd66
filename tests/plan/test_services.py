"""One Service and its slices become a plan: each line of the semantics, and a report of each defect."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.addresses import Family
from kproxy.plan.model import NodeView, PortPlan, Protocol, Verdict
from tests import builders
from tests.builders import endpoint, endpoint_slice, plan_of, port, port_of, service

V4, V6 = Family.IPV4, Family.IPV6
both_families = pytest.mark.parametrize("family", [V4, V6])


def _texts(endpoints: tuple[Any, ...]) -> list[str]:
    return [e.address_port for e in endpoints]


def test_a_cluster_ip_service() -> None:
    planned = port_of(service(), endpoint_slice("10.1.0.2", "10.1.0.1"))
    assert (planned.name, planned.protocol, planned.cluster_ip, planned.port) == (
        "ns1/svc1:p80", Protocol.TCP, "10.96.0.1", 80,
    )  # fmt: skip
    assert _texts(planned.cluster) == _texts(planned.reachable) == ["10.1.0.1:80", "10.1.0.2:80"]
    assert planned.local == ()
    assert (planned.internal, planned.external) == (Verdict.FORWARD, Verdict.FORWARD)
    assert (planned.has_endpoints, planned.endpoints) == (True, 2)
    assert not planned.externally_accessible
    assert planned.affinity_seconds is None


def test_a_port_without_a_name() -> None:
    planned = port_of(
        service(ports=[port(name=None)]), endpoint_slice("10.1.0.1", ports=[{"name": "", "port": 8080}])
    )
    assert planned.name == "ns1/svc1"
    assert _texts(planned.cluster) == ["10.1.0.1:8080"]


def test_a_slice_port_whose_name_is_missing_belongs_to_no_port() -> None:
    unnamed = {**endpoint_slice("10.1.0.1"), "ports": [{"port": 8080, "protocol": "TCP"}]}
    planned = port_of(service(ports=[port(name=None)]), unnamed)
    assert planned.cluster == ()
    assert not planned.has_endpoints


def test_dual_stack() -> None:
    document = service(
        ip=["10.96.0.1", "fd00:96::1"],
        type="LoadBalancer",
        externalIPs=["fd00:5::1", "203.0.113.1"],
        ingress=["203.0.113.9", "fd00:5::9"],
        loadBalancerSourceRanges=["10.0.0.0/8", "fd00::/16"],
        ports=[port(nodePort=30080)],
    )
    slices = endpoint_slice("10.1.0.1"), endpoint_slice("fd00:1::1", name="svc1-6")
    four, six = port_of(document, *slices, family=V4), port_of(document, *slices, family=V6)
    assert (four.cluster_ip, six.cluster_ip) == ("10.96.0.1", "fd00:96::1")
    assert (four.external_ips, six.external_ips) == (("203.0.113.1",), ("fd00:5::1",))
    assert (four.load_balancer_ips, six.load_balancer_ips) == (("203.0.113.9",), ("fd00:5::9",))
    assert (four.source_ranges, six.source_ranges) == (("10.0.0.0/8",), ("fd00::/16",))
    assert (_texts(four.cluster), _texts(six.cluster)) == (["10.1.0.1:80"], ["[fd00:1::1]:80"])
    assert (four.node_port, six.node_port) == (30080, 30080)


def test_the_second_family_may_be_first() -> None:
    document = service(ip=["fd00:96::1", "10.96.0.1"])
    assert port_of(document, family=V4).cluster_ip == "10.96.0.1"
    assert port_of(document, family=V6).cluster_ip == "fd00:96::1"


@both_families
def test_a_service_of_the_other_family_has_no_ports(family: Family) -> None:
    other = "fd00:96::1" if family is V4 else "10.96.0.1"
    plan = plan_of(service(ip=other, externalIPs=["1.2.3.4", "fd00::1"]), family=family)
    assert (plan.ports, plan.problems) == ((), ())


@pytest.mark.parametrize(
    "document",
    [
        service(ip="None"),
        service(ip=""),
        service(type="ExternalName", ip=""),
        service(type="ExternalName", externalName="example.com"),
        {"metadata": {"name": "svc1", "namespace": "ns1"}},
        service(ports=[]),
    ],
)
def test_headless_and_external_name_services_have_no_ports(document: dict[str, Any]) -> None:
    plan = plan_of(document, endpoint_slice("10.1.0.1"))
    assert (plan.ports, plan.problems) == ((), ())


def test_the_cluster_ip_alone_is_enough() -> None:
    document = service()
    del document["spec"]["clusterIPs"]
    assert port_of(document).cluster_ip == "10.96.0.1"
    document = service()
    del document["spec"]["clusterIP"]
    assert port_of(document).cluster_ip == "10.96.0.1"


@pytest.mark.parametrize("protocol", ["TCP", "UDP", "SCTP"])
def test_protocols(protocol: str) -> None:
    wanted = port(protocol=protocol)
    other = port(protocol="UDP" if protocol == "TCP" else "TCP")
    document = service(ports=[wanted])
    assert port_of(document, endpoint_slice("10.1.0.1", ports=[wanted])).protocol == protocol
    assert _texts(port_of(document, endpoint_slice("10.1.0.1", ports=[wanted])).cluster) == ["10.1.0.1:80"]
    assert port_of(document, endpoint_slice("10.1.0.1", ports=[other])).cluster == ()


def test_several_ports_and_one_number_with_two_protocols() -> None:
    ports = [port(53, "dns"), port(53, "dns-udp", "UDP"), port(9153, "metrics")]
    targets = [port(1053, "dns"), port(1053, "dns-udp", "UDP"), port(9153, "metrics")]
    plan = plan_of(service(ports=ports), endpoint_slice("10.1.0.1", ports=targets))
    assert [(p.name, p.protocol, _texts(p.cluster)) for p in plan.ports] == [
        ("ns1/svc1:dns", "TCP", ["10.1.0.1:1053"]),
        ("ns1/svc1:dns-udp", "UDP", ["10.1.0.1:1053"]),
        ("ns1/svc1:metrics", "TCP", ["10.1.0.1:9153"]),
    ]
    assert plan.problems == ()


def test_one_name_with_two_protocols_is_two_ports() -> None:
    ports = [port(53, "dns"), port(53, "dns", "UDP")]
    plan = plan_of(service(ports=ports), endpoint_slice("10.1.0.1", ports=ports[1:]))
    assert [(p.protocol, len(p.cluster)) for p in plan.ports] == [("TCP", 0), ("UDP", 1)]
    assert plan.problems == ()


def test_several_slices_are_one_service() -> None:
    slices = [endpoint_slice(f"10.1.0.{n}", name=f"svc1-{n}") for n in (3, 1, 2)]
    assert _texts(port_of(service(), *slices).cluster) == ["10.1.0.1:80", "10.1.0.2:80", "10.1.0.3:80"]


def test_slices_of_another_address_type_are_ignored() -> None:
    slices = [
        endpoint_slice("fd00::1", name="six"),
        endpoint_slice({"addresses": ["web.example.com"]}, name="fqdn", address_type="FQDN"),
        endpoint_slice("10.1.0.1"),
    ]
    assert _texts(port_of(service(), *slices).cluster) == ["10.1.0.1:80"]


def test_only_the_first_address_counts() -> None:
    piece = endpoint_slice({"addresses": ["10.1.0.1", "10.1.0.2", "junk"]})
    assert _texts(port_of(service(), piece).cluster) == ["10.1.0.1:80"]


@pytest.mark.parametrize("number", [None, 0])
def test_a_slice_port_without_number_is_ignored(number: int | None) -> None:
    piece = endpoint_slice("10.1.0.1", ports=[{"name": "p80", "protocol": "TCP", "port": number}])
    assert port_of(service(), piece).cluster == ()


def test_endpoints_are_ordered_as_kube_proxy_orders_them() -> None:
    """By text: the probabilities and so the rules depend on it."""
    planned = port_of(service(), endpoint_slice("10.1.0.10", "10.1.0.9", "10.1.0.100", "9.1.0.1"))
    assert _texts(planned.cluster) == ["10.1.0.100:80", "10.1.0.10:80", "10.1.0.9:80", "9.1.0.1:80"]


def test_locality() -> None:
    piece = endpoint_slice(endpoint("10.1.0.1", node="node1"), endpoint("10.1.0.2", node="node2"), "10.1.0.3")
    assert [e.local for e in port_of(service(), piece).cluster] == [True, False, False]


# External addresses ----------------------------------------------------------------------------------


def test_load_balancer_addresses_honour_the_ip_mode() -> None:
    ingress = [
        {"ip": "203.0.113.1"},
        {"ip": "203.0.113.2", "ipMode": "VIP"},
        {"ip": "203.0.113.3", "ipMode": "Proxy"},
        {"hostname": "lb.example.com"},
        {"ip": "203.0.113.1"},
    ]
    planned = port_of(service(type="LoadBalancer", ingress=ingress))
    assert planned.load_balancer_ips == ("203.0.113.1", "203.0.113.2")


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        (None, None),
        ([], None),
        (["10.1.2.3/24"], ("10.1.2.0/24",)),
        ([" 10.0.0.0/8\t", "10.0.0.0/8"], ("10.0.0.0/8",)),
        (["0.0.0.0/0"], None),
        (["10.0.0.0/8", "0.0.0.0/0"], None),
        (["fd00::/16"], None),
        (["10.0.0.0/8", "::/0"], ("10.0.0.0/8",)),
        (["192.168.0.0/24", "10.0.0.1/32"], ("192.168.0.0/24", "10.0.0.1/32")),
    ],
)
def test_source_ranges(ranges: list[str] | None, expected: tuple[str, ...] | None) -> None:
    document = service(type="LoadBalancer", ingress=["1.2.3.4"], loadBalancerSourceRanges=ranges)
    assert port_of(document).source_ranges == expected


@pytest.mark.parametrize(("ranges", "included"), [(["192.168.0.0/24"], True), (["192.168.1.0/24"], False)])
def test_the_node_may_be_among_the_allowed_sources(ranges: list[str], included: bool) -> None:
    document = service(type="LoadBalancer", ingress=["1.2.3.4"], loadBalancerSourceRanges=ranges)
    assert port_of(document).node_in_source_ranges is included
    assert not port_of(document, node=NodeView("node1")).node_in_source_ranges


@pytest.mark.parametrize(("ranges", "expected"), [(["junk"], ()), (["junk", "10.0.0.0/8"], ("10.0.0.0/8",))])
def test_unreadable_source_ranges_admit_no_further_sources(
    ranges: list[str], expected: tuple[str, ...]
) -> None:
    plan = plan_of(service(type="LoadBalancer", ingress=["1.2.3.4"], loadBalancerSourceRanges=ranges))
    assert plan.ports[0].source_ranges == expected
    assert [(p.field, p.value) for p in plan.problems] == [("spec.loadBalancerSourceRanges[0]", '"junk"')]


@pytest.mark.parametrize(
    ("spec", "local", "health"),
    [
        ({"type": "LoadBalancer", "ingress": ["1.2.3.4"]}, True, 32000),
        ({"type": "NodePort"}, True, 0),
        ({"type": "ClusterIP", "externalIPs": ["1.2.3.4"]}, True, 0),
        ({"type": "ClusterIP"}, False, 0),
    ],
)
def test_who_may_have_a_local_external_policy(spec: dict[str, Any], local: bool, health: int) -> None:
    document = service(externalTrafficPolicy="Local", healthCheckNodePort=32000, **spec)
    planned = port_of(document)
    assert (planned.external_local, planned.health_check_node_port) == (local, health)
    document["spec"]["externalTrafficPolicy"] = "Cluster"
    assert (port_of(document).external_local, port_of(document).health_check_node_port) == (False, 0)


# Policies: which endpoints, and what is said where there is none -----------------------------------------

HERE, ELSEWHERE = endpoint("10.1.0.1", node="node1"), endpoint("10.1.0.2", node="node2")
UNREADY = endpoint("10.1.0.3", node="node1", ready=False, serving=False)
DRAINING = endpoint("10.1.0.4", node="node1", ready=False, serving=True, terminating=True)


@pytest.mark.parametrize(
    ("internal", "external", "endpoints", "verdicts", "cluster", "local"),
    [
        ("Cluster", "Cluster", [HERE, ELSEWHERE], "FORWARD FORWARD", [1, 2], []),
        ("Cluster", "Cluster", [], "REJECT REJECT", [], []),
        ("Cluster", "Cluster", [UNREADY], "REJECT REJECT", [], []),
        ("Cluster", "Cluster", [UNREADY, DRAINING], "FORWARD FORWARD", [4], []),
        ("Cluster", "Cluster", [DRAINING, ELSEWHERE], "FORWARD FORWARD", [2], []),
        ("Local", "Cluster", [HERE, ELSEWHERE], "FORWARD FORWARD", [1, 2], [1]),
        ("Local", "Cluster", [ELSEWHERE], "DROP FORWARD", [2], []),
        ("Local", "Cluster", [UNREADY], "REJECT REJECT", [], []),
        ("Cluster", "Local", [HERE, ELSEWHERE], "FORWARD FORWARD", [1, 2], [1]),
        ("Cluster", "Local", [ELSEWHERE], "FORWARD DROP", [2], []),
        ("Cluster", "Local", [ELSEWHERE, UNREADY], "FORWARD DROP", [2], []),
        ("Cluster", "Local", [ELSEWHERE, DRAINING], "FORWARD FORWARD", [2], [4]),
        ("Cluster", "Local", [], "REJECT REJECT", [], []),
        ("Local", "Local", [ELSEWHERE], "DROP DROP", [2], []),
        ("Local", "Local", [HERE, ELSEWHERE], "FORWARD FORWARD", [1, 2], [1]),
    ],
)
def test_traffic_policies(
    internal: str,
    external: str,
    endpoints: list[dict[str, Any]],
    verdicts: str,
    cluster: list[int],
    local: list[int],
) -> None:
    document = service(
        type="NodePort",
        internalTrafficPolicy=internal,
        externalTrafficPolicy=external,
        ports=[port(nodePort=30080)],
    )
    planned = port_of(document, endpoint_slice(*endpoints))
    assert f"{planned.internal} {planned.external}" == verdicts
    assert _texts(planned.cluster) == [f"10.1.0.{n}:80" for n in cluster]
    assert _texts(planned.local) == [f"10.1.0.{n}:80" for n in local]
    assert _texts(planned.reachable) == [f"10.1.0.{n}:80" for n in sorted({*cluster, *local})]


def test_an_internal_policy_without_external_addresses_knows_only_local_endpoints() -> None:
    planned = port_of(service(internalTrafficPolicy="Local"), endpoint_slice(HERE, ELSEWHERE))
    assert (planned.cluster, _texts(planned.local)) == ((), ["10.1.0.1:80"])
    assert _texts(planned.reachable) == ["10.1.0.1:80"]


@pytest.mark.parametrize(
    ("spec", "seconds"),
    [
        ({}, None),
        ({"sessionAffinity": "None"}, None),
        ({"sessionAffinity": "ClientIP"}, 10800),
        ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}}, 60),
        ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {}}}, 10800),
        ({"sessionAffinity": "None", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}}, None),
    ],
)
def test_session_affinity(spec: dict[str, Any], seconds: int | None) -> None:
    assert port_of(service(**spec)).affinity_seconds == seconds


# Defects ----------------------------------------------------------------------------------------------

NODE_PORT = "spec.ports[0].nodePort"
DEFECTS: list[tuple[dict[str, Any], str, str]] = [
    ({"externalIPs": ["1.2.3.4", "1.2.3.5\n-A x"]}, "spec.externalIPs[1]", '"1.2.3.5\\n-A x"'),
    ({"ingress": ["1.2.3.4 -j ACCEPT"]}, "status.loadBalancer.ingress[0].ip", '"1.2.3.4 -j ACCEPT"'),
    ({"ip": ["10.96.0.300", "10.96.0.1"]}, "spec.clusterIPs[0]", '"10.96.0.300"'),
    ({"ports": [port(nodePort=65536)]}, NODE_PORT, "65536"),
    ({"ports": [port(nodePort=-1)]}, NODE_PORT, "-1"),
    ({"ports": [port(), port(0, "zero")]}, "spec.ports[1].port", "0"),
    ({"ports": [port(), port(65536, "big")]}, "spec.ports[1].port", "65536"),
    ({"ports": [port(), port(81, "icmp", "ICMP")]}, "spec.ports[1].protocol", '"ICMP"'),
    ({"ports": [port(), port(81, "lower", "tcp")]}, "spec.ports[1].protocol", '"tcp"'),
    ({"ports": [port(), port(81, 'a" -j ACCEPT')]}, "spec.ports[1].name", '"a\\" -j ACCEPT"'),
    ({"ports": [port(), port(81)]}, "spec.ports[1].name", '"p80"'),
    ({"ports": [port(), port(80, "again")]}, "spec.ports[1].port", "80"),
    ({"sessionAffinity": "Cookie"}, "spec.sessionAffinity", '"Cookie"'),
    (
        {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}}},
        "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        "86401",
    ),
    ({"externalTrafficPolicy": "local"}, "spec.externalTrafficPolicy", '"local"'),
    ({"internalTrafficPolicy": "Node"}, "spec.internalTrafficPolicy", '"Node"'),
    (
        {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 70000},
        "spec.healthCheckNodePort",
        "70000",
    ),
]


@pytest.mark.parametrize(("fields", "field", "value"), DEFECTS)
def test_a_defect_is_named_and_costs_only_itself(fields: dict[str, Any], field: str, value: str) -> None:
    plan = plan_of(service(**fields), endpoint_slice("10.1.0.1"))
    (problem,) = plan.problems
    assert (problem.object, problem.field, problem.value) == ("Service ns1/svc1", field, value)
    assert problem.reason
    assert str(problem).count("\n") == 0
    (planned,) = plan.ports
    assert _texts(planned.cluster) == ["10.1.0.1:80"]
    assert set(planned.external_ips) <= {"1.2.3.4"}


@pytest.mark.parametrize(
    ("piece", "field", "value"),
    [
        (endpoint_slice("10.1.0.9\n", "10.1.0.1"), "endpoints[0].addresses[0]", '"10.1.0.9\\n"'),
        (endpoint_slice("10.1.0.1", "fd00::1"), "endpoints[1].addresses[0]", '"fd00::1"'),
        (endpoint_slice("10.1.0.1", {"addresses": []}), "endpoints[1].addresses", "[]"),
        (endpoint_slice("10.1.0.1", ports=[port(), port(70000, "x")]), "ports[1].port", "70000"),
        (endpoint_slice("10.1.0.1", ports=[port(), port(-80, "x")]), "ports[1].port", "-80"),
    ],
)
def test_a_defect_of_a_slice_is_named_and_costs_only_itself(
    piece: dict[str, Any], field: str, value: str
) -> None:
    plan = plan_of(service(), piece)
    (problem,) = plan.problems
    assert (problem.object, problem.field, problem.value) == ("EndpointSlice ns1/svc1-1", field, value)
    assert _texts(plan.ports[0].cluster) == ["10.1.0.1:80"]


def test_a_shared_defect_is_reported_once() -> None:
    plan = plan_of(service(externalIPs=["junk"], ports=[port(), port(81, "b"), port(82, "c")]))
    assert len(plan.problems) == 1


def test_text_fields_are_canonical() -> None:
    document = service(ip="010.096.0.1", externalIPs=["::ffff:1.2.3.4"])
    planned: PortPlan = port_of(document, endpoint_slice("010.1.0.01"))
    assert (planned.cluster_ip, planned.external_ips) == ("10.96.0.1", ("1.2.3.4",))
    assert _texts(planned.cluster) == ["10.1.0.1:80"]


def test_creation_time_is_kept_for_claims() -> None:
    assert plan_of(service()).created == builders.CREATED
    assert plan_of(service(created=None)).created == ""


def test_with_affinity_the_endpoints_that_are_not_used_are_known_too() -> None:
    endpoints = [endpoint("10.1.0.1"), endpoint("10.1.0.2", ready=False), endpoint("10.1.0.3", ready=None)]
    sticky = port_of(service(sessionAffinity="ClientIP"), endpoint_slice(*endpoints))
    assert [e.ip for e in sticky.reachable] == ["10.1.0.1", "10.1.0.3"]
    assert [e.ip for e in sticky.idle] == ["10.1.0.2"]
    assert port_of(service(), endpoint_slice(*endpoints)).idle == ()


@pytest.mark.parametrize("kind", ["ClusterIP", "NodePort"])
def test_without_the_gate_external_addresses_have_no_owner(kind: str) -> None:
    fields: dict[str, Any] = {"type": kind, "externalIPs": ["1.2.3.4"], "externalTrafficPolicy": "Local"}
    node = NodeView("node1", external_ips=False)
    served = port_of(service(**fields), endpoint_slice("10.1.0.1"))
    planned = port_of(service(**fields), endpoint_slice("10.1.0.1"), node=node)
    assert (served.external_ips, planned.external_ips) == (("1.2.3.4",), ())
    assert (planned.cluster_ip, planned.node_port) == (served.cluster_ip, served.node_port)
