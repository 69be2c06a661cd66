"""Outside addresses that no service may have, for they would divert the node's own traffic."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kproxy.addresses import Family
from kproxy.plan.model import OutsideLimits, PortPlan, ServicePlan
from kproxy.plan.planner import Planner
from kproxy.state.tables import ServiceInput
from tests import builders
from tests.builders import NODE, endpoint_slice, port, service

API, HERE, ELSEWHERE = "192.168.0.10", "192.168.0.2", "198.51.100.7"
LIMITS = OutsideLimits(
    local=frozenset({HERE, "203.0.113.50", "fd00:168::2"}),
    listeners=frozenset({("", 10256), ("127.0.0.1", 10249), ("203.0.113.50", 9000)}),
    api_servers=frozenset({(API, 6443), (HERE, 6443), ("fd00:168::10", 6443)}),
)
IN_IPVS = msgspec.structs.replace(LIMITS, holds_addresses=True)


def _node(limits: OutsideLimits = LIMITS) -> Any:
    return msgspec.structs.replace(NODE, outside=limits)


def _fields(field: str, *addresses: str) -> dict[str, Any]:
    return {"externalIPs": list(addresses)} if field == "externalIPs" else {"ingress": list(addresses)}


def _held(plan: ServicePlan | PortPlan) -> set[str]:
    only = plan.ports[0] if isinstance(plan, ServicePlan) else plan
    return {*only.external_ips, *only.load_balancer_ips}


@pytest.mark.parametrize("field", ["externalIPs", "ingress"])
@pytest.mark.parametrize(
    ("family", "address", "word"),
    [
        (Family.IPV4, "127.0.0.1", "loopback"),
        (Family.IPV4, "127.255.255.254", "loopback"),
        (Family.IPV4, "::ffff:127.0.0.1", "loopback"),
        (Family.IPV4, "::ffff:7f00:1", "loopback"),
        (Family.IPV4, "127.000.000.001", "loopback"),
        (Family.IPV4, "0.0.0.0", "unspecified"),
        (Family.IPV4, "0.1.2.3", "unspecified"),
        (Family.IPV4, "::ffff:0.0.0.0", "unspecified"),
        (Family.IPV4, "169.254.169.254", "link-local"),
        (Family.IPV4, "169.254.0.1", "link-local"),
        (Family.IPV4, "::ffff:169.254.169.254", "link-local"),
        (Family.IPV4, "224.0.0.1", "multicast"),
        (Family.IPV4, "239.255.255.255", "multicast"),
        (Family.IPV4, "255.255.255.255", "broadcast"),
        (Family.IPV6, "::1", "loopback"),
        (Family.IPV6, "0:0:0:0:0:0:0:1", "loopback"),
        (Family.IPV6, "::", "unspecified"),
        (Family.IPV6, "fe80::1", "link-local"),
        (Family.IPV6, "febf:ffff::1", "link-local"),
        (Family.IPV6, "ff02::1", "multicast"),
        (Family.IPV6, "FF0E::5", "multicast"),
    ],
)
def test_a_special_address_is_not_served_and_the_rest_is(
    field: str, family: Family, address: str, word: str
) -> None:
    good = ELSEWHERE if family is Family.IPV4 else "2001:db8::7"
    document = service(ip=["10.96.0.1", "fd00:96::1"], **_fields(field, address, good))
    plan = builders.plan_of(document, family=family)
    assert _held(plan) == {good}
    (problem,) = plan.problems
    assert word in problem.reason
    assert address in problem.value
    assert (problem.object, problem.refused) == ("Service ns1/svc1", True)
    assert problem.field.startswith(
        "spec.externalIPs[0]" if field == "externalIPs" else "status.loadBalancer.ingress[0].ip"
    )


@pytest.mark.parametrize("address", ["fe80::1%eth0", "::1%lo", "127.0.0.1%lo", "127.0.0.1/32", "127.1", "0"])
def test_other_spellings_are_no_addresses_at_all(address: str) -> None:
    for family in Family:
        document = service(ip=["10.96.0.1", "fd00:96::1"], externalIPs=[address])
        plan = builders.plan_of(document, family=family)
        assert _held(plan) == set()
        assert [p.reason for p in plan.problems] == ["not an IP address"]


@pytest.mark.parametrize("address", ["1.0.0.1", "126.255.255.255", "128.0.0.1", "169.253.1.1", "240.0.0.1"])
def test_neighbours_of_special_ranges_are_served(address: str) -> None:
    assert builders.port_of(service(externalIPs=[address])).external_ips == (address,)


@pytest.mark.parametrize(
    "address", ["fe7f::1", "fec0::1", "feff::1", "ff::1", "fe8::1", "::7f00:1", "2001:db8::ff02"]
)
def test_neighbours_of_special_ipv6_ranges_are_served(address: str) -> None:
    document = service(ip="fd00:96::1", externalIPs=[address])
    assert builders.port_of(document, family=Family.IPV6).external_ips == (address,)


def test_external_ips_are_served_within_the_allowed_ranges_only() -> None:
    limits = OutsideLimits(external_ip_cidrs=("198.51.100.0/24", "2001:db8::/64"))
    document = service(
        ip=["10.96.0.1", "fd00:96::1"],
        externalIPs=["198.51.100.1", "198.51.101.1", "::ffff:198.51.100.2", "2001:db8::1", "2001:db8:1::1"],
        ingress=["1.2.3.4", "2001:db8:9::1"],
    )
    four = builders.plan_of(document, node=_node(limits))
    assert four.ports[0].external_ips == ("198.51.100.1", "198.51.100.2")
    assert four.ports[0].load_balancer_ips == ("1.2.3.4",), "a controller assigns these"
    (problem,) = four.problems
    assert (problem.field, problem.value, problem.refused) == ("spec.externalIPs[1]", '"198.51.101.1"', True)
    assert "198.51.100.0/24" in problem.reason
    six = builders.plan_of(document, family=Family.IPV6, node=_node(limits))
    assert six.ports[0].external_ips == ("2001:db8::1",)
    assert [p.field for p in six.problems] == ["spec.externalIPs[4]"]


def test_ranges_of_one_family_allow_nothing_of_the_other() -> None:
    limits = OutsideLimits(external_ip_cidrs=("198.51.100.0/24",))
    document = service(ip="fd00:96::1", externalIPs=["2001:db8::1"])
    assert _held(builders.plan_of(document, family=Family.IPV6, node=_node(limits))) == set()


@pytest.mark.parametrize("field", ["externalIPs", "ingress"])
@pytest.mark.parametrize(
    ("address", "number", "protocol", "served"),
    [
        (HERE, 10256, "TCP", False),
        (HERE, 10256, "UDP", True),
        (HERE, 10257, "TCP", True),
        (HERE, 80, "TCP", True),
        (HERE, 10249, "TCP", True),  # that server listens on the loopback alone
        (ELSEWHERE, 10256, "TCP", True),
        ("203.0.113.50", 9000, "TCP", False),
        (HERE, 9000, "TCP", True),
        (HERE, 22, "TCP", True),
        (HERE, 10250, "TCP", True),
        (HERE, 6443, "TCP", False),
        (HERE, 443, "TCP", True),
        (API, 6443, "TCP", False),
        ("::ffff:192.168.0.10", 6443, "TCP", False),
        (API, 6443, "UDP", True),
        (API, 443, "TCP", True),
    ],
)
def test_ports_of_kproxy_and_of_the_api_server(
    field: str, address: str, number: int, protocol: str, *, served: bool
) -> None:
    document = service(ports=[port(number, protocol=protocol)], **_fields(field, address, "1.2.3.4"))
    plan = builders.plan_of(document, node=_node())
    assert _held(plan) == ({address, "1.2.3.4"} if served else {"1.2.3.4"})
    assert [p.refused for p in plan.problems] == ([] if served else [True])
    assert plan.ports[0].cluster_ip == "10.96.0.1"


@pytest.mark.parametrize(
    ("address", "number", "served"),
    [(API, 443, False), (HERE, 443, True), (ELSEWHERE, 6443, True), (API, 6443, False)],
)
def test_ipvs_does_not_take_the_api_servers_address_at_any_port(
    address: str, number: int, *, served: bool
) -> None:
    """The node would hold the address itself, and nothing for it would leave the node any more."""
    for protocol in ("TCP", "UDP"):
        document = service(ports=[port(number, protocol=protocol)], externalIPs=[address])
        plan = builders.plan_of(document, node=_node(IN_IPVS))
        assert (_held(plan) == {address}) == served


@pytest.mark.parametrize(
    ("number", "protocol", "served"),
    [
        (10256, "TCP", False),
        (10256, "UDP", True),
        (10249, "TCP", False),
        (6443, "TCP", False),
        (30080, "TCP", True),
    ],
)
def test_a_node_port_that_kproxy_or_the_api_server_listens_on(
    number: int, protocol: str, *, served: bool
) -> None:
    document = service(ports=[port(nodePort=number, protocol=protocol)], externalIPs=["1.2.3.4"])
    plan = builders.plan_of(document, node=_node())
    assert plan.ports[0].node_port == (number if served else 0)
    assert plan.ports[0].external_ips == ("1.2.3.4",)
    assert [p.field for p in plan.problems] == ([] if served else ["nodePort"])


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_node_port_of_an_api_server_on_the_loopback(address: str) -> None:
    """A node's own load balancer for API servers, for which clients of 127.0.0.1 must not get a service."""
    limits = OutsideLimits(api_servers=frozenset({(address, 6444)}))
    plan = builders.plan_of(service(ports=[port(nodePort=6444)]), node=_node(limits))
    assert plan.ports[0].node_port == 0
    elsewhere = OutsideLimits(api_servers=frozenset({("192.168.0.99", 6444)}))
    plan = builders.plan_of(service(ports=[port(nodePort=6444)]), node=_node(elsewhere))
    assert plan.ports[0].node_port == 6444


