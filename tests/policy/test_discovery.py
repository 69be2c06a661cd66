"""IPv6 discovery passes on its link, and carries nothing to or from an isolated pod beyond it."""

import json
import socket
import struct

import pytest

from tests.policy import objects
from tests.policy.world import World, parse

pytestmark = pytest.mark.root

PAYLOAD = b"nothing to discover"
DISCOVERY = (*range(130, 138), 143)
"""Types of ICMPv6 for listeners, routers, neighbours and redirects (RFC 2710, 3810, 4861)."""
CLOSED = objects.policy("shop/closed", "podSelector: {}\npolicyTypes: [Ingress, Egress]")


def arrived(world: World, source: str, destination: str) -> list[int]:
    """The types that get from one end to the other, sent with the greatest hop limit and with a small one."""
    target = world.flow(parse(f"v6 {source} > {destination}: +icmp")[0])
    kind = socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6
    found = []
    with (
        target.source.open_socket(*kind) as sender,
        world.to(destination, "::1", 0).source.open_socket(*kind) as receiver,
    ):
        for hops in (255, 3):
            sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, hops)
            for number in DISCOVERY:
                message = struct.pack("!BBHI", number, 0, 0, 0) + PAYLOAD
                sender.sendto(message, (target.ip, 0))
        # A bound for silence: the packets take microseconds.
        receiver.settimeout(0.3)
        try:
            while True:
                data = receiver.recv(200)
                found += [data[0]] if PAYLOAD in data else []
        except TimeoutError:
            return sorted(found)


@pytest.mark.parametrize(
    ("source", "destination"),
    [("shop/web", "out"), ("out", "shop/web"), ("shop/api", "shop/web-far"), ("shop/web", "shop/db")],
)
def test_types_of_discovery_lead_to_no_other_link(world: World, source: str, destination: str) -> None:
    world.show()
    assert arrived(world, source, destination) == sorted(2 * DISCOVERY)
    world.show([CLOSED])
    assert arrived(world, source, destination) == []


def test_addresses_of_the_link_lead_into_no_pod(world: World) -> None:
    """Pods of one bridge have them beside their own, also where the cluster has no IPv6."""
    world.show([CLOSED])
    api, bare = (world.pods[name].namespace for name in ("shop/api", "shop/bare"))
    listed = json.loads(bare.run(["ip", "-j", "-6", "addr", "show", "scope", "link"]).stdout)
    ((ip, device),) = [
        (each["local"], link["ifname"])
        for link in listed
        for each in link.get("addr_info", ())
        if "local" in each
    ]
    index = api.call(socket.if_nametoindex, device)
    with (
        bare.open_socket(socket.AF_INET6, socket.SOCK_DGRAM) as server,
        api.open_socket(socket.AF_INET6, socket.SOCK_DGRAM) as client,
    ):
        server.bind(("::", 5777))
        server.settimeout(0.3)
        for target in (ip, "ff02::1"):
            client.sendto(PAYLOAD, (target, 5777, 0, index))
        with pytest.raises(TimeoutError):
            server.recv(100)


def test_neighbours_on_a_bridge_find_each_other(world: World) -> None:
    allowed = objects.policy("shop/closed", "podSelector: {}\ningress: [{from: [{podSelector: {}}]}]")
    world.show([allowed])
    for pod in ("shop/api", "shop/bare"):
        world.pods[pod].namespace.run(["ip", "-6", "neigh", "flush", "all"])
    world.check(
        parse("v6 shop/api > shop/bare: +80 +icmp\nv6 shop/bare > shop/api: +80\nv6 out > shop/bare: -80")
    )
