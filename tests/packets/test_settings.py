"""Flags that change where packets go; each test runs its own kproxy."""

import pytest

from kproxy_lab.lab.topology import NODE, NODE_IP4, NODE_IP6, Family
from tests.packets.cluster import Cluster
from tests.packets.modes import Capability
from tests.packets.objects import FAMILIES, node_json
from tests.packets.outcomes import names
from tests.packets.pages import status

pytestmark = pytest.mark.root


def test_masquerade_all_hides_pods_too(spare: Cluster) -> None:
    spare.start("--masquerade-all")
    asker, *pods = spare.lab.pods[:4]
    service = spare.publish(pods)
    for family in FAMILIES:
        assert spare.ask(asker, service.ip(family), 80).sources == spare.as_node(pods, family)


@pytest.mark.parametrize(
    "flags",
    [
        ("--detect-local-mode", "NodeCIDR"),
        ("--detect-local-mode", "BridgeInterface", "--pod-bridge-interface", "mynet0"),
        ("--detect-local-mode", "InterfaceNamePrefix", "--pod-interface-name-prefix", "mynet"),
    ],
    ids=["node-cidr", "bridge", "prefix"],
)
def test_local_traffic_is_recognized(spare: Cluster, flags: tuple[str, ...]) -> None:
    spare.start(*flags)
    lab = spare.lab
    pods, ips = [lab.local_pods[1], lab.remote_pods[0]], spare.external_ips()
    service = spare.publish(pods, externalIPs=[ips[f] for f in FAMILIES], externalTrafficPolicy="Local")
    asker = lab.local_pods[0]
    for family in FAMILIES:
        own = {pod.name: {asker.ip(family)} for pod in pods}
        assert spare.ask(asker, service.ip(family), 80).sources == own
        assert spare.ask(asker, ips[family], 80).sources == own
        assert spare.ask(lab.client, service.ip(family), 80).sources == spare.as_node(pods, family)
        assert spare.ask(lab.client, ips[family], 80, n=10).pods == {lab.local_pods[1].name}


@pytest.mark.parametrize(
    ("flag", "accepting"),
    [
        ("192.168.100.10/32", {4: NODE_IP4[:1], 6: NODE_IP6}),
        ("primary", {4: NODE_IP4[:1], 6: NODE_IP6[:1]}),
    ],
    ids=["cidr", "primary"],
)
def test_node_ports_can_be_bound_to_addresses(
    spare: Cluster, flag: str, accepting: dict[Family, tuple[str, ...]]
) -> None:
    spare.start("--nodeport-addresses", flag)
    pod = spare.lab.local_pods[0]
    service = spare.publish([pod], type="NodePort")
    for family, addresses in ((4, NODE_IP4), (6, NODE_IP6)):
        for address in addresses:
            expected = pod.name if address in accepting[family] else "Refused"  # type: ignore[index]
            assert spare.outcome(spare.lab.client, address, service.node_port) == expected
    assert spare.outcome(spare.lab.node, "127.0.0.1", service.node_port) == "Refused"


def test_what_is_known_of_the_node_holds_while_its_object_is_gone(spare: Cluster) -> None:
    program = spare.start("--nodeport-addresses", "primary")
    pod, name = spare.lab.local_pods[0], spare.lab.spec.node_name
    service = spare.publish([pod], type="NodePort")

    def eligible() -> bool:
        return bool(status(spare)["nodeEligible"])

    def outcomes() -> list[str]:
        client = spare.lab.client
        return [spare.outcome(client, ip, service.node_port) for ip in (*NODE_IP4, *NODE_IP6)]

    primary = [pod.name if ip in {NODE_IP4[0], NODE_IP6[0]} else "Refused" for ip in (*NODE_IP4, *NODE_IP6)]
    assert outcomes() == primary
    spare.api.delete("Node", "", name)
    try:
        program.until(eligible, expected=False)
        program.wait_log("node_missing", f"node={name}")
        spare.settle()
        assert outcomes() == primary
        spare.api.apply(node_json(name, (), NODE.pod_cidrs, "zone-a"))
        program.until(eligible, expected=True)
        spare.settle()
        assert outcomes() == primary
    finally:
        spare.set_node()


@pytest.mark.needs(Capability.LOCALHOST_NODE_PORTS)
def test_localhost_node_ports_can_be_turned_off(spare: Cluster) -> None:
    spare.start("--iptables-localhost-nodeports=false")
    pod = spare.lab.local_pods[0]
    service = spare.publish([pod], type="NodePort")
    assert spare.outcome(spare.lab.node, "127.0.0.1", service.node_port) == "Refused"
    assert spare.outcome(spare.lab.node, NODE_IP4[0], service.node_port) == pod.name


def test_another_masquerade_bit_serves_as_well(spare: Cluster) -> None:
    spare.start("--iptables-masquerade-bit", "20")
    pods = spare.lab.pods[:2]
    service = spare.publish(pods)
    for family in FAMILIES:
        seen = spare.ask(spare.lab.client, service.ip(family), 80)
        assert seen.pods == names(pods)
        assert seen.sources == spare.as_node(pods, family)
