"""Policies judge what services lead to: the pod, its target port, and the client as this node sees it."""

from collections.abc import Iterator, Sequence

import pytest

from kproxy_lab.lab.flows import FlowProtocol
from kproxy_lab.lab.topology import NODE, NODE_IP4, NODE_IP6, Family
from tests.packets.modes import Capability, Mode
from tests.packets.objects import FAMILIES, FAMILY_NAMES, node_json
from tests.policy import objects
from tests.policy.conftest import api_world
from tests.policy.objects import JSON, blocks, labels_in, pods_with, rule_from, rule_to, spec
from tests.policy.world import SLOW, World

pytestmark = pytest.mark.root

NODE_PORT, LOCAL_NODE_PORT = 30080, 30081
PORT = 8000
"""Of every service; no pod serves it."""
WEB, API, CARD = (labels_in(app=app) for app in ("web", "api", "card"))
OWN = pods_with()
"""All pods of the policy's namespace, as a peer."""

Ask = tuple[str, str, int]
"""Who asks, an address, and a port."""


def service_ip(number: int, family: Family) -> str:
    return f"10.96.0.{number}" if family == 4 else f"fd00:10:96::{number}"


def service(
    key: str, number: int, pods: Sequence[str], world: World, target: int, **fields: object
) -> list[JSON]:
    """A service on TCP, UDP and SCTP whose port is not that of its pods."""
    space, name = key.split("/")
    node_port = fields.pop("node_port", None)
    protocols = ("TCP",) if node_port else ("TCP", "UDP", "SCTP")
    ports: list[JSON] = [
        {
            "name": protocol.lower(),
            "port": PORT,
            "protocol": protocol,
            "targetPort": 53 if protocol == "UDP" else target,
        }
        for protocol in protocols
    ]
    if node_port:
        ports[0]["nodePort"] = node_port
    ips = [service_ip(number, family) for family in FAMILIES]
    made: list[JSON] = [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": space},
            "spec": {
                "type": "NodePort" if node_port else "ClusterIP",
                "clusterIP": ips[0],
                "clusterIPs": ips,
                "ipFamilyPolicy": "RequireDualStack",
                "ipFamilies": ["IPv4", "IPv6"],
                "ports": ports,
                **fields,
            },
        }
    ]
    made += [
        {
            "apiVersion": objects.VERSIONS["EndpointSlice"],
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{name}-{family}",
                "namespace": space,
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": FAMILY_NAMES[family],
            "endpoints": [
                {
                    "addresses": [world.pods[pod].ip(family)],
                    "conditions": {"ready": True},
                    "nodeName": world.pods[pod].node_name,
                }
                for pod in pods
            ],
            "ports": [
                {"name": port["name"], "protocol": port["protocol"], "port": port["targetPort"]}
                for port in ports
            ],
        }
        for family in FAMILIES
    ]
    return made


def services(world: World) -> list[JSON]:
    return [
        *service("shop/web", 80, ["shop/web"], world, 80),
        *service("pay/card", 81, ["pay/card"], world, 8080),
        *service("shop/far", 82, ["shop/web-far"], world, 8080),
        *service("shop/both", 83, ["shop/web"], world, 80, node_port=NODE_PORT),
        *service(
            "pay/local", 84, ["pay/card"], world, 80, node_port=LOCAL_NODE_PORT, externalTrafficPolicy="Local"
        ),
    ]


