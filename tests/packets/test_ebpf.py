"""A socket table in front of nftables: which connections it translates, and that they are as others are."""

import json
import socket
from typing import Any

import pytest

from kproxy.kernel.bpf import links
from kproxy.kernel.bpf.programs import HOOKS
from kproxy_lab.lab import cgroups
from kproxy_lab.lab.topology import NODE_IP4, NODE_IP6, Family
from tests.packets.cluster import Cluster
from tests.packets.modes import Capability
from tests.packets.objects import FAMILIES, NAMESPACE, TARGET, Port
from tests.packets.outcomes import Traffic, names
from tests.packets.pages import scrape, value
from tests.packets.socket_table import ASKS, at_sockets, degraded, programs, translated

pytestmark = [pytest.mark.root, pytest.mark.needs(Capability.SOCKET_TABLE)]

DOWN = ("ip", "link", "delete", "nodelocaldns")


def test_pods_and_the_node_are_served_at_their_sockets_and_others_by_packets(
    cluster: Cluster, family: Family
) -> None:
    lab = cluster.lab
    service = cluster.publish(lab.local_pods[1:3])
    assert degraded(cluster) == []
    assert at_sockets(cluster, lab.local_pods[0], service.ip(family))
    assert at_sockets(cluster, lab.node, service.ip(family))
    assert not at_sockets(cluster, lab.client, service.ip(family))
    assert not at_sockets(cluster, lab.remote_pods[0], service.ip(family))


@pytest.mark.parametrize("kind", ["IPv4", "IPv6", "IPv4 by an IPv6 socket"])
def test_a_client_sees_the_service_as_its_peer(cluster: Cluster, kind: str) -> None:
    """Also one whose socket is of the other family, as those of Go and Java are."""
    pod, server = cluster.lab.local_pods[:2]
    service = cluster.publish([server])
    ip = service.ip(6 if kind == "IPv6" else 4)
    asked = f"::ffff:{ip}" if kind == "IPv4 by an IPv6 socket" else ip
    number = socket.AF_INET6 if ":" in asked else socket.AF_INET
    with pod.namespace.open_socket(number, socket.SOCK_STREAM) as client:
        client.settimeout(10)
        client.connect((asked, 80))
        assert client.getpeername()[:2] == (asked, 80)
        client.sendall(b"who?\n")
        said = json.loads(client.makefile().readline())
    assert (said["pod"], said["port"]) == (server.name, TARGET)
    assert translated(cluster.lab, pod, ip) == []


def test_datagrams_are_left_to_nftables(cluster: Cluster, family: Family) -> None:
    """A socket that were connected to an endpoint would stay with it for good."""
    lab = cluster.lab
    asker, one, other = lab.local_pods[:3]
    service = cluster.publish([one], ports=[Port(53, "UDP")])
    with lab.hold(asker, service.ip(family), 53, "UDP") as held:
        assert held.exchange().pod == one.name
        assert len(translated(lab, asker, service.ip(family), 53, "udp")) == 1
        cluster.scale(service, [other])
        cluster.running.until(lambda: held.exchange().pod, other.name)


@pytest.mark.parametrize("kind", ["affinity", "external IP", "node port", "balancer"])
def test_other_addresses_and_session_affinity_are_left_to_nftables(
    cluster: Cluster, family: Family, kind: str
) -> None:
    lab, outside = cluster.lab, cluster.external_ips()
    asker, pod = lab.local_pods[:2]
    balancers = [{"ip": ip} for ip in outside.values()]
    affinity = {"sessionAffinity": "ClientIP"} if kind == "affinity" else {}
    variants: dict[str, dict[str, Any]] = {
        "affinity": {},
        "external IP": {"externalIPs": list(outside.values())},
        "node port": {"type": "NodePort"},
        "balancer": {"type": "LoadBalancer", "ingress": balancers},
    }
    service = cluster.publish([pod], **variants[kind], **affinity)
    node = NODE_IP4[0] if family == 4 else NODE_IP6[0]
    ip, port = {
        "affinity": (service.ip(family), 80),
        "node port": (node, service.node_ports.get("", 0)),
    }.get(kind, (outside[family], 80))
    assert not at_sockets(cluster, asker, ip, port)
    if kind != "affinity":
        assert at_sockets(cluster, asker, service.ip(family))


