"""Which endpoints are used: shares, readiness, termination, hints, slices; and what is not proxied at all."""

import pytest

from kproxy_lab.lab import Protocol
from kproxy_lab.lab.topology import NODE_IP4, NODE_IP6, Family
from tests.packets.cluster import ZONE, Cluster
from tests.packets.objects import FAMILIES, Ep, Port
from tests.packets.outcomes import names

pytestmark = pytest.mark.root


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_connections_are_spread_evenly(cluster: Cluster, family: Family, count: int) -> None:
    pods = cluster.lab.pods[:count]
    service = cluster.publish(pods)
    cluster.ask(cluster.lab.client, service.ip(family), 80, n=120 * count).assert_even(pods)


def test_an_endpoint_in_two_slices_counts_once(cluster: Cluster, family: Family) -> None:
    one, two, three = cluster.lab.pods[:3]
    service = cluster.service()
    cluster.slices(service, [one, two], name="a")
    cluster.slices(service, [two, three], name="b")
    cluster.settle()
    cluster.ask(cluster.lab.client, service.ip(family), 80, n=360).assert_even([one, two, three])
    cluster.api.delete("EndpointSlice", "default", f"{service.name}-a-{family}")
    cluster.settle()
    assert cluster.ask(cluster.lab.client, service.ip(family), 80).pods == names([two, three])


def test_endpoints_that_are_not_ready_get_nothing(cluster: Cluster, family: Family) -> None:
    one, two, three = cluster.lab.pods[:3]
    service = cluster.publish([one, Ep(two, ready=False), Ep(three, ready=None)])
    assert cluster.ask(cluster.lab.client, service.ip(family), 80).pods == names([one, three])
    cluster.scale(service, [Ep(one, ready=False), Ep(two, ready=False)])
    assert cluster.outcome(cluster.lab.client, service.ip(family), 80) == "Refused"
    cluster.scale(service, [one, two])
    assert cluster.ask(cluster.lab.client, service.ip(family), 80).pods == names([one, two])


def test_terminating_endpoints_serve_only_while_nothing_is_ready(cluster: Cluster, family: Family) -> None:
    one, two, three = cluster.lab.pods[:3]
    leaving = Ep(two, ready=False, serving=True, terminating=True)
    dead = Ep(three, ready=False, serving=False, terminating=True)
    service = cluster.publish([one, leaving, dead])
    assert cluster.ask(cluster.lab.client, service.ip(family), 80).pods == {one.name}
    cluster.scale(service, [Ep(one, ready=False), leaving, dead])
    assert cluster.ask(cluster.lab.client, service.ip(family), 80).pods == {two.name}
    cluster.scale(service, [dead])
    assert cluster.outcome(cluster.lab.client, service.ip(family), 80) == "Refused"


def test_local_policies_fall_back_to_local_terminating_endpoints(cluster: Cluster, family: Family) -> None:
    leaving, remote = cluster.lab.local_pods[0], cluster.lab.remote_pods[0]
    service = cluster.publish(
        [Ep(leaving, ready=False, serving=True, terminating=True), remote], internalTrafficPolicy="Local"
    )
    assert cluster.ask(cluster.lab.local_pods[1], service.ip(family), 80, n=20).pods == {leaving.name}


def test_zone_hints_keep_traffic_in_the_zone(cluster: Cluster, family: Family) -> None:
    one, two, three = cluster.lab.pods[:3]
    here, there = Ep(one, zones=(ZONE,)), Ep(two, zones=("zone-b",))
    service = cluster.publish([here, there])
    client = cluster.lab.client
    assert cluster.ask(client, service.ip(family), 80).pods == {one.name}
    try:
        cluster.set_node("zone-b")
        cluster.settle()
        cluster.running.until(lambda: cluster.ask(client, service.ip(family), 80, n=20).pods, {two.name})
    finally:
        cluster.set_node()
    cluster.running.until(lambda: cluster.ask(client, service.ip(family), 80, n=20).pods, {one.name})
    cluster.scale(service, [here, there, three])
    assert cluster.ask(client, service.ip(family), 80).pods == names([one, two, three])


