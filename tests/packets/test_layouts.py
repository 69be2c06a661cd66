"""From one layout of the iptables rules to the other and back, while traffic flows."""

import pytest

from kproxy_lab.lab import Namespace, Pod
from kproxy_lab.lab.topology import NODE_IP4, Family
from tests.packets.cluster import Cluster
from tests.packets.modes import Capability
from tests.packets.objects import FAMILIES, Service, slice_json
from tests.packets.outcomes import Target, Traffic, names

pytestmark = [pytest.mark.root, pytest.mark.needs(Capability.SERVICE_CHAINS)]

TREES = ("KUBE-AT-", "KUBE-NP-", "KUBE-XT-", "KUBE-FD-")


def targets(cluster: Cluster, service: Service) -> list[Target]:
    """From outside, from the node, from a pod, and from the pod that serves to itself."""
    lab = cluster.lab
    found: list[Target] = [(lab.client, NODE_IP4[0], service.node_port)]
    for family in FAMILIES:
        ip = service.ip(family)
        clients: tuple[Namespace | Pod, ...] = (lab.client, lab.node, *lab.local_pods[:2])
        found += [(client, ip, 80) for client in clients]
    return found


def tree_rules(cluster: Cluster) -> dict[Family, int]:
    """How many rules of divided chains there are."""
    return {
        family: sum(any(name in rule for name in TREES) for rule in cluster.rules(family))
        for family in FAMILIES
    }


def crowd(cluster: Cluster, service: Service, count: int) -> None:
    """Give a service `count` endpoints without pods."""
    prefixes: dict[Family, str] = {4: "10.244.{}.{}", 6: "fd00:10:244:ff::{:x}:{:x}"}
    for family, prefix in prefixes.items():
        slice_ = slice_json(service.name, f"{service.name}-{family}", family, [], service.ports, {})
        slice_["endpoints"] = [
            {"addresses": [prefix.format(n // 200, n % 200 + 2)], "conditions": {"ready": True}}
            for n in range(count)
        ]
        cluster.apply(slice_)


@pytest.mark.parametrize(
    ("first", "second"), [("standard", "scalable"), ("scalable", "standard")], ids=["up", "down"]
)
def test_a_restart_with_another_layout_cuts_nothing(spare: Cluster, first: str, second: str) -> None:
    spare.start("--iptables-layout", first)
    service = spare.publish(spare.lab.local_pods[:1], type="NodePort")
    others = [spare.publish(spare.lab.pods[:2], type="NodePort") for _ in range(20)]
    refused = spare.publish([])
    lab = spare.lab
    with lab.hold(lab.client, service.ip(4), 80) as held, Traffic(lab, targets(spare, service)) as traffic:
        spare.stop()
        program = spare.start("--iptables-layout", second)
        traffic.flow()
        assert held.exchange("still there?").pod == lab.local_pods[0].name
    assert traffic.failures == []
    program.until(
        lambda: {bool(count) for count in tree_rules(spare).values()}, expected={second == "scalable"}
    )
    ends = [
        rule for family in FAMILIES for rule in spare.rules(family) if "KUBE-SEP-" in rule and ":" in rule
    ]
    assert bool(ends) == (second == "standard")
    for other in others[-2:]:
        assert spare.ask(lab.client, other.ip(6), 80, n=20).pods == names(lab.pods[:2])
    assert spare.outcome(lab.client, refused.ip(4), 80) == "Refused"


def test_a_cluster_that_grows_and_shrinks_changes_over_without_a_gap(spare: Cluster) -> None:
    spare.start("--iptables-layout", "auto")
    lab = spare.lab
    service = spare.publish(lab.local_pods[:1], type="NodePort")
    assert tree_rules(spare) == {4: 0, 6: 0}
    with Traffic(lab, targets(spare, service)) as traffic:
        many = [spare.service() for _ in range(6)]
        for each in many:
            crowd(spare, each, 1000)
        spare.settle()
        grown = [record for record in spare.running.log if "layout_changed" in record]
        traffic.flow()
        for each in many:
            crowd(spare, each, 3)
        spare.settle()
        shrunk = [record for record in spare.running.log if "layout_changed" in record]
        traffic.flow()
    assert traffic.failures == []
    assert (len(grown), len(shrunk)) == (2, 4), shrunk
    assert tree_rules(spare) == {4: 0, 6: 0}
