"""The shapes of nftables mode under packets: shared and own lists of endpoints, source ranges, clients."""

import ipaddress
import json
import re

import pytest

from kproxy_lab.lab.topology import NODE_IP4, NODE_IP6, Family
from tests.packets.cluster import Cluster
from tests.packets.modes import Capability
from tests.packets.objects import FAMILIES, JSON, Port, Service
from tests.packets.outcomes import Target, Traffic, names

pytestmark = [pytest.mark.root, pytest.mark.needs(Capability.NFTABLES)]

ASKED = 400
FULL = 65536


def node_ip(family: Family) -> str:
    return (NODE_IP4 if family == 4 else NODE_IP6)[0]


def listing(cluster: Cluster, family: Family) -> str:
    table = "ip" if family == 4 else "ip6"
    return cluster.lab.node.run(["nft", "list", "table", table, "kproxy"]).stdout


def has_own_list(cluster: Cluster, family: Family) -> bool:
    return "map slots-" in listing(cluster, family)


def weigh(cluster: Cluster, service: Service, weights: JSON | None) -> None:
    annotations = {"kproxy.io/weights": json.dumps(weights)} if weights else {}
    cluster.edit_meta("Service", service.name, lambda meta: meta.update(annotations=annotations))
    cluster.settle()


@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_many_slots_at_many_frontends_are_one_list_and_follow_weights(
    spare: Cluster, family: Family, policy: str
) -> None:
    spare.start()
    one, other = spare.lab.local_pods[:2]
    outside = [spare.external_ips()[family] for _ in range(4)]
    service = spare.publish(
        [one, other],
        type="NodePort",
        externalIPs=outside,
        externalTrafficPolicy=policy,
        annotations={"kproxy.io/weights": json.dumps({f"pod:{one.name}": 97, "*": 300})},
    )
    # 5 to 6 frontends with 397 slots each.
    assert listing(spare, family).count(f" : {one.ip4 if family == 4 else one.ip6} . ") < 97 + 20
    client = spare.lab.client
    targets = [(service.ip(family), 80), (outside[3], 80), (node_ip(family), service.node_port)]
    for ip, port in targets:
        seen = spare.ask(client, ip, port, n=ASKED)
        share = 97 / 397
        # Six standard deviations of a fair draw.
        assert abs(seen.counts[one.name] - ASKED * share) < 6 * (ASKED * share * (1 - share)) ** 0.5
        assert seen.pods == names([one, other])
    spare.scale(service, [other])
    for ip, port in targets:
        assert spare.ask(client, ip, port, n=3).pods == {other.name}


def test_no_request_fails_while_a_list_becomes_its_own_and_is_shared_again(spare: Cluster) -> None:
    spare.start()
    lab, pods = spare.lab, spare.lab.pods[:4]
    ips = spare.external_ips()
    service = spare.publish(pods[:2], type="NodePort", externalIPs=list(ips.values()))
    targets: list[Target] = []
    for family in FAMILIES:
        targets += [
            (lab.client, service.ip(family), 80),
            (lab.client, ips[family], 80),
            (lab.local_pods[2], service.ip(family), 80),
        ]
    assert not has_own_list(spare, 4)
    with Traffic(lab, targets) as traffic:
        for weights in ({f"pod:{pods[0].name}": 1, "*": 500}, {f"pod:{pods[1].name}": 400, "*": 7}, None):
            weigh(spare, service, weights)
            assert has_own_list(spare, 4) is bool(weights)
            traffic.flow()
            spare.scale(service, pods)
            traffic.flow()
            spare.scale(service, pods[1:3])
            traffic.flow()
        # More frontends make the list its own, fewer share it again.
        many = [spare.external_ips()[4] for _ in range(70)]
        spare.edit(service, lambda spec: spec.update(externalIPs=[*ips.values(), *many]))
        spare.settle()
        assert has_own_list(spare, 4)
        traffic.flow()
        spare.edit(service, lambda spec: spec.update(externalIPs=list(ips.values())))
        spare.settle()
        assert not has_own_list(spare, 4)
        traffic.flow()
    assert traffic.failures == []


def test_ranges_hold_at_every_port_and_address_of_a_service(spare: Cluster, family: Family) -> None:
    spare.start()
    pod, client = spare.lab.local_pods[0], spare.lab.client
    allowed, other, denied = spare.client_ips(family)[:3]
    base = ipaddress.ip_address("100.64.0.0" if family == 4 else "2001:db8:64::")
    length = 32 if family == 4 else 128
    listed = [f"{base + 2 * number}/{length}" for number in range(300)]
    ingress = [spare.external_ips()[family] for _ in range(2)]
    service = spare.publish(
        [pod],
        type="LoadBalancer",
        families=[family],
        ports=[Port(80, name="a"), Port(81, name="b")],
        ingress=[{"ip": ip} for ip in ingress],
        loadBalancerSourceRanges=[*listed, f"{allowed}/{length}"],
    )
    unrestricted = spare.publish([pod], families=[family])

    def outcomes(source: str) -> set[str]:
        asked = [(ip, port) for ip in ingress for port in (80, 81)]
        return {spare.outcome(client, *each, source_ip=source, timeout=1) for each in asked}

    assert (outcomes(allowed), outcomes(denied)) == ({pod.name}, {"NoAnswer"})
    assert len(re.findall(r"set ranges-", listing(spare, family))) == 1
    ranges = [*listed[:-1], f"{other}/{length}"]
    spare.edit(service, lambda spec: spec.update(loadBalancerSourceRanges=ranges))
    spare.settle()
    assert (outcomes(other), outcomes(allowed)) == ({pod.name}, {"NoAnswer"})
    spare.edit(service, lambda spec: spec.update(loadBalancerSourceRanges=None))
    spare.settle()
    assert outcomes(denied) == {pod.name}
    assert "ranges-" not in listing(spare, family)
    assert spare.outcome(client, unrestricted.ip(family), 80) == pod.name


def test_one_service_full_of_clients_takes_no_affinity_from_another(spare: Cluster, family: Family) -> None:
    spare.start()
    lab, pods = spare.lab, spare.lab.pods[:3]
    victim = spare.publish(pods, sessionAffinity="ClientIP")
    attacker = spare.publish(pods, sessionAffinity="ClientIP")
    table = "ip" if family == 4 else "ip6"
    sets = dict(re.findall(r"goto all-(\w{16})\n\t\}()", listing(spare, family)))
    assert len(sets) == 2
    (full,) = [name for name in sets if f"{attacker.ip(family)} . " in _leading(spare, family, name)]
    first = ipaddress.ip_address("198.18.0.0" if family == 4 else "2001:db8:18::")
    clients = ", ".join(f"{first + number} . 7 timeout 1h" for number in range(FULL))
    added = f"add element {table} kproxy affinity-{full} {{ {clients} }}"
    lab.node.run(["nft", "-f", "-"], stdin=added)
    source = spare.client_ips(family)[:1]
    assert len(spare.ask(lab.client, attacker.ip(family), 80, n=40, source_ips=source).pods) > 1
    assert len(spare.ask(lab.client, victim.ip(family), 80, n=20, source_ips=source).pods) == 1


def _leading(cluster: Cluster, family: Family, chain: str) -> str:
    """The elements of the map of frontends that lead to a chain of a service port."""
    table = "ip" if family == 4 else "ip6"
    shown = cluster.lab.node.run(["nft", "-nn", "-s", "list", "map", table, "kproxy", "services"]).stdout
    return "".join(part for part in shown.split(",") if chain in part)
