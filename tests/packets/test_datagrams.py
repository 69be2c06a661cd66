"""UDP flows during changes of their service: they follow it, and other flows stay as they are."""

import json

import pytest

from kproxy.addresses import Family as Address
from kproxy.kernel.conntrack.netlink import NetlinkConntrack
from kproxy.kernel.conntrack.types import Flow
from kproxy_lab.lab import AskError, HeldConnection
from kproxy_lab.lab.topology import NODE_IP4, NODE_IP6, Family
from tests.packets.cluster import Cluster
from tests.packets.objects import OTHER_TARGET, TARGET, Ep, Port, Service
from tests.packets.outcomes import names
from tests.packets.pages import get

pytestmark = pytest.mark.root

DNS = (Port(53, "UDP"),)


def who(held: HeldConnection) -> str:
    """Return the pod that answers on a flow, or the name of the error."""
    try:
        return held.exchange("who?", timeout=0.3).pod
    except AskError as error:
        return type(error).__name__


@pytest.mark.parametrize("kind", ["cluster IP", "external IP", "node port"])
def test_a_flow_whose_endpoint_leaves_finds_another(cluster: Cluster, family: Family, kind: str) -> None:
    """The first datagram after the endpoint left may be lost, as on any network; the flow is not."""
    lab = cluster.lab
    one, other = lab.pods[:2]
    outside = cluster.external_ips()
    service = cluster.publish([one], ports=DNS, type="NodePort", externalIPs=list(outside.values()))
    node = NODE_IP4[0] if family == 4 else NODE_IP6[0]
    target = {
        "cluster IP": (service.ip(family), 53),
        "external IP": (outside[family], 53),
        "node port": (node, service.node_port),
    }[kind]
    with lab.hold(lab.client, *target, "UDP") as held:
        cluster.running.until(lambda: who(held), one.name)
        cluster.scale(service, [other])
        cluster.running.until(lambda: who(held), other.name)


def test_a_flow_that_began_before_there_was_an_endpoint_is_served(cluster: Cluster, family: Family) -> None:
    lab = cluster.lab
    service = cluster.publish([], ports=DNS)
    with lab.hold(lab.client, service.ip(family), 53, "UDP") as held:
        cluster.running.until(lambda: who(held), "Refused")
        cluster.scale(service, [lab.pods[0]])
        cluster.running.until(lambda: who(held), lab.pods[0].name)
        cluster.scale(service, [])
        cluster.running.until(lambda: who(held), "Refused")
        cluster.scale(service, [lab.pods[1]])
        cluster.running.until(lambda: who(held), lab.pods[1].name)


@pytest.mark.parametrize("asker", ["the node", "a pod"])
def test_flows_from_inside_the_cluster_follow_their_service(
    cluster: Cluster, family: Family, asker: str
) -> None:
    """Pods come and go one by one, as a Deployment replaces them, and a first one is slow to become ready."""
    lab = cluster.lab
    source = lab.node if asker == "the node" else lab.local_pods[2]

    def answer() -> str:
        """Netfilter refuses the node's own sockets while they send, with another error."""
        found = who(held)
        return "Refused" if source is lab.node and found == "Unreachable" else found

    first, second, third = lab.local_pods[0], lab.remote_pods[0], lab.local_pods[1]
    service = cluster.publish([], ports=DNS)
    with lab.hold(source, service.ip(family), 53, "UDP") as held:
        assert answer() == "Refused"
        for endpoints, expected in (
            ([Ep(first, ready=False, serving=False)], "Refused"),
            ([Ep(first)], first.name),
            ([Ep(first, ready=False, serving=True, terminating=True), Ep(second)], None),
            ([Ep(second)], second.name),
            ([Ep(second, ready=False, serving=False, terminating=True), Ep(third)], third.name),
            ([Ep(third, ready=False, serving=False)], "Refused"),
            ([Ep(second)], second.name),
        ):
            cluster.scale(service, endpoints)
            if expected is not None:
                cluster.running.until(answer, expected)


def test_a_flow_under_the_policy_local_waits_for_a_local_endpoint(cluster: Cluster, family: Family) -> None:
    lab = cluster.lab
    first, second, asker = lab.local_pods[:3]
    remote = lab.remote_pods[0]
    service = cluster.publish([first], ports=DNS, internalTrafficPolicy="Local")
    with lab.hold(asker, service.ip(family), 53, "UDP") as held:
        cluster.running.until(lambda: who(held), first.name)
        cluster.scale(service, [first, remote])
        cluster.running.until(lambda: who(held), first.name)
        cluster.scale(service, [remote])
        cluster.running.until(lambda: who(held), "NoAnswer")
        cluster.scale(service, [second, remote])
        cluster.running.until(lambda: who(held), second.name)


