"""Which counters of elements belong to which service port, and what becomes of them when elements change."""

from __future__ import annotations

import json

import pytest

from kproxy.backends.core.base import PortTraffic
from kproxy.backends.nftables.traffic import port_of
from kproxy.kernel.nft.netlink import NetlinkNft
from tests.backends.nftables_node import CONFIG, NftablesNode
from tests.builders import endpoint, endpoint_slice, plan_of, port, service
from tests.kernel import nft_oracle
from tests.kernel.namespace import fresh_network

PORTS = [port(80, "web", nodePort=30080), port(53, None, "UDP", nodePort=30053)]
OBJECTS = (
    service(
        ports=PORTS,
        type="LoadBalancer",
        externalIPs=["1.2.3.4"],
        ingress=["5.6.7.8"],
        loadBalancerSourceRanges=["9.9.9.0/24"],
    ),
    endpoint_slice("10.1.0.1", ports=PORTS),
)
"""Frontends of each port: cluster IP, external IP, load-balancer IP, and the two node addresses of CONFIG."""


def started() -> NftablesNode:
    node = NftablesNode()
    node.put(*OBJECTS)
    node.done()
    return node


def count(node: NftablesNode, **packets: int) -> None:
    """Let packets of 60 bytes be counted at frontends named `ip_protocol_port`."""
    counts = node.fake.table(CONFIG.family).containers["services"].counts
    for name, number in packets.items():
        counts[name.removeprefix("at_").replace("_", " . ")] = number, 60 * number


def packets(node: NftablesNode) -> dict[str, int]:
    found = node.backend.traffic()
    assert all(each.sent == (each.connections, 60 * each.connections) for each in found)
    assert all(each.answered is None for each in found)
    return {f"{each.name} {each.protocol}": each.connections for each in found}


def test_the_frontends_of_a_port_are_added_up() -> None:
    node = started()
    frontends = node.fake.table(CONFIG.family).containers["services"].elements
    assert len(frontends) == 10
    count(node, **{asked.replace(" . ", "_"): 1 for asked in frontends})
    assert packets(node) == {"ns1/svc1:web TCP": 5, "ns1/svc1 UDP": 5}
    count(node, **{"at_192.168.0.2_6_30080": 4})
    assert packets(node) == {"ns1/svc1:web TCP": 8, "ns1/svc1 UDP": 5}


def test_what_an_element_counted_outlives_it() -> None:
    node = started()
    count(node, **{"at_1.2.3.4_6_80": 7})
    assert packets(node)["ns1/svc1:web TCP"] == 7
    node.put(None, endpoint_slice(*(endpoint(f"10.1.0.{n}") for n in (1, 2)), ports=PORTS))
    node.done()
    assert packets(node)["ns1/svc1:web TCP"] == 7
    count(node, **{"at_1.2.3.4_6_80": 2})
    assert packets(node)["ns1/svc1:web TCP"] == 9
    node.start()
    assert node.done().full
    assert packets(node)["ns1/svc1:web TCP"] == 2


def test_a_service_that_is_gone_is_forgotten() -> None:
    node = started()
    count(node, **{"at_1.2.3.4_6_80": 7})
    assert packets(node)
    node.drop("ns1/svc1")
    node.done()
    assert packets(node) == {}
    node.put(*OBJECTS)
    node.done()
    assert packets(node) == {"ns1/svc1:web TCP": 0, "ns1/svc1 UDP": 0}


def test_the_counts_of_a_table_change_nothing_else() -> None:
    node = started()
    count(node, **{"at_1.2.3.4_6_80": 7})
    assert node.backend.check(full=True) == ()
    node.start()
    assert node.done().changes.keys() <= {"transactions", "chains"}


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("10.0.0.1 . 6 . 80", "ns1/svc1:a"),
        ("192.168.0.2 . 6 . 80", "ns1/svc1:b"),
        ("1.2.3.4 . 6 . 8080", "ns1/svc1:b"),
        ("192.168.0.2 . 6 . 30080", "ns1/svc1:a"),
        ("10.0.0.1 . 17 . 80", "ns1/svc1:u"),
        ("10.0.0.1 . 6 . 81", None),
    ],
)
def test_the_address_decides_between_a_port_and_a_node_port(asked: str, name: str | None) -> None:
    ports = [
        port(80, "a", nodePort=30080),
        port(8080, "b", nodePort=80),
        port(80, "u", "UDP", nodePort=30080),
    ]
    plan = plan_of(
        service(ip="10.0.0.1", ports=ports, type="NodePort", externalIPs=["1.2.3.4"]),
        endpoint_slice("10.1.0.1", ports=ports),
    )
    found = port_of(plan, asked)
    assert (found and found.name) == name


def test_objects_are_counted_as_the_kernel_holds_them() -> None:
    node = NftablesNode()
    assert node.backend.objects() == {}
    node.put(*OBJECTS)
    node.done()
    table = node.fake.table(CONFIG.family)
    assert node.backend.objects() == {
        "elements": sum(len(each.elements) for each in table.containers.values()),
        "chains": len(table.chains),
    }


def test_a_chain_that_cannot_go_is_counted_once_for_each_attempt() -> None:
    node = started()
    node.drop("ns1/svc1")
    node.fake.refuse = lambda line: line == "delete chain ip kproxy all-1"
    for tried in (1, 0):
        report = node.done()
        assert (list(report.leftovers), report.kept) == (["chain all-1"], tried)
    node.backend.retry()
    assert node.done().kept == 1
    node.backend.retry()
    node.fake.refuse = lambda _: False
    assert node.done().leftovers == {}


@pytest.mark.root
def test_nft_lists_the_counts_as_they_are_read() -> None:
    _counted_in_the_kernel()


@fresh_network
def _counted_in_the_kernel() -> None:
    nft = NetlinkNft()
    node = NftablesNode(nft=nft)
    node.put(*OBJECTS)
    node.done()
    names = {"ns1/svc1:web TCP": 0, "ns1/svc1 UDP": 0}
    assert packets(node) == names
    listed = nft_oracle.nft("-j", "list", "map", "ip", "kproxy", "services")
    elements = next(each["map"] for each in json.loads(listed)["nftables"] if "map" in each)["elem"]
    assert len(elements) == 10
    assert all(key["elem"]["counter"] == {"packets": 0, "bytes": 0} for key, _ in elements)
    assert node.backend.check(full=True) == ()
    assert nft.counts(CONFIG.family, "kproxy", "none") is None
    assert PortTraffic("ns1/svc1", "UDP", 0, (0, 0)) in node.backend.traffic()
