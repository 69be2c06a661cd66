"""internalTrafficPolicy and externalTrafficPolicy Local: local endpoints only, and drop or reject without."""

import sys

import pytest

from kproxy_lab.lab.topology import NODE_IP4, NODE_IP6, Family
from tests.packets.cluster import Cluster
from tests.packets.objects import FAMILIES, Ep
from tests.packets.outcomes import names

pytestmark = pytest.mark.root


def test_internal_local_uses_local_endpoints_only(cluster: Cluster, family: Family) -> None:
    lab = cluster.lab
    local, remote = lab.local_pods[:2], lab.remote_pods[:2]
    service = cluster.publish([*local, *remote], internalTrafficPolicy="Local")
    for source in (lab.local_pods[2], lab.node, lab.client):
        assert cluster.ask(source, service.ip(family), 80).pods == names(local)


def test_internal_local_drops_without_local_and_rejects_without_any(cluster: Cluster, family: Family) -> None:
    lab = cluster.lab
    service = cluster.publish(lab.remote_pods[:1], internalTrafficPolicy="Local")
    assert cluster.silent(lab.local_pods[0], service.ip(family), 80)
    assert cluster.silent(lab.node, service.ip(family), 80)
    cluster.scale(service, [])
    assert cluster.outcome(lab.local_pods[0], service.ip(family), 80) == "Refused"
    cluster.scale(service, lab.local_pods[1:2])
    assert cluster.outcome(lab.local_pods[0], service.ip(family), 80) == lab.local_pods[1].name


def test_external_local_keeps_the_clients_address(cluster: Cluster, family: Family) -> None:
    lab, ips = cluster.lab, cluster.external_ips()
    local, remote = lab.local_pods[:2], lab.remote_pods[:2]
    service = cluster.publish(
        [*local, *remote],
        type="LoadBalancer",
        externalTrafficPolicy="Local",
        ingress=[{"ip": ips[f]} for f in FAMILIES],
    )
    client = cluster.client_ips(family)[0]
    node_address = (NODE_IP4 if family == 4 else NODE_IP6)[0]
    for ip, port in ((ips[family], 80), (node_address, service.node_port)):
        seen = cluster.ask(lab.client, ip, port, source_ips=[client])
        assert seen.sources == {pod.name: {client} for pod in local}


def test_external_local_does_not_bind_pods_and_the_node(cluster: Cluster, family: Family) -> None:
    lab, ips = cluster.lab, cluster.external_ips()
    pods = [*lab.local_pods[:2], *lab.remote_pods[:2]]
    cluster.publish(
        pods,
        type="LoadBalancer",
        externalTrafficPolicy="Local",
        ingress=[{"ip": ips[f]} for f in FAMILIES],
    )
    asker = lab.local_pods[2]
    seen = cluster.ask(asker, ips[family], 80)
    assert seen.sources == {pod.name: {asker.ip(family)} for pod in pods}
    seen = cluster.ask(lab.node, ips[family], 80)
    assert seen.sources == cluster.as_node(pods, family)


def test_external_local_without_local_endpoints_drops_outsiders_only(
    cluster: Cluster, family: Family
) -> None:
    lab, ips = cluster.lab, cluster.external_ips()
    service = cluster.publish(
        lab.remote_pods[:1],
        type="LoadBalancer",
        externalTrafficPolicy="Local",
        ingress=[{"ip": ips[f]} for f in FAMILIES],
    )
    node_address = (NODE_IP4 if family == 4 else NODE_IP6)[0]
    assert cluster.silent(lab.client, ips[family], 80)
    assert cluster.silent(lab.client, node_address, service.node_port)
    for source in (lab.local_pods[0], lab.node):
        assert cluster.outcome(source, ips[family], 80) == lab.remote_pods[0].name
    assert cluster.outcome(lab.client, service.ip(family), 80) == lab.remote_pods[0].name
    cluster.scale(service, [])
    assert cluster.outcome(lab.client, ips[family], 80) == "Refused"
    assert cluster.outcome(lab.client, node_address, service.node_port) == "Refused"


def test_both_policies_local_are_judged_apart(cluster: Cluster, family: Family) -> None:
    lab, ips = cluster.lab, cluster.external_ips()
    service = cluster.publish(
        lab.remote_pods[:1],
        externalIPs=[ips[f] for f in FAMILIES],
        externalTrafficPolicy="Local",
        internalTrafficPolicy="Local",
    )
    assert cluster.silent(lab.local_pods[0], service.ip(family), 80)
    assert cluster.outcome(lab.local_pods[0], ips[family], 80) == lab.remote_pods[0].name
    assert cluster.silent(lab.client, ips[family], 80)


