"""Weights of endpoints, by one annotation: shares in every mode, and weight 0 that drains."""

import json

import pytest

from kproxy_lab.lab.topology import Family
from tests.packets.cluster import Cluster
from tests.packets.modes import Capability
from tests.packets.outcomes import names

pytestmark = pytest.mark.root

ASKED = 800


def test_shares_follow_weights(cluster: Cluster, family: Family) -> None:
    one, other = cluster.lab.local_pods[:2]
    annotation = json.dumps({f"pod:{one.name}": 3, "node:*": 1})
    service = cluster.publish(
        [one, other],
        annotations={"kproxy.io/weights": annotation, "kproxy.io/scheduler": "wrr"},
    )
    seen = cluster.ask(cluster.lab.client, service.ip(family), 80, n=ASKED)
    # Six standard deviations of a fair draw with probability 3/4.
    assert abs(seen.counts[one.name] - ASKED * 3 / 4) < 6 * (ASKED * 3 / 16) ** 0.5
    assert seen.pods == names([one, other])


def test_weight_zero_gets_nothing_while_others_serve(cluster: Cluster, family: Family) -> None:
    one, other = cluster.lab.local_pods[:2]
    service = cluster.publish([one, other], annotations={"kproxy.io/weights": f'"pod:{one.name}": 0'})
    assert cluster.ask(cluster.lab.client, service.ip(family), 80).pods == {other.name}
    cluster.scale(service, [one])
    assert cluster.ask(cluster.lab.client, service.ip(family), 80, n=3).pods == {one.name}


def test_weight_zero_leaves_connections_alone(cluster: Cluster) -> None:
    one, other = cluster.lab.local_pods[:2]
    service = cluster.publish([one])
    with cluster.lab.hold(cluster.lab.client, service.ip(4), 80) as held:
        annotation = {"kproxy.io/weights": f'{{"pod:{one.name}": 0}}'}
        cluster.edit_meta("Service", service.name, lambda meta: meta.update(annotations=annotation))
        cluster.scale(service, [one, other])
        assert cluster.ask(cluster.lab.client, service.ip(4), 80, n=20).pods == {other.name}
        assert held.exchange("still there?").pod == one.name


@pytest.mark.parametrize("text", ['{"pod:*": -1}', '{"pods:*": 1}', "[1, 2]", '{"*": 65536}', "{"])
def test_weights_that_cannot_be_read_are_named_and_ignored(cluster: Cluster, text: str) -> None:
    since = cluster.running.mark()
    pods = cluster.lab.local_pods[:2]
    service = cluster.publish(pods, annotations={"kproxy.io/weights": text})
    cluster.running.wait_log("object_problem", service.key, "kproxy.io/weights", since=since)
    assert cluster.ask(cluster.lab.client, service.ip(4), 80).pods == names(pods)


@pytest.mark.needs(Capability.VIRTUAL_SERVERS)
def test_a_bad_scheduler_is_named_and_the_default_serves(cluster: Cluster) -> None:
    since = cluster.running.mark()
    pods = cluster.lab.local_pods[:2]
    service = cluster.publish(pods, annotations={"kproxy.io/scheduler": "fastest"})
    cluster.running.wait_log("object_problem", service.key, "kproxy.io/scheduler", "wrr", since=since)
    assert cluster.ask(cluster.lab.client, service.ip(4), 80, n=4).counts == {pod.name: 2 for pod in pods}