def test_the_cluster_ip_of_the_api_server_is_served() -> None:
    limits = OutsideLimits(api_servers=frozenset({("10.96.0.1", 443)}))
    document = service("kubernetes", "10.96.0.1", namespace="default", ports=[port(443)])
    for holds in (False, True):
        node = _node(msgspec.structs.replace(limits, holds_addresses=holds))
        plan = builders.plan_of(document, node=node)
        assert (plan.ports[0].cluster_ip, plan.ports[0].port, plan.problems) == ("10.96.0.1", 443, ())


# -- a service that is the way to the API servers

_PORTS = [port(6443, "https")]


def _kubernetes(*ips: str) -> ServiceInput:
    document = service("kubernetes", "10.96.0.1", namespace="default", ports=[port(443, "https")])
    slices = endpoint_slice(*ips, service="kubernetes", namespace="default", ports=_PORTS)
    return builders.given(document, slices)


def _vip(*ips: str, namespace: str = "default", field: str = "ingress", **fields: Any) -> ServiceInput:
    document = service(
        "kubernetes-vip",
        "10.96.0.9",
        namespace=namespace,
        type="LoadBalancer",
        ports=_PORTS,
        **_fields(field, API),
        **fields,
    )
    slices = endpoint_slice(*ips, service="kubernetes-vip", namespace=namespace, ports=_PORTS)
    return builders.given(document, slices)


