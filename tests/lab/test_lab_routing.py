"""The lab as plain network: everybody reaches everybody, untranslated, and outcomes are told apart."""

import json
import time
from collections.abc import Iterator

import pytest

from kproxy_lab.lab import Answer, AskError, Lab, LabSpec, Namespace, NoAnswer, Pod, Refused, Unreachable
from kproxy_lab.lab.servers import Protocol
from kproxy_lab.lab.topology import NODE_IP4, NODE_IP6, PEER_IP4, PEER_IP6, Family

pytestmark = pytest.mark.root

PROTOCOLS: tuple[Protocol, ...] = ("TCP", "UDP")
FAMILIES: tuple[Family, ...] = (4, 6)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if reasons := Lab.missing():
        pytest.skip("; ".join(reasons))
    with Lab(LabSpec(local_pods=2, remote_pods=2)) as made:
        for pod in (*made.pods, made.node_pod, made.peer_pod):
            for protocol in PROTOCOLS:
                made.serve(pod, protocol, 8080)
        yield made


def own_address(lab: Lab, source: Namespace | Pod, family: Family) -> str:
    if isinstance(source, Pod):
        return source.ip(family)
    return (lab.spec.client_ip4 if family == 4 else lab.spec.client_ip6)[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_all_namespaces_reach_each_other_untranslated(lab: Lab, protocol: Protocol, family: Family) -> None:
    places = (*lab.pods, lab.node_pod, lab.peer_pod)
    sources: list[Namespace | Pod] = [lab.client, *places]
    for source in sources:
        for destination in places:
            answer = lab.ask(source, destination.ip(family), 8080, protocol, text="hello")
            assert answer.pod == destination.name
            assert (answer.address_seen, answer.port_seen) == (destination.ip(family), 8080)
            assert (answer.source_ip_seen, answer.source_port_seen) == (answer.local_ip, answer.local_port)
            assert answer.text == "hello"
            if source not in {lab.node_pod, lab.peer_pod}:  # nodes use their bridge's address for their pods
                assert answer.source_ip_seen == own_address(lab, source, family)


def test_pods_have_the_documented_addresses(lab: Lab) -> None:
    assert [(pod.name, pod.ip4, pod.ip6, pod.node_name, pod.local) for pod in lab.pods] == [
        ("local-0", "10.244.1.10", "fd00:10:244:1::10", "node-a", True),
        ("local-1", "10.244.1.11", "fd00:10:244:1::11", "node-a", True),
        ("remote-0", "10.244.2.10", "fd00:10:244:2::10", "node-b", False),
        ("remote-1", "10.244.2.11", "fd00:10:244:2::11", "node-b", False),
    ]
    assert (lab.node_pod.ip4, lab.node_pod.ip6) == (NODE_IP4[0], NODE_IP6[0])
    assert (lab.peer_pod.ip4, lab.peer_pod.ip6) == (PEER_IP4[0], PEER_IP6[0])


def test_the_node_uses_its_first_address_for_what_leaves_it(lab: Lab) -> None:
    for destination, own in ((PEER_IP4[0], NODE_IP4[0]), (PEER_IP6[0], NODE_IP6[0])):
        assert lab.ask(lab.node, destination, 8080).source_ip_seen == own


def test_the_node_hears_on_its_second_address_too(lab: Lab) -> None:
    server = lab.serve(lab.node_pod, "TCP", 8081, addresses=(NODE_IP4[1], NODE_IP6[1], "127.0.0.1", "::1"))
    try:
        for address in (NODE_IP4[1], NODE_IP6[1]):
            assert lab.ask(lab.client, address, 8081).address_seen == address
        assert lab.ask(lab.node, "127.0.0.1", 8081).pod == "node-a"
        assert lab.ask(lab.node, "::1", 8081).pod == "node-a"
        with pytest.raises(Refused):
            lab.ask(lab.client, NODE_IP4[0], 8081)
    finally:
        lab.stop_serving(server)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_source_address_and_port_can_be_chosen_again_and_again(lab: Lab, protocol: Protocol) -> None:
    for destination, source in ((lab.pods[0].ip4, "192.0.2.40"), (lab.pods[0].ip6, "2001:db8:1::40")):
        for _ in range(3):
            answer = lab.ask(lab.client, destination, 8080, protocol, source_ip=source, source_port=34567)
            assert (answer.source_ip_seen, answer.source_port_seen) == (source, 34567)


def test_no_datagram_continues_an_earlier_flow(lab: Lab) -> None:
    """A flow that is asked again goes where it went before, whatever the rules say now."""
    with lab.hold(lab.client, lab.pods[0].ip4, 8080, "UDP") as held:
        answers = lab.ask_each(lab.client, lab.pods[0].ip4, 8080, 400, "UDP")
        ports = {answer.local_port for answer in answers if isinstance(answer, Answer)} | {held.local_port}
        assert len(ports) == 401


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_closed_port_refuses_every_time(lab: Lab, protocol: Protocol, family: Family) -> None:
    with pytest.raises(Refused):
        lab.ask(lab.client, lab.pods[0].ip(family), 9, protocol)
    assert lab.ask_many(lab.client, lab.pods[0].ip(family), 9, 60, protocol) == {"Refused": 60}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_silence_is_no_answer(lab: Lab, protocol: Protocol) -> None:
    lab.node.run(["ip", "route", "replace", "blackhole", "198.51.100.1"])
    lab.fabric.run(["ip", "route", "replace", "198.51.100.1", "via", NODE_IP4[0]])
    with pytest.raises(NoAnswer):
        lab.ask(lab.client, "198.51.100.1", 80, protocol, timeout=0.1)


@pytest.mark.parametrize("address", ["172.16.0.1", "2001:db8:ffff::1", "10.96.0.10", "fd00:10:96::10"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_where_no_route_leads_is_unreachable(lab: Lab, protocol: Protocol, address: str) -> None:
    with pytest.raises(Unreachable):
        lab.ask(lab.client, address, 80, protocol)


@pytest.mark.parametrize("address", ["203.0.113.9", "2001:db8:2::9"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_service_without_a_proxy_is_unreachable_every_time(
    lab: Lab, protocol: Protocol, address: str
) -> None:
    assert lab.ask_many(lab.client, address, 80, 40, protocol) == {"Unreachable": 40}


@pytest.mark.parametrize("address", ["172.16.0.1", "2001:db8:ffff::1"])
def test_an_sctp_init_can_be_unreachable_too(lab: Lab, address: str) -> None:
    with pytest.raises(Unreachable):
        lab.probe_sctp(lab.client, address, 80)


def test_a_held_udp_socket_answers_again_after_a_refusal(lab: Lab) -> None:
    server = lab.serve(lab.pods[1], "UDP", 8085)
    with lab.hold(lab.client, lab.pods[1].ip4, 8085, "UDP") as held:
        assert held.exchange().pod == "local-1"
        lab.stop_serving(server)
        with pytest.raises(Refused):
            held.exchange()
        lab.serve(lab.pods[1], "UDP", 8085)
        assert held.exchange().pod == "local-1"


def test_many_requests_take_turns_through_source_addresses(lab: Lab) -> None:
    sources = lab.spec.client_ip4
    outcomes = lab.ask_each(lab.client, lab.pods[0].ip4, 8080, 2 * len(sources), source_ips=sources)
    seen = [outcome.source_ip_seen for outcome in outcomes if isinstance(outcome, Answer)]
    assert seen == [*sources, *sources]


def test_many_requests_to_many_pods_are_counted(lab: Lab) -> None:
    for pod in lab.pods:
        assert lab.ask_many(lab.client, pod.ip6, 8080, 200) == {pod.name: 200}


def test_a_held_connection_exchanges_lines_until_its_server_stops(lab: Lab) -> None:
    server = lab.serve(lab.pods[2], "TCP", 8082)
    with lab.hold(lab.client, lab.pods[2].ip4, 8082) as held:
        answers = [held.exchange(text) for text in ("one", "two", "three")]
        assert [answer.text for answer in answers] == ["one", "two", "three"]
        assert {answer.source_port_seen for answer in answers} == {held.local_port}
        lab.stop_serving(server)
        with pytest.raises(AskError):
            held.exchange("four")
    with pytest.raises(Refused):
        lab.ask(lab.client, lab.pods[2].ip4, 8082)


def test_a_held_udp_socket_stays_one_flow(lab: Lab) -> None:
    with lab.hold(lab.client, lab.pods[0].ip6, 8080, "UDP") as held:
        assert {held.exchange().source_port_seen for _ in range(5)} == {held.local_port}


def test_a_server_counts_what_it_answered(lab: Lab) -> None:
    server = lab.serve(lab.pods[1], "UDP", 8083)
    lab.ask_many(lab.client, lab.pods[1].ip4, 8083, 25, "UDP")
    assert server.answered == 25


def test_a_port_is_served_once(lab: Lab) -> None:
    with pytest.raises(OSError, match="in use"):
        lab.serve(lab.pods[0], "TCP", 8080)
    assert lab.ask(lab.client, lab.pods[0].ip4, 8080).pod == "local-0"


def test_the_answer_is_one_json_line_for_any_client(lab: Lab) -> None:
    program = (
        "import socket; s = socket.create_connection(('10.244.2.11', 8080), 5); s.sendall(b'hi\\n');"
        "print(s.makefile().readline())"
    )
    answer = json.loads(lab.client.run(["python3", "-c", program]).stdout)
    assert answer["pod"] == "remote-1"
    assert answer["peer"].startswith("192.0.2.10:")
    assert (answer["address"], answer["port"], answer["text"]) == ("10.244.2.11", 8080, "hi")


def test_an_ask_waits_no_longer_than_its_timeout(lab: Lab) -> None:
    listener = lab.node.listen(NODE_IP4[0], 8084)  # accepts and never answers
    with listener:
        start = time.monotonic()
        with pytest.raises(NoAnswer):
            lab.ask(lab.client, NODE_IP4[0], 8084, timeout=0.1)
        assert time.monotonic() - start >= 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_an_sctp_init_is_seen_where_it_arrives(lab: Lab, family: Family) -> None:
    source = (lab.spec.client_ip4 if family == 4 else lab.spec.client_ip6)[7]
    for pod in (*lab.pods, lab.node_pod):
        at = lab.probe_sctp(lab.client, pod.ip(family), 3868, source_ip=source, source_port=20000)
        assert at is not None
        assert (at.pod, at.source_ip, at.source_port, at.port) == (pod.name, source, 20000, 3868)
        assert at.answered


def test_an_sctp_init_to_nowhere_arrives_nowhere(lab: Lab) -> None:
    assert lab.probe_sctp(lab.client, "10.244.1.200", 3868, timeout=0.1) is None
