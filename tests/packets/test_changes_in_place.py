"""Services that change in place, are deleted and recreated, or pass on an address, checked at each step."""

from collections.abc import Callable, Sequence

import pytest

from kproxy_lab.lab import Protocol
from kproxy_lab.lab.topology import NODE_IP4, NODE_IP6, Family
from tests.packets.cluster import Cluster
from tests.packets.objects import JSON, NAMESPACE, OTHER_TARGET, TARGET, Port, Service

pytestmark = pytest.mark.root

NOT_SERVED = {"Refused", "Unreachable"}
"""Outcomes without a timeout: the node or a router refuses at once."""

Address = tuple[str, int]


def node_ip(family: Family) -> str:
    return (NODE_IP4 if family == 4 else NODE_IP6)[0]


def alter(cluster: Cluster, service: Service, change: Callable[[JSON], None]) -> None:
    """Let `change` alter the stored service, its status too, and wait until that is in force."""
    cluster.api.edit("Service", NAMESPACE, service.name, change)
    cluster.settle()


@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_a_service_goes_through_all_types_and_back(
    cluster: Cluster, family: Family, protocol: Protocol
) -> None:
    pod, client, node = cluster.lab.remote_pods[0], cluster.lab.client, node_ip(family)
    service = cluster.publish([pod], ports=[Port(80, protocol)])
    own, outside = service.ip(family), cluster.external_ips()
    one, other = cluster.free_node_port(), cluster.free_node_port()
    everything = [
        *((ip, port) for ip in (own, outside[family]) for port in (80, 81)),
        (node, one),
        (node, other),
    ]

    def become(expected: Sequence[Address], *, ingress: bool = False, port: int = 0, **spec: object) -> None:
        def change(obj: JSON) -> None:
            obj["spec"] |= spec
            if port:
                obj["spec"]["ports"][0]["port"] = port
            balancer = {"ingress": [{"ip": ip} for ip in outside.values()]} if ingress else {}
            obj["status"] = {"loadBalancer": balancer}

        alter(cluster, service, change)
        found = {address: cluster.outcome(client, *address, protocol) for address in everything}
        assert [address for address in everything if found[address] == pod.name] == list(expected), found
        assert {found[address] for address in everything if address not in expected} <= NOT_SERVED

    def node_port(number: int, port: int = 80) -> JSON:
        return {"ports": [Port(port, protocol).in_service(number)]}

    become([(own, 80)])
    become([(own, 80), (node, one)], type="NodePort", **node_port(one))
    become([(own, 80), (outside[family], 80), (node, one)], type="LoadBalancer", ingress=True)
    become([(own, 80), (outside[family], 80), (node, other)], ingress=True, **node_port(other))
    become([(own, 81), (outside[family], 81), (node, other)], ingress=True, **node_port(other, 81))
    cluster.scale(service, [])
    for address in ((own, 81), (outside[family], 81), (node, other)):
        assert cluster.outcome(client, *address, protocol) == "Refused"
    cluster.scale(service, [pod])
    become([(own, 81)], type="ClusterIP", **node_port(0, 81))
    released: JSON = {"clusterIP": "", "clusterIPs": [], "ipFamilies": [], "ipFamilyPolicy": None}
    become([], type="ExternalName", externalName="example.com", **released)
    again: JSON = {"clusterIPs": list(service.ips.values()), "ipFamilyPolicy": "RequireDualStack"}
    again |= {"clusterIP": again["clusterIPs"][0], "ipFamilies": ["IPv4", "IPv6"]}
    become([(own, 80), (node, one)], type="NodePort", externalName="", **again, **node_port(one))


def test_a_service_that_is_made_again_serves_at_the_address_it_had(cluster: Cluster, family: Family) -> None:
    lab = cluster.lab
    pod, other = lab.pods[:2]
    service = cluster.publish([pod])
    ips: JSON = {"clusterIP": service.ip(4), "clusterIPs": list(service.ips.values())}
    for _ in range(2):
        cluster.delete(service)
        cluster.settle()
        assert cluster.outcome(lab.client, service.ip(family), 80) in NOT_SERVED
        cluster.service(service.name, **ips)
        cluster.settle()
        assert cluster.outcome(lab.client, service.ip(family), 80) == pod.name
    cluster.delete(service)
    cluster.publish([other], **ips)
    assert cluster.outcome(lab.client, service.ip(family), 80) == other.name


def test_a_node_port_changes_its_protocol_and_its_service(cluster: Cluster, family: Family) -> None:
    lab, number = cluster.lab, cluster.free_node_port()
    pod, other = lab.pods[:2]
    address = (node_ip(family), number)
    service = cluster.publish([pod], type="NodePort", ports=[Port(80, node_port=number)])
    for protocol, silent in (("UDP", "TCP"), ("TCP", "UDP")):
        ports = [Port(80, protocol, node_port=number)]  # type: ignore[arg-type]
        cluster.edit(service, lambda spec, ports=ports: spec.update(ports=[ports[0].in_service(number)]))
        cluster.slices(service, [pod], ports=ports)
        cluster.settle()
        assert cluster.outcome(lab.client, *address, protocol) == pod.name  # type: ignore[arg-type]
        assert cluster.outcome(lab.client, *address, silent) == "Refused"  # type: ignore[arg-type]
    cluster.delete(service)
    cluster.publish([other], type="NodePort", ports=[Port(80, node_port=number)])
    assert cluster.outcome(lab.client, *address) == other.name