def test_node_hints_keep_traffic_on_the_node_and_win_over_zones(cluster: Cluster, family: Family) -> None:
    local, remote = cluster.lab.local_pods[0], cluster.lab.remote_pods[0]
    node = cluster.lab.spec.node_name
    service = cluster.publish(
        [Ep(local, nodes=(node,), zones=(ZONE,)), Ep(remote, nodes=("another",), zones=(ZONE,))]
    )
    assert cluster.ask(cluster.lab.client, service.ip(family), 80, n=40).pods == {local.name}
    cluster.scale(service, [Ep(local, nodes=("another",)), Ep(remote, nodes=("third",))])
    assert cluster.ask(cluster.lab.client, service.ip(family), 80).pods == names([local, remote])


def test_scaling_from_none_to_some_to_none_and_away(cluster: Cluster, family: Family) -> None:
    pod, client = cluster.lab.local_pods[0], cluster.lab.client
    service = cluster.publish([])
    assert cluster.outcome(client, service.ip(family), 80) == "Refused"
    cluster.scale(service, [pod])
    assert cluster.outcome(client, service.ip(family), 80) == pod.name
    cluster.scale(service, [])
    assert cluster.outcome(client, service.ip(family), 80) == "Refused"
    cluster.delete(service)
    # The barrier covers translation; the rule that refuses is removed shortly after.
    cluster.running.until(lambda: cluster.outcome(client, service.ip(family), 80), cluster.mode.unserved)


@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_without_endpoints_every_client_is_refused_at_once(
    cluster: Cluster, family: Family, protocol: Protocol
) -> None:
    lab, external, balanced = cluster.lab, cluster.external_ips(), cluster.external_ips()
    service = cluster.publish(
        [Ep(lab.local_pods[0], ready=False)],
        type="LoadBalancer",
        ports=[Port(80, protocol)],
        externalIPs=list(external.values()),
        ingress=[{"ip": ip} for ip in balanced.values()],
    )
    node = (NODE_IP4 if family == 4 else NODE_IP6)[0]
    inside = ((service.ip(family), 80), (node, service.node_port))
    outside = ((external[family], 80), (balanced[family], 80))
    for source in (lab.client, lab.local_pods[0], lab.local_pods[1], lab.node):
        # Packets of the node to an outside address may leave it; then kproxy does not refuse them.
        for target in inside if source is lab.node else (*inside, *outside):
            found = cluster.outcome(source, *target, protocol)
            # On the node itself, sending the datagram fails, with another error.
            allowed = {"Refused", "Unreachable"} if (source, protocol) == (lab.node, "UDP") else {"Refused"}
            assert found in allowed, (source, target)


@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_what_is_not_ours_is_not_programmed(cluster: Cluster, protocol: str) -> None:
    pod, client = cluster.lab.local_pods[0], cluster.lab.client
    foreign = cluster.service(labels={"service.kubernetes.io/service-proxy-name": "another"})
    headless_slices = cluster.service()
    cluster.slices(foreign, [pod])
    cluster.slices(headless_slices, [pod], labels={"service.kubernetes.io/headless": ""})
    headless = cluster.service(clusterIP="None")
    cluster.slices(headless, [pod])
    cluster.service(type="ExternalName", externalName="example.com", families=())
    cluster.settle()
    assert headless.ips == {}
    for family in FAMILIES:
        assert cluster.outcome(client, foreign.ip(family), 80, protocol) == "Unreachable"  # type: ignore[arg-type]
    assert cluster.outcome(client, headless_slices.ip(4), 80) == "Refused"
    assert not [line for line in cluster.rules(4) if headless.name in line or foreign.name in line]
