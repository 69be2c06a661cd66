"""sessionAffinity ClientIP: a client keeps its endpoint for as long as the timeout says, and no longer."""

import time

import pytest

from kproxy_lab.lab import Protocol
from kproxy_lab.lab.topology import NODE_IP4, NODE_IP6, Family
from tests.packets.cluster import Cluster
from tests.packets.modes import Capability
from tests.packets.objects import Ep, Port
from tests.packets.outcomes import names

pytestmark = pytest.mark.root


def sticky(seconds: int) -> dict[str, object]:
    return {
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}},
    }


def test_a_client_keeps_its_endpoint_and_clients_are_spread(cluster: Cluster, family: Family) -> None:
    pods = cluster.lab.pods[:3]
    service = cluster.publish(pods, type="NodePort", **sticky(600))
    client = cluster.lab.client
    chosen = {}
    for address in cluster.client_ips(family):
        seen = cluster.ask(client, service.ip(family), 80, n=12, source_ips=[address])
        assert len(seen.pods) == 1
        (chosen[address],) = seen.pods
    assert set(chosen.values()) <= names(pods)
    assert len(set(chosen.values())) > 1
    node_address = (NODE_IP4 if family == 4 else NODE_IP6)[0]
    for address, pod in list(chosen.items())[:4]:
        seen = cluster.ask(client, node_address, service.node_port, n=4, source_ips=[address])
        assert seen.pods == {pod}


def test_the_endpoint_is_kept_while_others_come_and_go(cluster: Cluster, family: Family) -> None:
    first, second, third = cluster.lab.pods[:3]
    service = cluster.publish([first], **sticky(600))
    client = cluster.lab.client
    assert cluster.ask(client, service.ip(family), 80, n=3, source_ips=cluster.client_ips(family)[:1]).pods
    cluster.scale(service, [first, second, third])
    seen = cluster.ask(client, service.ip(family), 80, n=20, source_ips=cluster.client_ips(family)[:1])
    assert seen.pods == {first.name}
    cluster.scale(service, [second, third])
    seen = cluster.ask(client, service.ip(family), 80, n=20, source_ips=cluster.client_ips(family)[:1])
    assert len(seen.pods) == 1
    assert seen.pods <= names([second, third])


def test_a_client_that_had_to_move_stays_where_it_went(cluster: Cluster, family: Family) -> None:
    pods = cluster.lab.pods[:3]
    service = cluster.publish(pods, **sticky(600))
    source = cluster.client_ips(family)[:1]

    def endpoint() -> str:
        (name,) = cluster.ask(cluster.lab.client, service.ip(family), 80, n=12, source_ips=source).pods
        return name

    visited = [endpoint()]
    while len(visited) < len(pods):
        cluster.scale(service, [Ep(pod, ready=pod.name not in visited) for pod in pods])
        visited.append(endpoint())
    cluster.scale(service, pods)
    assert endpoint() == visited[-1]


def test_affinity_ends_when_it_is_switched_off_and_comes_back(cluster: Cluster, family: Family) -> None:
    pods, client = cluster.lab.pods[:3], cluster.lab.client
    service = cluster.publish(pods, type="NodePort", **sticky(600))
    node_address = (NODE_IP4 if family == 4 else NODE_IP6)[0]
    source = cluster.client_ips(family)[:1]
    for affinity in (sticky(600), {"sessionAffinity": "None", "sessionAffinityConfig": None}, sticky(600)):
        cluster.edit(service, lambda spec, affinity=affinity: spec.update(affinity))
        cluster.settle()
        for target in ((service.ip(family), 80), (node_address, service.node_port)):
            seen = cluster.ask(client, *target, source_ips=source)
            if affinity["sessionAffinity"] == "None":
                assert seen.pods == names(pods)
            else:
                assert len(seen.pods) == 1


@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_affinity_holds_behind_a_load_balancer(cluster: Cluster, family: Family, protocol: Protocol) -> None:
    lab, ips = cluster.lab, cluster.external_ips()
    service = cluster.publish(
        lab.pods,
        ports=[Port(80, protocol)],
        type="LoadBalancer",
        ingress=[{"ip": ip} for ip in ips.values()],
        **sticky(600),
    )
    source = cluster.client_ips(family)[:1]
    for policy, allowed in (("Cluster", names(lab.pods)), ("Local", names(lab.local_pods))):
        cluster.edit(service, lambda spec, policy=policy: spec.update(externalTrafficPolicy=policy))
        cluster.settle()
        seen = cluster.ask(lab.client, ips[family], 80, protocol, n=20, source_ips=source)
        assert len(seen.pods) == 1
        assert seen.pods <= allowed


def test_affinity_ends_with_its_timeout(cluster: Cluster, family: Family) -> None:
    if Capability.VIRTUAL_SERVERS in cluster.mode.capabilities:
        pytest.skip("IPVS keeps a client as long as it remembers a connection, which is two minutes")
    pods, sources = cluster.lab.pods[:3], cluster.client_ips(family)
    service = cluster.publish(pods, **sticky(1))

    def chosen() -> list[str]:
        seen = cluster.ask(cluster.lab.client, service.ip(family), 80, n=len(sources), source_ips=sources)
        return [answer.pod for answer in seen.answers]

    before, asked = chosen(), time.monotonic()
    cluster.running.until(lambda: time.monotonic() > asked + 2.5, expected=True)
    assert chosen() != before