def test_of_two_protocols_at_one_number_each_goes_and_comes_alone(cluster: Cluster, family: Family) -> None:
    lab = cluster.lab
    pod, asker = lab.remote_pods[0], lab.local_pods[0]
    both = [Port(80, "TCP", name="tcp"), Port(80, "UDP", name="udp", target=OTHER_TARGET)]
    service = cluster.publish([pod], ports=both)
    for ports in (both, both[:1], both[1:], both):
        cluster.edit(service, lambda spec, ports=ports: spec.update(ports=[p.in_service(0) for p in ports]))
        cluster.settle()
        for port in both:
            found = cluster.outcome(asker, service.ip(family), 80, port.protocol)
            assert found == pod.name if port in ports else found in NOT_SERVED, port


def test_ports_are_added_renamed_and_deleted(cluster: Cluster, family: Family) -> None:
    lab = cluster.lab
    pod, client = lab.local_pods[0], lab.client
    service = cluster.service(ports=[Port(80)])
    for ports in (
        [Port(80)],
        [Port(80, name="web"), Port(81, name="more", target=OTHER_TARGET)],
        [Port(80, name="www", target=OTHER_TARGET), Port(81, name="web", target=TARGET)],
        [Port(81, name="web")],
        [Port(80)],
    ):
        cluster.edit(service, lambda spec, ports=ports: spec.update(ports=[p.in_service(0) for p in ports]))
        cluster.slices(service, [pod], ports=ports)
        cluster.settle()
        targets = {port.number: {pod.name: {port.target}} for port in ports}
        for number in (80, 81):
            if number in targets:
                assert cluster.ask(client, service.ip(family), number, n=3).targets == targets[number]
            else:
                assert cluster.outcome(client, service.ip(family), number) in NOT_SERVED


def test_a_service_is_given_to_another_proxy_and_back(cluster: Cluster, family: Family) -> None:
    lab = cluster.lab
    pod, name = lab.local_pods[0], "service.kubernetes.io/service-proxy-name"
    service = cluster.publish([pod], type="NodePort")
    targets = ((service.ip(family), 80), (node_ip(family), service.node_port))
    for labels, proxied in (({name: "foo-bar"}, False), ({}, True), ({name: ""}, False), ({}, True)):
        cluster.edit_meta("Service", service.name, lambda meta, labels=labels: meta.update(labels=labels))
        cluster.settle()
        for source in (lab.client, lab.local_pods[1], lab.node):
            # Packets of the node itself to an unused address leave the node, and may be lost.
            for target in targets if proxied or source is not lab.node else targets[1:]:
                found = cluster.outcome(source, *target)
                assert found == pod.name if proxied else found in NOT_SERVED, (labels, source, target)


def test_source_ranges_change_and_go(cluster: Cluster, family: Family) -> None:
    lab, outside = cluster.lab, cluster.external_ips()
    pod, (one, other) = lab.local_pods[0], cluster.client_ips(family)[:2]
    ingress = [{"ip": ip} for ip in outside.values()]
    service = cluster.publish([pod], type="LoadBalancer", ingress=ingress)
    bits = "/32" if family == 4 else "/128"
    for ranges in ([one + bits], [other + bits], [one + bits, other + bits], None, [other + bits]):
        cluster.edit(service, lambda spec, ranges=ranges: spec.update(loadBalancerSourceRanges=ranges))
        cluster.settle()
        for source in (one, other):
            if ranges is None or source + bits in ranges:
                assert cluster.outcome(lab.client, outside[family], 80, source_ip=source) == pod.name
            else:
                assert cluster.silent(lab.client, outside[family], 80, source_ip=source)


def test_two_services_exchange_their_external_addresses(cluster: Cluster, family: Family) -> None:
    lab, one, other = cluster.lab, cluster.external_ips(), cluster.external_ips()
    pods = lab.pods[:2]
    services = [cluster.service(externalIPs=list(ips.values()), type="NodePort") for ips in (one, other)]
    for service, pod in zip(services, pods, strict=True):
        cluster.slices(service, [pod])
    for first, second in ((one, other), (other, one), (one, other)):
        for service, ips in zip(services, (first, second), strict=True):
            cluster.edit(service, lambda spec, ips=ips: spec.update(externalIPs=list(ips.values())))
        cluster.settle()
        for pod, ips in zip(pods, (first, second), strict=True):
            assert cluster.outcome(lab.client, ips[family], 80) == pod.name


def test_slices_are_marked_headless_and_unmarked(cluster: Cluster, family: Family) -> None:
    """The label has no meaning on a Service: only its cluster IP decides whether it is headless."""
    lab, label = cluster.lab, {"service.kubernetes.io/headless": ""}
    one, other = lab.pods[:2]
    service = cluster.service(labels=label)
    cluster.slices(service, [one])
    cluster.slices(service, [other], name="b", labels=label)
    for labels, expected in (({}, one.name), (label, "Refused"), ({}, one.name)):
        cluster.slices(service, [one], labels=labels)
        cluster.settle()
        for _ in range(5):
            assert cluster.outcome(lab.client, service.ip(family), 80) == expected