@pytest.fixture(scope="module")
def served(mode: Mode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world with services, in every mode."""
    with api_world(tmp_path_factory.mktemp("policy"), mode) as world:
        node = node_json(world.lab.spec.node_name, (*NODE_IP4, *NODE_IP6), NODE.pod_cidrs, "zone-a")
        world.base |= objects.by_key([node, *services(world)])
        world.show()
        program = world.start(mode)
        last = [world.to(source, ip, port) for source, ip, port in at_node(LOCAL_NODE_PORT, "out")]
        program.until(lambda: [each.open for each in world.tester.attempt(last)], [True, True])
        yield world


def attempt(
    world: World, allowed: Sequence[Ask], refused: Sequence[Ask], protocol: FlowProtocol = "TCP"
) -> None:
    """Assert that exactly the allowed ones pass."""
    flows = [world.to(source, ip, port, protocol) for source, ip, port in (*allowed, *refused)]
    expected = [True] * len(allowed) + [False] * len(refused)
    tried = world.tester.attempt(flows, expected, quiet=0.03 * SLOW)
    assert [each.open or each.arrived for each in tried] == expected
    assert not any(each.error for each in tried), [each for each in tried if each.error]


def attempt_itself(mode: Mode, world: World, refused: Sequence[Ask]) -> None:
    """Assert that policies refuse what a pod asks itself through a service.

    No policy can refuse it where the socket is translated: then no packet leaves the pod, as if it had asked
    its own address.
    """
    if Capability.SOCKET_TABLE in mode.capabilities:
        attempt(world, refused, [])
    else:
        attempt(world, [], refused)


def both(*asks: tuple[str, int]) -> list[Ask]:
    """The service of each number, asked from each source in both families."""
    return [(source, service_ip(number, family), PORT) for source, number in asks for family in FAMILIES]


def at_node(port: int, *sources: str) -> list[Ask]:
    """A node port, asked from each source in both families."""
    return [(source, ip, port) for source in sources for ip in (NODE_IP4[0], NODE_IP6[0])]


def show(world: World, policies: dict[str, JSON]) -> None:
    world.show([objects.policy(key, spec) for key, spec in policies.items()])


def test_services_work_without_policies(served: World) -> None:
    show(served, {})
    asks = both(("shop/api", 80), ("pay/api", 81))
    attempt(served, [*asks, *both(("shop/web", 80), ("node", 80)), *at_node(NODE_PORT, "out")], [])
    attempt(served, asks, [], "UDP")
    attempt(served, asks, [], "SCTP")


def test_ingress_counts_the_target_port(served: World) -> None:
    targets: list[JSON] = [{"port": 80}, {"port": 53, "protocol": "UDP"}]
    wrong: list[JSON] = [{"port": PORT}, {"port": PORT, "protocol": "UDP"}]
    show(
        served,
        {
            "shop/p": spec(WEB, ingress=[rule_from(pods_with(app="api"), ports=targets)]),
            "pay/p": spec({}, ingress=[rule_from(ports=wrong)]),
        },
    )
    allowed = both(("shop/api", 80), ("node", 80), ("node", 81))
    attempt(served, allowed, both(("shop/db", 80), ("pay/card", 80), ("pay/api", 81), ("shop/bare", 81)))
    attempt(served, both(("shop/api", 80)), both(("shop/bare", 80), ("pay/api", 81)), "UDP")
    attempt(served, [], both(("shop/api", 80), ("pay/api", 81)), "SCTP")


def test_egress_counts_the_target_and_not_the_port_of_the_service(served: World) -> None:
    targets = [{"port": 80}, {"port": 8080}]
    show(
        served,
        {
            "shop/p": spec(API, egress=[rule_to(pods_with(app="web"), ports=targets)]),
            "shop/q": spec(labels_in(app="db"), egress=[rule_to(ports=[{"port": PORT}])]),
        },
    )
    allowed = [*both(("shop/api", 80), ("shop/api", 82), ("shop/bare", 81)), *at_node(NODE_PORT, "shop/api")]
    refused = [
        *both(("shop/api", 81), ("shop/db", 80), ("shop/db", 82)),
        *at_node(LOCAL_NODE_PORT, "shop/api"),
        *at_node(80, "shop/api"),
    ]
    attempt(served, allowed, refused)


def test_pods_of_one_bridge_through_their_service(served: World, mode: Mode) -> None:
    show(served, {"pay/p": spec(CARD, ingress=[rule_from(pods_with(app="api"), ports=[{"port": 8080}])])})
    attempt(served, both(("pay/api", 81)), both(("shop/bare", 81), ("pay/web", 81)))
    attempt_itself(mode, served, both(("pay/card", 81)))


def test_a_pod_through_its_own_service_is_a_peer_of_itself(served: World, mode: Mode) -> None:
    own = spec({}, ingress=[rule_from(OWN)])
    show(served, {"shop/p": own, "pay/p": own})
    attempt(served, both(("shop/web", 80), ("pay/card", 81)), both(("pay/card", 80), ("shop/web", 81)))
    show(served, {"shop/p": spec({}, ingress=[]), "pay/p": spec({}, egress=[])})
    attempt_itself(mode, served, both(("shop/web", 80), ("pay/card", 81)))


def test_a_node_port_shows_the_client(served: World) -> None:
    from_client = spec({}, ingress=[rule_from(*blocks("192.0.2.10/32", "2001:db8:1::10/128"))])
    show(served, {"shop/p": from_client, "pay/p": from_client})
    allowed = [*at_node(NODE_PORT, "out", "node"), *at_node(LOCAL_NODE_PORT, "out")]
    refused = [*at_node(NODE_PORT, "out2", "peer", "shop/web-far"), *at_node(LOCAL_NODE_PORT, "out2", "peer")]
    attempt(served, allowed, refused)


def test_a_node_port_is_not_the_node(served: World) -> None:
    """What goes to the node's own address is judged by the pod that it reaches."""
    nodes = blocks(f"{NODE_IP4[0]}/32", f"{NODE_IP6[0]}/128")
    show(served, {"shop/p": spec(API, egress=[rule_to(*nodes)])})
    attempt(served, at_node(80, "shop/api"), at_node(NODE_PORT, "shop/api"))