@pytest.mark.parametrize("kind", ["cluster IP", "node port"])
def test_a_flow_follows_the_target_port(cluster: Cluster, family: Family, kind: str) -> None:
    lab = cluster.lab
    pod = lab.pods[0]
    service = cluster.publish([pod], ports=DNS, type="NodePort")
    node = NODE_IP4[0] if family == 4 else NODE_IP6[0]
    target = {"cluster IP": (service.ip(family), 53), "node port": (node, service.node_port)}[kind]
    with lab.hold(lab.client, *target, "UDP") as held:

        def port() -> int:
            try:
                return held.exchange("which?", timeout=0.3).port_seen
            except AskError:
                return 0

        assert port() == TARGET
        moved = [Port(53, "UDP", target=OTHER_TARGET)]
        cluster.edit(service, lambda spec: spec.update(ports=[moved[0].in_service(service.node_port)]))
        cluster.slices(service, [pod], ports=moved)
        cluster.settle()
        cluster.running.until(port, OTHER_TARGET)


def test_a_flow_follows_its_node_port_to_another_service(cluster: Cluster, family: Family) -> None:
    lab, number = cluster.lab, cluster.free_node_port()
    one, other = lab.pods[:2]
    node = NODE_IP4[0] if family == 4 else NODE_IP6[0]
    ports = [Port(53, "UDP", node_port=number)]
    service = cluster.publish([one], ports=ports, type="NodePort")
    with lab.hold(lab.client, node, number, "UDP") as held:
        cluster.running.until(lambda: who(held), one.name)
        cluster.delete(service)
        cluster.settle()
        second = cluster.publish([other], ports=ports, type="NodePort")
        cluster.running.until(lambda: who(held), other.name)
        cluster.edit(second, lambda spec: spec.update(type="ClusterIP", ports=[DNS[0].in_service(0)]))
        cluster.settle()
        again = cluster.publish([one], ports=ports, type="NodePort")
        cluster.running.until(lambda: who(held), one.name)
        assert again.node_port == number


def test_a_flow_follows_a_service_that_is_made_again(cluster: Cluster, family: Family) -> None:
    lab = cluster.lab
    one, other = lab.pods[:2]
    service = cluster.publish([one], ports=DNS)
    ips = list(service.ips.values())
    with lab.hold(lab.client, service.ip(family), 53, "UDP") as held:
        cluster.running.until(lambda: who(held), one.name)
        cluster.delete(service)
        cluster.settle()
        again = cluster.service(service.name, ports=DNS, clusterIP=ips[0], clusterIPs=ips)
        cluster.scale(again, [other])
        cluster.running.until(lambda: who(held), other.name)


def test_a_flow_that_began_before_its_address_was_the_services_is_served(
    cluster: Cluster, family: Family
) -> None:
    lab = cluster.lab
    pod, outside = lab.pods[0], cluster.external_ips()
    service = cluster.publish([pod], ports=DNS)
    with lab.hold(lab.client, outside[family], 53, "UDP") as held:
        assert who(held) in {"NoAnswer", "Unreachable"}
        cluster.edit(service, lambda spec: spec.update(externalIPs=list(outside.values())))
        cluster.settle()
        cluster.running.until(lambda: who(held), pod.name)


def test_an_endpoint_that_still_answers_keeps_its_flows(cluster: Cluster, family: Family) -> None:
    lab = cluster.lab
    one, other = lab.pods[:2]
    service = cluster.publish([one], ports=DNS)
    with lab.hold(lab.client, service.ip(family), 53, "UDP") as held:
        before = held.exchange("who?")
        terminating = Ep(one, ready=False, serving=True, terminating=True)
        cluster.scale(service, [terminating, Ep(other)])
        if "ipvs" not in str(cluster.mode):
            # A masqueraded flow that was forgotten would be given another port.
            after = held.exchange("still there?")
            assert (after.pod, after.source_port_seen) == (one.name, before.source_port_seen)
        assert cluster.ask(lab.client, service.ip(family), 53, "UDP", n=10).pods == {other.name}


def forgotten(cluster: Cluster, service: Service) -> list[int]:
    """The number of flows that were forgotten for each change of a service for which some were."""
    code, body = get(cluster, f"/changes?service={service.key}")
    assert code == 200
    return [count for each in json.loads(body)["changes"] if (count := each["flowsForgotten"])]