def health(cluster: Cluster, number: int) -> list[str]:
    """Return the health check's result at both addresses of the node: a status, or `Refused`."""
    script = (
        "import sys, http.client as h; c = h.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=9)\n"
        "try: c.request('GET', '/healthz'); print(c.getresponse().status)\n"
        "except ConnectionRefusedError: print('Refused')"
    )
    ask = [sys.executable, "-c", script]
    asked = [
        cluster.lab.client.run([*ask, ip, str(number)], check=False) for ip in (NODE_IP4[0], NODE_IP6[0])
    ]
    return [one.stdout.strip() for one in asked]


def test_a_load_balancer_learns_which_nodes_have_endpoints(cluster: Cluster) -> None:
    lab, number = cluster.lab, cluster.free_node_port()
    local, remote = lab.local_pods[0], lab.remote_pods[0]
    local_policy = {"externalTrafficPolicy": "Local", "healthCheckNodePort": number}
    service = cluster.publish([local], type="LoadBalancer", **local_policy)
    cluster.running.until(lambda: health(cluster, number), ["200", "200"])
    cluster.scale(service, [remote])
    cluster.running.until(lambda: health(cluster, number), ["503", "503"])


def test_a_node_whose_endpoints_all_terminate_says_so_and_serves_on(cluster: Cluster) -> None:
    lab, number, ips = cluster.lab, cluster.free_node_port(), cluster.external_ips()
    leaving, remote = lab.local_pods[0], lab.remote_pods[0]
    service = cluster.publish(
        [leaving, remote],
        type="LoadBalancer",
        externalTrafficPolicy="Local",
        healthCheckNodePort=number,
        ingress=[{"ip": ip} for ip in ips.values()],
    )
    cluster.running.until(lambda: health(cluster, number), ["200", "200"])
    cluster.scale(service, [Ep(leaving, ready=False, serving=True, terminating=True), remote])
    cluster.running.until(lambda: health(cluster, number), ["503", "503"])
    for family in FAMILIES:
        node_address = (NODE_IP4 if family == 4 else NODE_IP6)[0]
        for target in ((ips[family], 80), (node_address, service.node_port)):
            assert cluster.ask(lab.client, *target, n=20).pods == {leaving.name}


@pytest.mark.parametrize("policy", ["internalTrafficPolicy", "externalTrafficPolicy"])
def test_the_policy_cluster_falls_back_to_terminating_endpoints(
    cluster: Cluster, family: Family, policy: str
) -> None:
    lab = cluster.lab
    leaving = [
        Ep(pod, ready=False, serving=True, terminating=True)
        for pod in (lab.local_pods[0], lab.remote_pods[0])
    ]
    service = cluster.publish(leaving, type="NodePort", **{policy: "Cluster"})
    node_address = (NODE_IP4 if family == 4 else NODE_IP6)[0]
    target = (
        (service.ip(family), 80) if policy == "internalTrafficPolicy" else (node_address, service.node_port)
    )
    for source in (lab.local_pods[1], lab.node, lab.client):
        assert cluster.ask(source, *target).pods == names(each.pod for each in leaving)


def test_the_external_policy_changes_in_place(cluster: Cluster, family: Family) -> None:
    """The source seen by pods, the serving pods and the health-check port follow the policy."""
    lab, number, ips = cluster.lab, cluster.free_node_port(), cluster.external_ips()
    local, remote = lab.local_pods[0], lab.remote_pods[0]
    service = cluster.publish(
        [local, remote],
        type="LoadBalancer",
        externalTrafficPolicy="Local",
        healthCheckNodePort=number,
        ingress=[{"ip": ip} for ip in ips.values()],
    )
    client = cluster.client_ips(family)[0]
    node_address = (NODE_IP4 if family == 4 else NODE_IP6)[0]
    for policy, answer, sources in (
        ("Local", "200", {local.name: {client}}),
        ("Cluster", "Refused", cluster.as_node([local, remote], family)),
        ("Local", "200", {local.name: {client}}),
    ):
        port = number if policy == "Local" else 0
        cluster.edit(
            service,
            lambda spec, p=policy, n=port: spec.update(externalTrafficPolicy=p, healthCheckNodePort=n),
        )
        cluster.settle()
        cluster.running.until(lambda: health(cluster, number), [answer, answer])
        for target in ((ips[family], 80), (node_address, service.node_port)):
            assert cluster.ask(lab.client, *target, source_ips=[client]).sources == sources
