"""What is desired for a packet: outcomes, decisions in words, excluded endpoints; how modes differ."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given as cases
from hypothesis import settings
from hypothesis import strategies as st

from kproxy.inspect.explain.question import QuestionError
from kproxy.inspect.explain.report import Report
from kproxy.plan.outcomes import FrontendKind, PacketVerdict, Where
from tests.builders import Json, endpoint, endpoint_slice, port, service
from tests.inspect.explain.clusters import NODE_IP, OUTSIDER, cluster, explain, pod
from tests.packets import semantics
from tests.packets.objects import Ep

POD = "10.244.1.10"
HERE, THERE = pod("10.244.1.12", "web-here"), pod("10.244.2.7", "web-there", "node2")
EXTERNAL, BALANCER = "198.51.100.7", "198.51.100.80"

FORWARD, REJECT, DROP, PASS = (
    PacketVerdict.FORWARD,
    PacketVerdict.REJECT,
    PacketVerdict.DROP,
    PacketVerdict.UNTOUCHED,
)


def outside(**spec: Any) -> Json:
    """A Service with every kind of frontend."""
    fields: dict[str, Any] = {"type": "LoadBalancer", "externalIPs": [EXTERNAL]}
    ports = [port(node_port=30080) | {"nodePort": 30080}]
    return service(ports=ports, ingress=[BALANCER], **(fields | spec))


def results(report: Report) -> dict[str, tuple[float, bool]]:
    """Probability and masquerade by endpoint, or by verdict."""
    return {w.endpoint or w.verdict.value: (w.probability, w.masquerade) for w in report.desired.outcomes}


def verdict(report: Report) -> PacketVerdict:
    (way,) = {each.verdict for each in report.desired.outcomes}
    return way


def test_a_pod_shares_its_connections_between_the_ready_endpoints_and_keeps_its_address() -> None:
    report = explain(cluster([service(), endpoint_slice(HERE, THERE)]), POD, "ns1/svc1:p80")
    assert results(report) == {"10.244.1.12:80": (0.5, False), "10.244.2.7:80": (0.5, False)}
    assert report.frontend is not None
    assert (report.frontend.service, report.frontend.port) == ("ns1/svc1", "p80")
    assert report.frontend.kind is FrontendKind.CLUSTER_IP
    assert (report.source.where, report.destination.ip, report.destination.port) == (
        Where.POD,
        "10.96.0.1",
        80,
    )
    assert report.desired.policy == ("internalTrafficPolicy Cluster; source is a pod: address kept",)
    ways = report.desired.outcomes
    assert [(each.pod, each.node) for each in ways] == [("ns1/web-here", "node1"), ("ns1/web-there", "node2")]
    assert report.exit_code == 0


def test_weights_are_shares_and_weight_zero_is_a_reason() -> None:
    weights = {"kproxy.io/weights": '{"pod:web-here": 3, "pod:web-off": 0}'}
    slices = endpoint_slice(HERE, THERE, pod("10.244.2.9", "web-off", "node2"))
    for mode in ("iptables", "nftables"):
        report = explain(cluster([service(annotations=weights), slices], mode), POD, "ns1/svc1")
        assert results(report) == {"10.244.1.12:80": (0.75, False), "10.244.2.7:80": (0.25, False)}
        assert [(each.endpoint, each.reason) for each in report.excluded] == [("10.244.2.9:80", "weight 0")]
        assert "shares by kproxy.io/weights" in report.desired.policy


def test_affinity_and_scheduler_are_named() -> None:
    objects = [service(sessionAffinity="ClientIP"), endpoint_slice(HERE)]
    report = explain(cluster(objects, "ipvs"), POD, "ns1/svc1")
    assert report.desired.affinity
    assert "sessionAffinity ClientIP: a known client keeps its endpoint for 10800 s" in report.desired.policy
    assert "scheduler rr" in report.desired.policy
    assert report.desired.scheduler == "rr"


def test_a_pod_that_is_its_own_endpoint_is_masqueraded_there() -> None:
    known = cluster([service(), endpoint_slice(HERE, THERE)], "nftables")
    report = explain(known, "pod/ns1/web-here", "ns1/svc1")
    assert results(report) == {"10.244.1.12:80": (0.5, True), "10.244.2.7:80": (0.5, False)}
    assert report.source.ip == "10.244.1.12"


@pytest.mark.parametrize(
    ("changes", "source", "masquerade"),
    [
        ({}, POD, False),
        ({}, OUTSIDER, True),
        ({}, "node", True),
        ({"masquerade_all": True}, POD, True),
        ({"cluster_cidrs": ()}, OUTSIDER, False),
        ({"cluster_cidrs": ()}, "node", False),
    ],
)
def test_traffic_from_outside_the_cluster_is_masqueraded(
    changes: dict[str, Any], source: str, masquerade: bool
) -> None:
    known = cluster([service(), endpoint_slice(HERE)], **changes)
    assert results(explain(known, source, "ns1/svc1")) == {"10.244.1.12:80": (1.0, masquerade)}


def test_pods_are_detected_by_the_interface_they_arrive_on() -> None:
    detect: dict[str, Any] = {
        "detect_local_mode": "BridgeInterface",
        "pod_bridge_interface": "cbr0",
        "cluster_cidrs": (),
    }
    known = cluster([service(), endpoint_slice(HERE)], **detect)
    assert results(explain(known, POD, "ns1/svc1")) == {"10.244.1.12:80": (1.0, False)}
    assert results(explain(known, OUTSIDER, "ns1/svc1")) == {"10.244.1.12:80": (1.0, True)}
    assert results(explain(known, "node", "ns1/svc1")) == {"10.244.1.12:80": (1.0, True)}


@pytest.mark.parametrize("mode", ["iptables", "nftables", "ipvs"])
@pytest.mark.parametrize(
    ("destination", "kind"),
    [
        (f"{EXTERNAL}:80", FrontendKind.EXTERNAL_IP),
        (f"{BALANCER}:80", FrontendKind.LOAD_BALANCER),
        (f"{NODE_IP}:30080", FrontendKind.NODE_PORT),
    ],
)
def test_the_policy_local_counts_for_clients_outside_only(
    mode: str, destination: str, kind: FrontendKind
) -> None:
    known = cluster([outside(externalTrafficPolicy="Local"), endpoint_slice(HERE, THERE)], mode)
    report = explain(known, OUTSIDER, destination)
    assert results(report) == {"10.244.1.12:80": (1.0, False)}
    assert report.frontend is not None
    assert report.frontend.kind is kind
    assert [(each.endpoint, each.reason) for each in report.excluded] == [("10.244.2.7:80", "Local policy")]
    both = {"10.244.1.12:80": (0.5, False), "10.244.2.7:80": (0.5, False)}
    assert results(explain(known, POD, destination)) == both
    assert results(explain(known, "node", destination)) == dict.fromkeys(both, (0.5, True))


def test_a_node_without_local_endpoints_drops_so_that_load_balancers_go_elsewhere() -> None:
    known = cluster([outside(externalTrafficPolicy="Local"), endpoint_slice(THERE)])
    report = explain(known, OUTSIDER, f"{BALANCER}:80")
    assert (verdict(report), report.exit_code) == (DROP, 3)
    assert results(explain(known, POD, f"{BALANCER}:80")) == {"10.244.2.7:80": (1.0, False)}


@pytest.mark.parametrize(
    ("source", "expected"), [(OUTSIDER, FORWARD), ("198.18.0.1", DROP), ("outside", DROP), (POD, DROP)]
)
def test_source_ranges_admit_clients_of_the_load_balancer_only(source: str, expected: PacketVerdict) -> None:
    known = cluster([outside(loadBalancerSourceRanges=["203.0.113.0/24"]), endpoint_slice(HERE)])
    report = explain(known, source, f"{BALANCER}:80")
    assert verdict(report) is expected
    assert any("loadBalancerSourceRanges" in each for each in report.desired.policy)
    assert verdict(explain(known, source, f"{EXTERNAL}:80")) is FORWARD


def test_an_address_that_is_external_and_of_a_load_balancer_is_restricted_where_the_mode_does_it() -> None:
    objects = [
        outside(loadBalancerSourceRanges=["198.18.0.0/24"], externalIPs=[BALANCER]),
        endpoint_slice(HERE),
    ]
    assert verdict(explain(cluster(objects, "nftables"), OUTSIDER, f"{BALANCER}:80")) is DROP
    assert verdict(explain(cluster(objects, "iptables"), OUTSIDER, f"{BALANCER}:80")) is FORWARD


def test_without_endpoints_clients_are_refused_and_the_node_as_its_mode_does() -> None:
    for mode, own in (("iptables", PASS), ("nftables", REJECT), ("ipvs", REJECT)):
        known = cluster([outside(), endpoint_slice(pod("10.244.1.12", "web", ready=False))], mode)
        for destination in ("10.96.0.1:80", f"{EXTERNAL}:80", f"{NODE_IP}:30080"):
            assert verdict(explain(known, OUTSIDER, destination)) is REJECT
        assert verdict(explain(known, "node", "10.96.0.1:80")) is REJECT
        assert verdict(explain(known, "node", f"{NODE_IP}:30080")) is REJECT
        assert verdict(explain(known, "node", f"{EXTERNAL}:80")) is own


def test_ports_that_no_service_has_are_refused_as_the_mode_does() -> None:
    objects = [outside(), endpoint_slice(HERE)]
    expected = {
        "iptables": (PASS, PASS, PASS),
        "nftables": (REJECT, PASS, PASS),
        "ipvs": (REJECT, REJECT, PASS),
    }
    for mode, verdicts in expected.items():
        known = cluster(objects, mode)
        asked = ("10.96.0.1:81", f"{EXTERNAL}:81", f"{NODE_IP}:81")
        reports = [explain(known, POD, each) for each in asked]
        assert tuple(map(verdict, reports)) == verdicts
        assert {report.frontend for report in reports} == {None}
    permissive = cluster(objects, "nftables", nftables_reject_unallocated=False)
    assert verdict(explain(permissive, POD, "10.96.0.1:81")) is PASS


def test_addresses_of_the_service_ranges_that_no_service_has_are_dropped_in_nftables_mode() -> None:
    for mode, expected in (("nftables", DROP), ("iptables", PASS)):
        known = cluster([service(), endpoint_slice(HERE)], mode, service_cidrs=("10.96.0.0/16",))
        assert verdict(explain(known, POD, "10.96.9.9:80")) is expected


def test_node_ports_are_served_at_the_addresses_of_the_mode_and_the_settings() -> None:
    objects = [outside(), endpoint_slice(HERE)]
    assert verdict(explain(cluster(objects, "iptables"), "node", "127.0.0.1:30080")) is FORWARD
    quiet = cluster(objects, "iptables", localhost_node_ports=False)
    assert verdict(explain(quiet, "node", "127.0.0.1:30080")) is PASS
    assert verdict(explain(cluster(objects, "nftables"), "node", "127.0.0.1:30080")) is PASS
    elsewhere = cluster(objects, "iptables", node_port_addresses=("198.18.0.0/24",))
    assert verdict(explain(elsewhere, OUTSIDER, f"{NODE_IP}:30080")) is PASS


def test_the_service_that_lost_an_address_says_to_whom() -> None:
    rival = service("rival", "10.96.0.2", externalIPs=["10.96.0.1"])
    known = cluster([service(), endpoint_slice(HERE), rival])
    report = explain(known, POD, "ns1/rival")
    assert verdict(report) is REJECT
    assert [each for each in report.conflicts if "already belongs to ns1/svc1:p80" in each]
    taken = explain(known, POD, "10.96.0.1:80")
    assert taken.frontend is not None
    assert taken.frontend.service == "ns1/svc1"


def test_a_service_that_lost_its_cluster_ip_is_not_the_one_that_answers() -> None:
    later = service("later", created="2027-01-01T00:00:00Z")
    report = explain(cluster([service(), endpoint_slice(HERE), later]), POD, "ns1/later")
    assert report.frontend is not None
    assert report.frontend.service == "ns1/svc1"
    assert "ns1/svc1 has this address and port, not ns1/later" in report.notes
    assert [each for each in report.conflicts if each.startswith("spec.clusterIP")]


def test_families_follow_the_source() -> None:
    dual = service(ip=["10.96.0.1", "fd00:96::1"])
    known = cluster([dual, endpoint_slice(HERE), endpoint_slice("fd00:1::12", name="six")])
    assert explain(known, "node", "ns1/svc1").destination.ip == "10.96.0.1"
    six = explain(known, "fd00:1::9", "ns1/svc1")
    assert results(six) == {"[fd00:1::12]:80": (1.0, False)}
    assert ("10.244.1.12", "wrong family") in {(each.endpoint, each.reason) for each in six.excluded}
    with pytest.raises(QuestionError, match="no cluster IP of IPv6"):
        explain(cluster([service(), endpoint_slice(HERE)]), "fd00:1::9", "ns1/svc1")


def test_an_address_alone_stands_for_its_only_port() -> None:
    two = service("two", "10.96.0.2", ports=[port(80), port(81, "p81"), port(53, "dns", "UDP")])
    known = cluster([service(), endpoint_slice(HERE), two])
    assert explain(known, POD, "10.96.0.1").destination.port == 80
    assert explain(known, POD, "10.96.0.2", "udp").destination.port == 53
    with pytest.raises(QuestionError, match="several TCP ports: 80, 81"):
        explain(known, POD, "10.96.0.2")
    assert verdict(explain(known, POD, "198.18.0.1")) is PASS
    assert explain(known, POD, "198.18.0.1").destination.port == 0


@pytest.mark.parametrize(
    ("source", "destination", "reason"),
    [
        ("pod/ns1/none", "ns1/svc1", "pod ns1/none is not known.*Give its IP"),
        (POD, "ns1/none", "Service ns1/none is not known"),
        (POD, "ns1/svc1:81", "no TCP port '81'; it has 80/TCP .p80."),
        (POD, "ns1/headless", "no cluster IP: kproxy does not serve it"),
        (POD, "[fd00::1]:80", "no IPv6 address"),
    ],
)
def test_what_is_not_known_is_named(source: str, destination: str, reason: str) -> None:
    known = cluster([service(), endpoint_slice(HERE), service("headless", "None")])
    with pytest.raises(QuestionError, match=reason):
        explain(known, source, destination)


def test_a_pod_of_another_node_comes_from_outside() -> None:
    known = cluster([service(), endpoint_slice(HERE, THERE)])
    report = explain(known, "pod/ns1/web-there", "ns1/svc1")
    assert (report.source.where, report.source.ip) == (Where.OUTSIDE, "10.244.2.7")
    assert "node node2" in report.notes[0]


_CONDITION = st.sampled_from([None, True, False])
_EPS = st.lists(
    st.builds(
        lambda local, ready, serving, terminating, zones, nodes: (
            local,
            ready,
            serving,
            terminating,
            zones,
            nodes,
        ),
        st.booleans(),
        _CONDITION,
        _CONDITION,
        _CONDITION,
        st.sampled_from([(), ("zone-a",), ("zone-b",)]),
        st.sampled_from([(), ("node1",), ("node2",)]),
    ),
    max_size=4,
)
_DESTINATIONS: dict[semantics.Kind, str] = {
    "cluster": "10.96.0.1:80",
    "external": f"{EXTERNAL}:80",
    "balancer": f"{BALANCER}:80",
    "node": f"{NODE_IP}:30080",
}
_SOURCES: dict[semantics.Vantage, str] = {"outside": OUTSIDER, "node": "node", "pod": POD}


@settings(max_examples=200, deadline=None)
@cases(
    eps=_EPS,
    policies=st.tuples(st.sampled_from(["Cluster", "Local"]), st.sampled_from(["Cluster", "Local"])),
    ranges=st.sampled_from([(), ("203.0.113.0/24",), ("10.244.0.0/16",), ("0.0.0.0/0",)]),
    masquerade_all=st.booleans(),
    mode=st.sampled_from(["iptables", "nftables", "ipvs"]),
    kind=st.sampled_from(sorted(_DESTINATIONS)),
    vantage=st.sampled_from(sorted(_SOURCES)),
)
def test_outcomes_are_those_of_an_independent_model(
    eps: list[tuple[Any, ...]],
    policies: tuple[str, str],
    ranges: tuple[str, ...],
    masquerade_all: bool,
    mode: str,
    kind: semantics.Kind,
    vantage: semantics.Vantage,
) -> None:
    entries, listed = [], []
    for number, (local, ready, serving, terminating, zones, nodes) in enumerate(eps):
        ip, node = f"10.244.{1 if local else 2}.{100 + number}", "node1" if local else "node2"
        conditions = {"ready": ready, "serving": serving, "terminating": terminating}
        entries.append(endpoint(ip, node=node, zones=zones, nodes=nodes, **conditions))
        listed.append(
            Ep(
                cast("Any", SimpleNamespace(name=f"{ip}:80", local=local)),
                ready,
                serving,
                terminating,
                zones,
                nodes,
            )
        )
    spec = {
        "internalTrafficPolicy": policies[0],
        "externalTrafficPolicy": policies[1],
        "loadBalancerSourceRanges": list(ranges),
    }
    known = cluster([outside(**spec), endpoint_slice(*entries)], mode, masquerade_all=masquerade_all)
    report = explain(known, _SOURCES[vantage], _DESTINATIONS[kind])
    site = semantics.Site("node1", "zone-a", NODE_IP, masquerade_all=masquerade_all)
    expected = semantics.outcome(
        semantics.Exposure(spec, listed),
        site,
        kind,
        vantage,
        NODE_IP if vantage == "node" else _SOURCES[vantage],
    )
    if expected.refusal:
        refused = REJECT if expected.refusal == semantics.REFUSED else DROP
        if (
            mode == "iptables"
            and refused is REJECT
            and vantage == "node"
            and kind in {"external", "balancer"}
        ):
            refused = PASS
        assert verdict(report) is refused
    else:
        share = round(1 / len(expected.pods), 6)
        assert results(report) == dict.fromkeys(expected.pods, (share, expected.masqueraded))