def _first_sync_done(*given: ServiceInput, limits: OutsideLimits = LIMITS) -> ServicePlan:
    plans = builders.plans_of(given, node=_node(limits))
    (vip,) = [plan for plan in plans if plan.key.endswith("-vip")]
    return vip


@pytest.mark.parametrize("limits", [LIMITS, IN_IPVS], ids=["rules", "ipvs"])
@pytest.mark.parametrize("field", ["externalIPs", "ingress"])
def test_a_control_planes_virtual_address_leads_to_the_api_servers(field: str, limits: OutsideLimits) -> None:
    servers = ("192.168.0.11", "192.168.0.12")
    plan = _first_sync_done(_kubernetes(*servers), _vip(*servers, field=field), limits=limits)
    assert (_held(plan), plan.problems) == ({API}, ())
    assert [e.ip for e in plan.ports[0].cluster] == list(servers)


def test_a_virtual_address_with_policy_local_stays() -> None:
    plan = _first_sync_done(_kubernetes("192.168.0.11"), _vip("192.168.0.11", externalTrafficPolicy="Local"))
    assert (_held(plan), plan.problems) == ({API}, ())


def test_external_ips_with_policy_local_would_drop_what_is_for_the_api_server() -> None:
    vip = _vip("192.168.0.11", field="externalIPs", externalTrafficPolicy="Local")
    assert _held(_first_sync_done(_kubernetes("192.168.0.11"), vip)) == set()