def test_a_service_follows_its_session_affinity_from_one_to_the_other(cluster: Cluster) -> None:
    asker, one, other = cluster.lab.local_pods[:3]
    service = cluster.publish([one, other])
    assert at_sockets(cluster, asker, service.ip(4))
    cluster.edit(service, lambda spec: spec.update(sessionAffinity="ClientIP"))
    cluster.settle()
    assert len(cluster.ask(asker, service.ip(4), 80, n=ASKS).pods) == 1
    cluster.edit(service, lambda spec: spec.update(sessionAffinity="None"))
    cluster.settle()
    assert at_sockets(cluster, asker, service.ip(4))
    assert cluster.ask(asker, service.ip(4), 80).pods == names([one, other])


def test_an_endpoint_that_has_been_replaced_is_never_met(cluster: Cluster) -> None:
    """Each pod that leaves refuses from then on, so that no connection to a former endpoint goes unseen."""
    lab = cluster.lab
    asker, *pods = lab.pods[:4]
    port = Port(80, target=9090)
    servers = {pod.name: lab.serve(pod, "TCP", 9090) for pod in pods[:1]}
    service = cluster.publish(pods[:1], ports=[port])
    targets = [(source, service.ip(family), 80) for family in FAMILIES for source in (asker, lab.node)]
    with Traffic(lab, targets) as traffic:
        for number in range(9):
            before, after = pods[number % 3], pods[(number + 1) % 3]
            servers[after.name] = lab.serve(after, "TCP", 9090)
            cluster.scale(service, [after])
            traffic.flow(1)  # what began before the change has arrived
            lab.stop_serving(servers.pop(before.name))
            for family in FAMILIES:
                assert cluster.ask(asker, service.ip(family), 80, n=ASKS).pods == {after.name}
    assert traffic.failures == []
    assert translated(lab, asker, service.ip(4)) == []
    for server in servers.values():
        lab.stop_serving(server)


def test_an_emptied_service_is_refused_at_once(cluster: Cluster, family: Family) -> None:
    lab = cluster.lab
    asker, pod = lab.local_pods[:2]
    service = cluster.publish([pod])
    assert at_sockets(cluster, asker, service.ip(family))
    cluster.scale(service, [])
    for source in (asker, lab.node):
        asked = lab.ask_many(source, service.ip(family), 80, ASKS)
        assert asked in ({"Refused": ASKS}, {"Unreachable": ASKS} if source is lab.node else {}), asked
    cluster.scale(service, [pod])
    assert at_sockets(cluster, asker, service.ip(family))


def test_an_open_connection_outlives_its_endpoints_departure_and_its_service(cluster: Cluster) -> None:
    lab = cluster.lab
    asker, first, second = lab.local_pods[:3]
    service = cluster.publish([first])
    with lab.hold(asker, service.ip(4), 80) as held, lab.hold(asker, service.ip(6), 80) as held6:
        for endpoints in ([first, second], [second], []):
            cluster.scale(service, endpoints)
            assert [each.exchange().pod for each in (held, held6)] == [first.name] * 2
        cluster.delete(service)
        cluster.settle()
        assert [each.exchange().pod for each in (held, held6)] == [first.name] * 2


