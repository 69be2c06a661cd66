"""Node ports, load-balancer and external addresses: which clients may use them, and the source pods see."""

import socket
from pathlib import Path

import pytest

from kproxy_lab.lab.topology import NODE_IP4, NODE_IP6, Family
from tests.packets.cluster import PATIENCE, Cluster
from tests.packets.modes import Capability
from tests.packets.objects import FAMILIES, Port
from tests.packets.outcomes import names

pytestmark = pytest.mark.root


def node_addresses(family: Family) -> tuple[str, ...]:
    return NODE_IP4 if family == 4 else NODE_IP6


@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_a_node_port_answers_on_every_address_of_the_node(
    cluster: Cluster, family: Family, protocol: str
) -> None:
    pods = cluster.lab.pods[:4]
    service = cluster.publish(pods, type="NodePort", ports=[Port(80, protocol)])  # type: ignore[arg-type]
    for address in node_addresses(family):
        for source in (cluster.lab.client, cluster.lab.node):
            seen = cluster.ask(source, address, service.node_port, protocol)  # type: ignore[arg-type]
            assert seen.pods == names(pods)
            assert seen.sources == cluster.as_node(pods, family)
        asker = cluster.lab.local_pods[-1]
        assert cluster.ask(asker, address, service.node_port, protocol, n=3).pods <= names(pods)  # type: ignore[arg-type]


@pytest.mark.needs(Capability.LOCALHOST_NODE_PORTS)
def test_a_node_port_answers_on_localhost(cluster: Cluster) -> None:
    pods = cluster.lab.pods[:4]
    service = cluster.publish(pods, type="NodePort")
    assert cluster.ask(cluster.lab.node, "127.0.0.1", service.node_port).pods == names(pods)
    assert cluster.outcome(cluster.lab.node, "::1", service.node_port) == "Refused"


@pytest.mark.parametrize("kind", ["external", "balancer"])
def test_an_outside_address_answers_every_client(cluster: Cluster, family: Family, kind: str) -> None:
    lab = cluster.lab
    pods = lab.pods[:4]
    ips = cluster.external_ips()
    if kind == "external":
        cluster.publish(pods, externalIPs=[ips[f] for f in FAMILIES])
    else:
        cluster.publish(pods, type="LoadBalancer", ingress=[{"ip": ips[f]} for f in FAMILIES])
    for source in (lab.client, lab.local_pods[-1], lab.node):
        seen = cluster.ask(source, ips[family], 80)
        assert seen.pods == names(pods)
        assert seen.sources == cluster.as_node(pods, family)


def test_sctp_reaches_outside_addresses(cluster: Cluster, family: Family) -> None:
    pod, ips = cluster.lab.local_pods[0], cluster.external_ips()
    ports = [Port(3868, "SCTP")]
    service = cluster.publish([pod], type="NodePort", ports=ports, externalIPs=[ips[f] for f in FAMILIES])
    for ip, port in ((ips[family], 3868), (node_addresses(family)[0], service.node_port)):
        arrived = cluster.lab.probe_sctp(cluster.lab.client, ip, port, timeout=5)
        assert arrived is not None
        assert (arrived.pod, arrived.answered) == (pod.name, True)


def test_an_address_in_proxy_mode_is_left_to_the_provider(cluster: Cluster, family: Family) -> None:
    ips, others = cluster.external_ips(), cluster.external_ips()
    ingress = [{"ip": ips[f], "ipMode": "Proxy"} for f in FAMILIES]
    ingress += [{"ip": others[f], "ipMode": "VIP"} for f in FAMILIES]
    cluster.publish([cluster.lab.local_pods[0]], type="LoadBalancer", ingress=ingress)
    assert cluster.outcome(cluster.lab.client, ips[family], 80) == "Unreachable"
    assert cluster.outcome(cluster.lab.client, others[family], 80) == cluster.lab.local_pods[0].name


