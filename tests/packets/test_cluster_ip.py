"""Cluster IPs: pods, the node and clients outside reach every endpoint, and are seen as they should be."""

import pytest

from kproxy_lab.lab import ArrivedAt, Protocol, Refused
from kproxy_lab.lab.topology import Family
from tests.packets.cluster import ENOUGH, Cluster
from tests.packets.objects import FAMILIES, OTHER_TARGET, TARGET, Port
from tests.packets.outcomes import names

pytestmark = pytest.mark.root


@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_every_client_reaches_every_endpoint(cluster: Cluster, protocol: Protocol, family: Family) -> None:
    lab = cluster.lab
    asker, *pods = lab.pods[:4]
    service = cluster.publish(pods, ports=[Port(80, protocol)])
    for source in (asker, lab.node, lab.client):
        seen = cluster.ask(source, service.ip(family), 80, protocol)
        assert seen.pods == names(pods)
        if source is asker:
            assert seen.sources == {pod.name: {asker.ip(family)} for pod in pods}
        else:
            assert seen.sources == cluster.as_node(pods, family)


def test_pods_of_another_node_keep_their_address(cluster: Cluster, family: Family) -> None:
    asker, pod = cluster.lab.remote_pods[0], cluster.lab.local_pods[0]
    service = cluster.publish([pod])
    assert cluster.ask(asker, service.ip(family), 80).sources == {pod.name: {asker.ip(family)}}


def test_a_pod_reaches_itself_through_its_service(cluster: Cluster, family: Family) -> None:
    pod = cluster.lab.local_pods[1]
    service = cluster.publish([pod])
    itself = cluster.as_itself(pod, family)
    assert cluster.ask(pod, service.ip(family), 80, n=3).sources == {pod.name: itself}


def test_a_pod_among_others_is_masqueraded_only_towards_itself(cluster: Cluster, family: Family) -> None:
    pod, other = cluster.lab.local_pods[:2]
    service = cluster.publish([pod, other])
    seen = cluster.ask(pod, service.ip(family), 80)
    assert seen.sources == {pod.name: cluster.as_itself(pod, family), other.name: {pod.ip(family)}}


def test_sctp_arrives_translated(cluster: Cluster, family: Family) -> None:
    lab = cluster.lab
    asker, *pods = lab.pods[:4]
    service = cluster.publish(pods, ports=[Port(3868, "SCTP", target=3869)])
    for source in (asker, lab.node, lab.client):
        arrived = [lab.probe_sctp(source, service.ip(family), 3868, timeout=5) for _ in range(4)]
        for at in arrived:
            assert isinstance(at, ArrivedAt)
            assert at.pod in names(pods)
            assert (at.port, at.answered) == (3869, True)
            masqueraded = cluster.as_node(pods, family)[at.pod]
            assert {at.source_ip} == ({asker.ip(family)} if source is asker else masqueraded)


def test_sctp_spreads_over_endpoints(cluster: Cluster, family: Family) -> None:
    pods = cluster.lab.local_pods[:2]
    service = cluster.publish(pods, ports=[Port(3868, "SCTP")])
    arrived = set()
    for _ in range(ENOUGH):
        at = cluster.lab.probe_sctp(cluster.lab.client, service.ip(family), 3868, timeout=5)
        assert at is not None
        arrived.add(at.pod)
        if arrived == names(pods):
            return
    assert arrived == names(pods)


def test_sctp_without_endpoints_is_refused(cluster: Cluster, family: Family) -> None:
    service = cluster.publish([], ports=[Port(3868, "SCTP")])
    with pytest.raises(Refused):
        cluster.lab.probe_sctp(cluster.lab.client, service.ip(family), 3868, timeout=5)


def test_every_port_of_a_service_leads_to_its_own_target(cluster: Cluster, family: Family) -> None:
    pods = cluster.lab.pods[1:4]
    service = cluster.publish(
        pods,
        ports=[
            Port(80, name="web", target=TARGET),
            Port(443, name="secure", target=OTHER_TARGET),
            Port(53, "UDP", name="dns", target=OTHER_TARGET),
        ],
    )
    asker = cluster.lab.pods[0]
    for port in service.ports:
        seen = cluster.ask(asker, service.ip(family), port.number, port.protocol)
        assert seen.targets == {pod.name: {port.target} for pod in pods}
    assert cluster.outcome(asker, service.ip(family), 53) == cluster.mode.unserved
    assert cluster.outcome(asker, service.ip(family), 81) == cluster.mode.unserved