def test_an_address_of_the_node_is_not_in_the_table(cluster: Cluster, family: Family) -> None:
    """NodeLocal DNSCache has the cluster IP of the cluster's DNS; rules keep its packets as they are."""
    lab, node = cluster.lab, cluster.lab.node
    asker, pod = lab.local_pods[:2]
    service = cluster.publish([pod])
    ip = service.ip(family)
    assert at_sockets(cluster, asker, ip)
    word, table = ("ip", "ip cache") if family == 4 else ("ip6", "ip6 cache")
    untracked = "".join(
        f"add chain {table} {hook} {{ type filter hook {hook} priority raw; }};"
        f"add rule {table} {hook} {word} {side} {ip} notrack;"
        for hook, side in (("prerouting", "daddr"), ("output", "saddr"))
    )
    node.run(["ip", "link", "add", "nodelocaldns", "type", "bridge"])
    try:
        node.run(
            ["ip", "address", "add", f"{ip}/{32 if family == 4 else 128}", "dev", "nodelocaldns", "nodad"]
        )
        cluster.running.until(lambda: at_sockets(cluster, asker, ip), expected=False)
        server = lab.serve(lab.node_pod, "TCP", 80, addresses=[ip])
        node.run(["nft", f"add table {table}; {untracked}"])
        assert cluster.ask(asker, ip, 80, n=ASKS).pods == {lab.node_pod.name}
        lab.stop_serving(server)
        node.run(["nft", "delete", "table", *table.split()])
    finally:
        node.run(DOWN)
    cluster.running.until(lambda: at_sockets(cluster, asker, ip), expected=True)
    assert cluster.ask(asker, ip, 80, n=ASKS).pods == {pod.name}


def test_what_masquerades_everything_needs_packets(spare: Cluster) -> None:
    spare.start("--masquerade-all")
    asker, pod = spare.lab.local_pods[:2]
    service = spare.publish([pod])
    for family in FAMILIES:
        assert not at_sockets(spare, asker, service.ip(family))
        assert spare.ask(asker, service.ip(family), 80, n=3).sources == spare.as_node([pod], family)


def test_the_sockets_of_pods_can_be_left_alone(spare: Cluster) -> None:
    """Proxies of meshes in pods have to see the cluster IP."""
    spare.start("--ebpf-host-namespace-only")
    asker, pod = spare.lab.local_pods[:2]
    service = spare.publish([pod])
    for family in FAMILIES:
        assert at_sockets(spare, spare.lab.node, service.ip(family))
        assert not at_sockets(spare, asker, service.ip(family))


def test_a_local_policy_counts_at_sockets(cluster: Cluster, family: Family) -> None:
    lab = cluster.lab
    asker, pod, remote = lab.local_pods[0], lab.local_pods[1], lab.remote_pods[0]
    service = cluster.publish([pod, remote], internalTrafficPolicy="Local")
    assert at_sockets(cluster, asker, service.ip(family))
    assert cluster.ask(asker, service.ip(family), 80, n=ASKS).pods == {pod.name}
    cluster.scale(service, [remote])
    assert cluster.silent(asker, service.ip(family), 80)


def test_programs_are_at_the_cgroup_of_the_node_only(cluster: Cluster) -> None:
    """Nodes of other labs on the same machine are not affected, and this machine itself is not."""
    found = programs(cluster.lab)
    assert found.keys() == HOOKS.keys()
    assert {len(numbers) for numbers in found.values()} == {1}
    for name, hook in HOOKS.items():
        assert not set(links.hook_programs(cgroups.home(), hook).programs) & set(found[name])


def test_connections_of_both_ways_are_counted_together(spare: Cluster) -> None:
    spare.start()
    lab = spare.lab
    service = spare.publish([lab.local_pods[0]], type="NodePort")
    labels = {"namespace": NAMESPACE, "service": service.name, "port": "", "protocol": "TCP"}
    asked = {"IPv4": 3.0 + 4 + 5 + 2, "IPv6": 2.0}
    spare.ask(lab.local_pods[1], service.ip(4), 80, n=3)
    spare.ask(lab.node, service.ip(4), 80, n=4)
    spare.ask(lab.client, service.ip(4), 80, n=5)
    spare.ask(lab.client, NODE_IP4[0], service.node_port, n=2)
    spare.ask(lab.local_pods[1], service.ip(6), 80, n=2)

    def counted() -> dict[str, float]:
        found = scrape(spare)
        return {
            name: value(found, "kproxy_service_connections_total", **labels, ip_family=name) for name in asked
        }

    spare.running.until(counted, {name: float(number) for name, number in asked.items()})
    spare.running.until(lambda: value(scrape(spare), "kproxy_ebpf_socket_table", state="serving"), 1.0)