def test_source_ranges_admit_only_whom_they_name(cluster: Cluster, family: Family) -> None:
    pod, ips = cluster.lab.local_pods[0], cluster.external_ips()
    allowed, denied = cluster.client_ips(family)[:2]
    ranges = [f"{cluster.client_ips(4)[0]}/32", f" {cluster.client_ips(6)[0]}/128 "]
    service = cluster.publish(
        [pod],
        type="LoadBalancer",
        ingress=[{"ip": ips[f]} for f in FAMILIES],
        loadBalancerSourceRanges=ranges,
    )
    client = cluster.lab.client
    assert cluster.outcome(client, ips[family], 80, source_ip=allowed) == pod.name
    assert cluster.silent(client, ips[family], 80, source_ip=denied)
    assert cluster.silent(cluster.lab.local_pods[1], ips[family], 80)
    node_address = node_addresses(family)[0]
    assert cluster.outcome(client, node_address, service.node_port, source_ip=denied) == pod.name
    assert cluster.outcome(client, service.ip(family), 80, source_ip=denied) == pod.name


def test_ranges_of_one_family_do_not_restrict_the_other(cluster: Cluster) -> None:
    pod, ips = cluster.lab.local_pods[0], cluster.external_ips()
    cluster.publish(
        [pod],
        type="LoadBalancer",
        ingress=[{"ip": ips[f]} for f in FAMILIES],
        loadBalancerSourceRanges=["198.51.100.0/24"],
    )
    assert cluster.silent(cluster.lab.client, ips[4], 80)
    assert cluster.outcome(cluster.lab.client, ips[6], 80) == pod.name


def test_ranges_of_an_address_that_is_an_external_one_too(cluster: Cluster, family: Family) -> None:
    """In iptables mode the rule of the external address comes first; the other modes decide by address."""
    pod, ips = cluster.lab.local_pods[0], cluster.external_ips()
    allowed, denied = cluster.client_ips(family)[:2]
    cluster.publish(
        [pod],
        type="LoadBalancer",
        externalIPs=list(ips.values()),
        ingress=[{"ip": ip} for ip in ips.values()],
        loadBalancerSourceRanges=[f"{cluster.client_ips(4)[0]}/32", f"{cluster.client_ips(6)[0]}/128"],
    )
    assert cluster.outcome(cluster.lab.client, ips[family], 80, source_ip=allowed) == pod.name
    restricted = Capability.SERVICE_CHAINS not in cluster.mode.capabilities
    assert cluster.silent(cluster.lab.client, ips[family], 80, source_ip=denied) is restricted


def test_ranges_that_include_the_node_admit_the_node(cluster: Cluster, family: Family) -> None:
    pod, ips = cluster.lab.local_pods[0], cluster.external_ips()
    cluster.publish(
        [pod],
        type="LoadBalancer",
        ingress=[{"ip": ips[f]} for f in FAMILIES],
        loadBalancerSourceRanges=[f"{NODE_IP4[0]}/32", f"{NODE_IP6[0]}/128"],
    )
    assert cluster.outcome(cluster.lab.node, ips[family], 80) == pod.name
    assert cluster.silent(cluster.lab.client, ips[family], 80)


def test_ranges_that_include_the_address_itself_do_not_admit_the_node(
    cluster: Cluster, family: Family
) -> None:
    """In IPVS mode the node's source address is the destination address itself."""
    lab, ips = cluster.lab, cluster.external_ips()
    cluster.publish(
        [lab.local_pods[0]],
        type="LoadBalancer",
        ingress=[{"ip": ips[f]} for f in FAMILIES],
        loadBalancerSourceRanges=[
            *lab.spec.external_cidrs,
            f"{cluster.client_ips(4)[0]}/32",
            f"{cluster.client_ips(6)[0]}/128",
        ],
    )
    assert cluster.outcome(lab.client, ips[family], 80) == lab.local_pods[0].name
    assert cluster.silent(lab.node, ips[family], 80)