def test_endpoints_that_are_no_api_servers_get_nothing_of_it() -> None:
    plan = _first_sync_done(_kubernetes("192.168.0.11"), _vip("192.168.0.11", "10.1.0.66"))
    assert _held(plan) == {API}
    assert [e.ip for e in plan.ports[0].cluster] == ["192.168.0.11"]
    assert [e.ip for e in plan.ports[0].reachable] == ["192.168.0.11"]
    assert "only its endpoints" in plan.problems[0].reason


@pytest.mark.parametrize("given", [(), (_kubernetes(),), (_kubernetes("192.168.0.11"),)])
def test_a_stranger_does_not_get_the_api_servers_address(given: tuple[ServiceInput, ...]) -> None:
    for addresses in (("10.1.0.66",), ()):
        plan = _first_sync_done(*given, _vip(*addresses))
        assert _held(plan) == set()
        assert plan.ports[0].cluster_ip == "10.96.0.9"
        assert "default/kubernetes" in plan.problems[0].reason


def test_kube_system_is_trusted() -> None:
    """For a control plane behind a load balancer of its own, whose port is not that of the API servers."""
    for limits in (LIMITS, IN_IPVS):
        plan = _first_sync_done(_vip("192.168.0.11", namespace="kube-system"), limits=limits)
        assert (_held(plan), plan.problems) == ({API}, ())


def test_a_namespace_that_is_named_almost_so_is_not() -> None:
    assert _held(_first_sync_done(_vip("10.1.0.66", namespace="kube-system-2"))) == set()


def test_a_stranger_that_is_older_does_not_keep_the_virtual_address_from_its_service() -> None:
    thief = service("thief", "10.96.0.3", created="2020-01-01T00:00:00Z", externalIPs=[API], ports=_PORTS)
    stranger = builders.given(thief, endpoint_slice("10.1.0.66", service="thief", ports=_PORTS))
    plan = _first_sync_done(stranger, _kubernetes("192.168.0.11"), _vip("192.168.0.11"))
    assert _held(plan) == {API}


def test_the_virtual_address_follows_the_endpoints_of_kubernetes() -> None:
    planner, node = Planner(Family.IPV4), _node()
    vip = _vip("192.168.0.11", "192.168.0.12")
    planner.update([vip], node)
    for servers in (
        ("192.168.0.11",),
        ("192.168.0.12", "192.168.0.13"),
        ("192.168.0.99",),
        ("192.168.0.11",),
    ):
        known = _kubernetes(*servers)
        changed = planner.update([known], node)
        assert changed["default/kubernetes-vip"] == _first_sync_done(known, vip)
    assert "default/kubernetes-vip" not in planner.update([_kubernetes("192.168.0.11")], node)


@pytest.mark.parametrize("limits", [LIMITS, IN_IPVS], ids=["rules", "ipvs"])
def test_endpoints_of_kubernetes_are_api_servers_too(limits: OutsideLimits) -> None:
    """In a pod kproxy connects to the cluster IP; IPVS would lead that to an address of the node's own."""
    planner, node = Planner(Family.IPV4), _node(limits)
    one = service("one", "10.96.0.3", externalIPs=["192.168.0.77"], ports=[port(6443, nodePort=6443)])
    other = service("other", "10.96.0.4", externalIPs=["192.168.0.77"], ports=[port(80)])
    plans = planner.update([builders.given(one), builders.given(other)], node)
    assert [_held(plan) for plan in plans.values()] == [{"192.168.0.77"}] * 2
    known = _kubernetes("192.168.0.77")
    changed = planner.update([known], node)
    assert _held(changed["ns1/one"]) == set()
    assert _held(changed.get("ns1/other", plans["ns1/other"])) == (
        set() if limits.holds_addresses else {"192.168.0.77"}
    )
    scratch = builders.plans_of([known, builders.given(one), builders.given(other)], node=node)
    assert changed == {plan.key: plan for plan in scratch if plan.key in changed}
    freed = planner.update([_kubernetes("192.168.0.78")], node)
    assert _held(freed["ns1/one"]) == {"192.168.0.77"}