def test_flows_of_others_are_not_touched(cluster: Cluster, family: Family) -> None:
    lab = cluster.lab
    pods = lab.pods[:2]
    calm = cluster.publish(pods, ports=DNS)
    busy = cluster.publish(pods, ports=DNS)
    with lab.hold(lab.client, calm.ip(family), 53, "UDP") as held:
        before = held.exchange("who?")
        with lab.hold(lab.client, busy.ip(family), 53, "UDP") as moving:
            first = who(moving)
            cluster.scale(busy, [pod for pod in pods if pod.name != first])
            cluster.running.until(lambda: who(moving), (names(pods) - {first}).pop())
        if "ipvs" not in str(cluster.mode):  # there the virtual server forgets it, too
            cluster.running.until(lambda: forgotten(cluster, busy), [1])
        assert forgotten(cluster, calm) == []
        after = held.exchange("still there?")
        assert (after.pod, after.source_port_seen) == (before.pod, before.source_port_seen)


def test_a_flow_whose_endpoint_left_while_kproxy_was_down_finds_another(
    spare: Cluster, family: Family
) -> None:
    spare.start()
    lab = spare.lab
    left, other = lab.pods[:2]
    moved, lost = spare.publish([left], ports=DNS), spare.publish([left], ports=DNS)
    with (
        lab.hold(lab.client, moved.ip(family), 53, "UDP") as following,
        lab.hold(lab.client, lost.ip(family), 53, "UDP") as ended,
    ):
        spare.running.until(lambda: who(following), left.name)
        spare.running.until(lambda: who(ended), left.name)
        spare.stop()
        spare.slices(moved, [other])
        spare.slices(lost, [])
        program = spare.start()
        program.until(lambda: who(following), other.name)
        program.until(lambda: who(ended), "Refused")


def test_flows_to_other_hosts_at_the_number_of_a_node_port_are_not_touched(
    cluster: Cluster, family: Family
) -> None:
    lab = cluster.lab
    one, other = lab.pods[:2]
    far, number = lab.remote_pods[0], cluster.free_node_port()
    at = (far.ip4 if family == 4 else far.ip6, number)

    def entry() -> list[Flow]:
        chosen = Address.IPV4 if family == 4 else Address.IPV6
        flows = lab.node.call(lambda: NetlinkConntrack().udp_flows(chosen, {number}))
        return [flow for flow in flows if (flow.dst, flow.dst_port) == at]

    server = lab.serve(far, "UDP", number)
    node = NODE_IP4[0] if family == 4 else NODE_IP6[0]
    try:
        with (
            lab.hold(lab.local_pods[1], *at, "UDP") as held,
            lab.hold(lab.client, node, number, "UDP") as moving,
        ):
            cluster.running.until(lambda: who(held), far.name)
            before = entry()
            assert [flow.answered for flow in before] == [True]
            service = cluster.publish([one], ports=(Port(53, "UDP", node_port=number),), type="NodePort")
            cluster.running.until(lambda: who(moving), one.name)
            cluster.scale(service, [other])
            cluster.running.until(lambda: who(moving), other.name)
            assert entry() == before
    finally:
        lab.stop_serving(server)


def test_over_a_restart_flows_to_endpoints_that_left_are_forgotten_and_no_others(
    spare: Cluster, family: Family
) -> None:
    lab = spare.lab
    one, other = lab.pods[:2]
    spare.start()
    calm, moved = spare.publish([one], ports=DNS), spare.publish([one], ports=DNS)
    with (
        lab.hold(lab.client, calm.ip(family), 53, "UDP") as held,
        lab.hold(lab.client, moved.ip(family), 53, "UDP") as moving,
    ):
        before = held.exchange("who?")
        spare.running.until(lambda: who(moving), one.name)
        spare.stop()
        spare.slices(moved, [other])
        spare.start()
        spare.running.until(lambda: who(moving), other.name)
        after = held.exchange("still there?")
        assert (after.pod, after.source_port_seen) == (before.pod, before.source_port_seen)


def test_a_flow_that_began_before_kproxy_is_served(spare: Cluster, family: Family) -> None:
    lab = spare.lab
    pod, outside = lab.pods[0], spare.external_ips()
    with lab.hold(lab.client, outside[family], 53, "UDP") as held:
        spare.slices(spare.service(ports=DNS, externalIPs=list(outside.values())), [pod])
        assert who(held) in {"NoAnswer", "Unreachable"}
        spare.start()
        spare.running.until(lambda: who(held), pod.name)