def test_the_older_of_two_claimants_answers_and_the_younger_takes_over(
    cluster: Cluster, family: Family
) -> None:
    old_pod, new_pod = cluster.lab.local_pods[:2]
    ips = cluster.external_ips()
    since = cluster.running.mark()
    shared = [ips[f] for f in FAMILIES]
    younger = cluster.service(externalIPs=shared, created="2026-02-02T00:00:00Z")
    cluster.slices(younger, [new_pod])
    older = cluster.service(externalIPs=shared, created="2025-01-01T00:00:00Z")
    cluster.slices(older, [old_pod])
    cluster.settle()
    assert cluster.ask(cluster.lab.client, ips[family], 80, n=20).pods == {old_pod.name}
    line = cluster.running.wait_log("object_problem", younger.key, "already", since=since)
    assert older.key in line
    cluster.delete(older)
    cluster.settle()
    assert cluster.ask(cluster.lab.client, ips[family], 80, n=20).pods == {new_pod.name}


def test_a_younger_service_gets_nothing_where_policy_local_drops(cluster: Cluster, family: Family) -> None:
    """On this node the older service has no endpoint, so that its load balancer sends nothing here."""
    lab, ips = cluster.lab, cluster.external_ips()
    fields = {"type": "LoadBalancer", "ingress": [{"ip": ips[f]} for f in FAMILIES]}
    older = cluster.service(
        **fields,  # type: ignore[arg-type]
        externalTrafficPolicy="Local",
        healthCheckNodePort=cluster.free_node_port(),
        created="2025-01-01T00:00:00Z",
    )
    cluster.slices(older, [pod for pod in lab.pods if not pod.local][:1])
    cluster.publish([lab.local_pods[0]], **fields, created="2026-02-02T00:00:00Z")
    assert cluster.silent(lab.client, ips[family], 80)


def test_an_external_ip_does_not_take_a_load_balancers_address(cluster: Cluster, family: Family) -> None:
    owner, thief = cluster.lab.local_pods[:2]
    ips = cluster.external_ips()
    shared = [ips[f] for f in FAMILIES]
    cluster.publish([owner], type="LoadBalancer", ingress=[{"ip": ip} for ip in shared])
    cluster.publish([thief], externalIPs=shared, created="2000-01-01T00:00:00Z")
    assert cluster.ask(cluster.lab.client, ips[family], 80, n=20).pods == {owner.name}


def test_a_service_cannot_cut_kproxy_off(spare: Cluster, tmp_path: Path) -> None:
    """Neither its API server, reached at an address of the node, nor its health checks are cut off."""
    pod, ips, node = spare.lab.local_pods[0], spare.external_ips(), NODE_IP4[0]
    kubeconfig = spare.api.kubeconfig(tmp_path / "kubeconfig", server=f"http://{node}:{spare.api.port}")
    spare.start("--kubeconfig", str(kubeconfig))
    ports = [Port(spare.api.port, name="api"), Port(10256, name="health"), Port(80, name="web")]
    since = spare.running.mark()
    thief = spare.publish(
        [pod],
        type="LoadBalancer",
        externalIPs=[node, ips[4]],
        ingress=[{"ip": node}, {"ip": "127.0.0.1"}],
        ports=ports,
    )
    spare.running.wait_log("object_problem", thief.key, "API server", since=since)
    spare.running.wait_log("object_problem", thief.key, "loopback", since=since)
    for port in ports:  # what is refused costs the service nothing else
        assert spare.outcome(spare.lab.client, ips[4], port.number) == pod.name
    assert spare.outcome(spare.lab.client, node, 80) == pod.name
    with spare.lab.client.open_socket(socket.AF_INET, socket.SOCK_STREAM) as asked:
        asked.settimeout(PATIENCE)
        asked.connect((node, 10256))
        asked.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
        assert b" 200 " in asked.recv(100)

    spare.api.restart()  # every watch has to connect anew
    after = spare.publish([pod])
    assert spare.outcome(spare.lab.client, after.ip(4), 80) == pod.name


def test_no_external_ip_captures_a_cluster_ip(cluster: Cluster, family: Family) -> None:
    pod, thief = cluster.lab.local_pods[:2]
    victim = cluster.publish([pod])
    cluster.publish([thief], externalIPs=[victim.ip(family)], created="2000-01-01T00:00:00Z")
    assert cluster.ask(cluster.lab.client, victim.ip(family), 80, n=20).pods == {pod.name}
