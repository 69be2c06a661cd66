"""Messages of many packets, and paths for smaller ones only: what tells of those is translated, too."""

import pytest

from kproxy.testing.lab.topology import BRIDGE, NODE_IP4, NODE_IP6, Family
from tests.packets.cluster import PATIENCE, Cluster
from tests.packets.objects import Port

pytestmark = pytest.mark.root


def test_large_datagrams_pass_both_ways(cluster: Cluster, family: Family) -> None:
    """Fragments are translated as a whole."""
    lab = cluster.lab
    pod, text = lab.remote_pods[0], "x" * 9000
    service = cluster.publish([pod], ports=[Port(53, "UDP")], type="NodePort")
    node = (NODE_IP4 if family == 4 else NODE_IP6)[0]
    for source in (lab.client, lab.node, lab.local_pods[0]):
        for target in ((service.ip(family), 53), (node, service.node_port)):
            answer = lab.ask(source, *target, "UDP", text=text, timeout=PATIENCE)
            assert (answer.pod, answer.text) == (pod.name, text)


def test_a_client_learns_that_a_path_is_narrower(cluster: Cluster, family: Family) -> None:
    """The other node's ICMP errors name the pod, or this node; the client has asked a service."""
    lab = cluster.lab
    pod, text = lab.remote_pods[0], "x" * 60_000
    service = cluster.publish([pod], type="NodePort")
    node = (NODE_IP4 if family == 4 else NODE_IP6)[0]
    narrow = [f"-{family}", "route", "{}", pod.ip(family), "dev", BRIDGE, "mtu", "1300"]
    lab.peer.run(["ip", *(word.format("add") for word in narrow)])
    try:
        for source in (lab.client, lab.local_pods[0], lab.node):
            targets = ((service.ip(family), 80), (node, service.node_port))
            # The node asks its own addresses by way of the loopback, which learns nothing of paths.
            for target in targets[:1] if source is lab.node else targets:
                answer = lab.ask(source, *target, text=text, timeout=PATIENCE)
                assert (answer.pod, answer.text) == (pod.name, text)
    finally:
        lab.peer.run(["ip", *(word.format("del") for word in narrow)])
