"""Messages of many packets, and paths with a small MTU: ICMP errors about the MTU are translated, too."""

from collections.abc import Iterator

import pytest

from kproxy_lab.lab import Namespace, Pod
from kproxy_lab.lab.topology import BRIDGE, NODE_IP4, NODE_IP6, Family
from tests.packets.cluster import PATIENCE, Cluster
from tests.packets.modes import Capability
from tests.packets.objects import Port, Service

pytestmark = pytest.mark.root


def _targets(
    cluster: Cluster, service: Service, family: Family
) -> Iterator[tuple[Namespace | Pod, str, int]]:
    """Yield the origins and addresses of the requests.

    The loopback has no path MTU, so requests of a node to its own addresses are left out; in IPVS mode these
    include the addresses of services.
    """
    lab = cluster.lab
    for source in (lab.client, lab.local_pods[0]):
        yield source, service.ip(family), service.port
        yield source, (NODE_IP4 if family == 4 else NODE_IP6)[0], service.node_port
    if Capability.VIRTUAL_SERVERS not in cluster.mode.capabilities:
        yield lab.node, service.ip(family), service.port


def test_large_datagrams_pass_both_ways(cluster: Cluster, family: Family) -> None:
    """Fragments are translated as a whole."""
    pod, text = cluster.lab.remote_pods[0], "x" * 9000
    service = cluster.publish([pod], ports=[Port(53, "UDP")], type="NodePort")
    for source, ip, port in _targets(cluster, service, family):
        answer = cluster.lab.ask(source, ip, port, "UDP", text=text, timeout=PATIENCE)
        assert (answer.pod, answer.text) == (pod.name, text)


def test_a_client_learns_that_a_path_is_narrower(cluster: Cluster, family: Family) -> None:
    """The other node's ICMP errors name the pod, or this node; the client has asked a service."""
    lab = cluster.lab
    pod, text = lab.remote_pods[0], "x" * 60_000
    service = cluster.publish([pod], type="NodePort")
    narrow = [f"-{family}", "route", "{}", pod.ip(family), "dev", BRIDGE, "mtu", "1300"]
    lab.peer.run(["ip", *(word.format("add") for word in narrow)])
    try:
        for source, ip, port in _targets(cluster, service, family):
            answer = lab.ask(source, ip, port, text=text, timeout=PATIENCE)
            assert (answer.pod, answer.text) == (pod.name, text)
    finally:
        lab.peer.run(["ip", *(word.format("del") for word in narrow)])