def test_one_number_with_two_protocols_is_two_ports(cluster: Cluster, family: Family) -> None:
    one, other = cluster.lab.local_pods[1], cluster.lab.remote_pods[0]
    tcp = Port(53, "TCP", name="dns-tcp", target=TARGET)
    udp = Port(53, "UDP", name="dns-udp", target=OTHER_TARGET)
    service = cluster.service(ports=[tcp, udp])
    cluster.slices(service, [one], ports=[tcp])
    cluster.slices(service, [other], ports=[udp], name="b")
    cluster.settle()
    asker = cluster.lab.pods[0]
    assert cluster.ask(asker, service.ip(family), 53, "TCP").targets == {one.name: {TARGET}}
    assert cluster.ask(asker, service.ip(family), 53, "UDP").targets == {other.name: {OTHER_TARGET}}


def test_a_named_target_port_may_have_another_number_in_each_slice(cluster: Cluster, family: Family) -> None:
    old, new = cluster.lab.local_pods[1:3]
    port = Port(80, name="web", target_name="http")
    service = cluster.service(ports=[port])
    cluster.slices(service, [old], ports=[Port(80, name="web", target=TARGET)])
    cluster.slices(service, [new], ports=[Port(80, name="web", target=OTHER_TARGET)], name="b")
    cluster.settle()
    seen = cluster.ask(cluster.lab.client, service.ip(family), 80)
    assert seen.targets == {old.name: {TARGET}, new.name: {OTHER_TARGET}}


def test_an_endpoint_port_that_the_service_does_not_have_is_not_offered(
    cluster: Cluster, family: Family
) -> None:
    pod = cluster.lab.local_pods[1]
    service = cluster.service(ports=[Port(80, name="web"), Port(81, name="none")])
    cluster.slices(service, [pod], ports=[Port(80, name="web"), Port(82, name="metrics")])
    cluster.settle()
    assert cluster.ask(cluster.lab.client, service.ip(family), 80, n=3).pods == {pod.name}
    assert cluster.outcome(cluster.lab.client, service.ip(family), 81) == "Refused"
    assert cluster.outcome(cluster.lab.client, service.ip(family), 82) == cluster.mode.unserved


@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_a_dual_stack_service_answers_on_both_addresses(cluster: Cluster, protocol: Protocol) -> None:
    v4, v6 = cluster.lab.local_pods[:2]
    service = cluster.service(ports=[Port(80, protocol)])
    cluster.slices(service, [v4, v6])
    cluster.settle()
    for family in FAMILIES:
        seen = cluster.ask(cluster.lab.client, service.ip(family), 80, protocol)
        assert seen.pods == names([v4, v6])
        assert {":" in answer.address_seen for answer in seen.answers} == {family == 6}


def test_a_single_stack_service_answers_on_its_one_address(cluster: Cluster, family: Family) -> None:
    pod = cluster.lab.local_pods[0]
    service = cluster.publish([pod], families=[family])
    assert set(service.ips) == {family}
    assert cluster.ask(cluster.lab.client, service.ip(family), 80, n=3).pods == {pod.name}


def test_a_service_may_lose_and_gain_a_family(cluster: Cluster) -> None:
    pod, client = cluster.lab.local_pods[0], cluster.lab.client
    service = cluster.publish([pod], families=[4])
    second = "fd00:10:96::f001"

    def grow(spec: dict[str, object]) -> None:
        spec.update(
            ipFamilyPolicy="RequireDualStack",
            ipFamilies=["IPv4", "IPv6"],
            clusterIPs=[service.ip(4), second],
        )

    def shrink(spec: dict[str, object]) -> None:
        spec.update(ipFamilyPolicy="SingleStack", ipFamilies=["IPv4"], clusterIPs=[service.ip(4)])

    cluster.edit(service, grow)
    cluster.settle()
    assert cluster.outcome(client, second, 80) == "Refused"  # no endpoints of this family yet
    cluster.edit(service, shrink)
    cluster.running.until(lambda: cluster.outcome(client, second, 80), "Unreachable")
    assert cluster.outcome(client, service.ip(4), 80) == pod.name
