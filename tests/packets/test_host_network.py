"""Pods in their node's own network, as endpoints and as clients, of either node."""

import pytest

from kproxy_lab.lab import Protocol
from kproxy_lab.lab.topology import NODE_IP4, NODE_IP6, Family
from tests.packets.cluster import Cluster
from tests.packets.objects import Port
from tests.packets.outcomes import names

pytestmark = pytest.mark.root

HOST_TARGET = 10180
"""A port that nothing else on a node has."""


@pytest.fixture(params=["TCP", "UDP"])
def protocol(request: pytest.FixtureRequest) -> Protocol:
    chosen: Protocol = request.param
    return chosen


@pytest.fixture(autouse=True)
def _listening(cluster: Cluster, protocol: Protocol) -> object:
    lab = cluster.lab
    servers = [
        lab.serve(pod, protocol, HOST_TARGET) for pod in (lab.node_pod, lab.peer_pod, lab.local_pods[0])
    ]
    yield
    for server in servers:
        lab.stop_serving(server)


def test_every_client_reaches_endpoints_on_the_nodes(
    cluster: Cluster, family: Family, protocol: Protocol
) -> None:
    lab, outside = cluster.lab, cluster.external_ips()
    pods = [lab.node_pod, lab.peer_pod, lab.local_pods[0]]
    ports = [Port(80, protocol, target=HOST_TARGET)]
    service = cluster.publish(pods, ports=ports, type="NodePort", externalIPs=list(outside.values()))
    node = (NODE_IP4 if family == 4 else NODE_IP6)[0]
    for source in (lab.client, lab.node, lab.local_pods[0], lab.local_pods[1]):
        for target in ((service.ip(family), 80), (outside[family], 80), (node, service.node_port)):
            assert cluster.ask(source, *target, protocol).pods == names(pods), (source, target)
    asker = lab.local_pods[1]
    seen = cluster.ask(asker, service.ip(family), 80, protocol)
    assert seen.sources == {pod.name: {asker.ip(family)} for pod in pods}


def test_local_policies_count_the_node_itself(cluster: Cluster, family: Family, protocol: Protocol) -> None:
    lab, outside = cluster.lab, cluster.external_ips()
    ports = [Port(80, protocol, target=HOST_TARGET)]
    service = cluster.publish(
        [lab.node_pod, lab.peer_pod],
        ports=ports,
        type="LoadBalancer",
        ingress=[{"ip": ip} for ip in outside.values()],
        internalTrafficPolicy="Local",
        externalTrafficPolicy="Local",
    )
    for source in (lab.local_pods[1], lab.node, lab.client):
        seen = cluster.ask(source, service.ip(family), 80, protocol, n=20)
        assert seen.pods == {lab.node_pod.name}
    client = cluster.client_ips(family)[0]
    node = (NODE_IP4 if family == 4 else NODE_IP6)[0]
    for target in ((outside[family], 80), (node, service.node_port)):
        seen = cluster.ask(lab.client, *target, protocol, n=20, source_ips=[client])
        assert seen.sources == {lab.node_pod.name: {client}}
    cluster.scale(service, [lab.peer_pod])
    assert cluster.silent(lab.local_pods[1], service.ip(family), 80, protocol)
    assert cluster.silent(lab.client, outside[family], 80, protocol)
