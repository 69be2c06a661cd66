"""What policies must leave alone, and how they refuse: errors, neighbours, foreign sources, rejects."""

import socket
from collections.abc import Iterator

import pytest

from kproxy_lab.lab import AskError, NoAnswer, Protocol, Refused
from kproxy_lab.lab.topology import Family
from tests.packets.objects import FAMILIES, FAMILY_NAMES
from tests.policy import objects
from tests.policy.conftest import NFTABLES, api_world, missing
from tests.policy.foreign import send_foreign
from tests.policy.objects import JSON, labels_in, pods_with, rule_from, rule_to, spec
from tests.policy.world import World, parse

pytestmark = pytest.mark.root

UNSERVED = 7999
PROTOCOLS: tuple[Protocol, ...] = ("TCP", "UDP")
WEB, CARD = labels_in(app="web"), labels_in(app="card")


def show(world: World, policies: dict[str, JSON]) -> None:
    world.show([objects.policy(key, spec) for key, spec in policies.items()])


@pytest.fixture(params=FAMILIES, ids=FAMILY_NAMES.get)
def family(request: pytest.FixtureRequest) -> Family:
    chosen: Family = request.param
    return chosen


def outcome(
    world: World, source: str, destination: str, port: int, protocol: Protocol, family: Family
) -> str:
    try:
        answer = world.lab.ask(
            world.pods[source],
            world.pods[destination].ip(family),
            port,
            protocol,
            timeout=0.3,
        )
    except AskError as error:
        return type(error).__name__
    return answer.pod


def test_errors_come_back_to_isolated_pods(world: World, family: Family) -> None:
    """Resets and ICMP errors belong to the connection that was allowed, on links and on the bridge."""
    to_own = [rule_to(pods_with())]
    show(
        world,
        {
            "shop/p": spec(WEB, ingress=[], egress=to_own),
            "pay/p": spec(CARD, ingress=[], egress=to_own),
        },
    )
    for source, destination in (("shop/web", "shop/bare"), ("pay/card", "pay/api"), ("pay/card", "pay/web")):
        for protocol in PROTOCOLS:
            assert outcome(world, source, destination, UNSERVED, protocol, family) == Refused.__name__
            assert outcome(world, destination, source, UNSERVED, protocol, family) == NoAnswer.__name__


def test_neighbours_are_found_although_everything_is_denied(world: World) -> None:
    """Bridged pods of IPv6 find each other and their gateway by packets that cross the bridge."""
    web = [{"port": 80}]
    own = spec({}, ingress=[rule_from(ports=web)], egress=[rule_to(ports=web)])
    deny = spec({}, ingress=[], egress=[])
    show(world, {"pay/deny": deny, "shop/deny": deny, "pay/own": own, "shop/own": own})
    for namespace in (world.lab.node, *(pod.namespace for pod in world.pods.values() if pod.local)):
        namespace.run(["ip", "neigh", "flush", "all"])
    world.check(
        parse("""
        pay/api pay/web shop/bare > pay/card: +80 -53/udp
        node > pay/card shop/web shop/bare: +80 +icmp
        shop/bare shop/api > shop/web: +80 -8080 -icmp
    """)
    )


def test_packets_that_leave_by_the_output_hook_alone_are_judged(world: World, family: Family) -> None:
    """As IPVS sends what it forwards: with the client's source, and never through the forward hook."""
    datagrams = [{"port": 7200, "protocol": "UDP"}]
    show(
        world,
        {
            "shop/p": spec(WEB, ingress=[rule_from(pods_with(app="api"), ports=datagrams)]),
            "pay/q": spec({}, egress=[]),
        },
    )
    web, at = world.pods["shop/web"], FAMILIES.index(family)
    ips = objects.addresses(world.pods)
    opened = web.namespace.open_socket(socket.AF_INET6 if family == 6 else socket.AF_INET, socket.SOCK_DGRAM)
    with opened:
        opened.settimeout(0.2)
        opened.bind((web.ip(family), 7200))

        def arrives(source: str) -> bool:
            try:
                send_foreign(world.lab.node, ips[source][at], web.ip(family), 7200)
                return opened.recv(64) == b"foreign"
            except (TimeoutError, PermissionError):  # the sender is told what the output hook drops
                return False

        sources = ("shop/api", "shop/db", "out", "pay/card", "peer", "node")
        assert [source for source in sources if arrives(source)] == ["shop/api", "node"]


def test_fragments_are_judged_as_their_datagram(world: World, family: Family) -> None:
    """Only the first fragment has ports; over links, and from bridge to bridge."""
    allowed = spec({}, ingress=[rule_from(pods_with(), ports=[{"port": 7300, "protocol": "UDP"}])])
    show(world, {"shop/p": allowed, "pay/p": allowed})
    kind = socket.AF_INET6 if family == 6 else socket.AF_INET

    def arrives(source: str, destination: str, port: int) -> bool:
        target = world.pods[destination]
        with (
            target.namespace.open_socket(kind, socket.SOCK_DGRAM) as server,
            world.pods[source].namespace.open_socket(kind, socket.SOCK_DGRAM) as client,
        ):
            server.settimeout(0.2)
            server.bind((target.ip(family), port))
            client.sendto(b"x" * 5000, (target.ip(family), port))
            try:
                return len(server.recv(6000)) == 5000
            except TimeoutError:
                return False

    for source, destination in (
        ("shop/db", "shop/web"),
        ("shop/bare", "shop/web"),
        ("shop/web", "shop/bare"),
        ("pay/api", "pay/card"),
    ):
        assert arrives(source, destination, 7300)
        assert not arrives(source, destination, 7301)
        assert not arrives("ops/prom", destination, 7300)


@pytest.fixture(scope="module")
def rejecting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world whose kproxy rejects what policies refuse."""
    if reasons := missing():
        pytest.skip("; ".join(reasons))
    with api_world(tmp_path_factory.mktemp("policy")) as made:
        made.start(NFTABLES, "--network-policy-reject")
        yield made


def test_an_option_rejects_instead_of_dropping(rejecting: World, family: Family) -> None:
    show(
        rejecting,
        {
            "shop/p": spec(WEB, ingress=[rule_from(ports=[{"port": 80}])]),
            "pay/p": spec({}, egress=[]),
        },
    )
    for source, destination in (
        ("shop/api", "shop/web"),
        ("shop/db", "shop/web"),
        ("pay/card", "shop/db"),
        ("pay/web", "shop/db"),
    ):
        for protocol in PROTOCOLS:
            assert outcome(rejecting, source, destination, 8080, protocol, family) == Refused.__name__
    rejecting.tester.attempt(
        [rejecting.flow(each) for each in parse("shop/api > shop/web: +80")], [True, True]
    )
