"""Random NetworkPolicies for the pods of the lab, as the sources decode them."""

import random
from collections.abc import Sequence
from typing import Any

from kproxy.state.policy_wire import Namespace, NetworkPolicy, Pod
from kproxy_lab.lab.topology import NODE
from tests.peer.objects import OTHER_TARGET, SPEC, TARGET, address
from tests.state import policy_objects as k8s

JSON = dict[str, Any]
PolicyObjects = dict[str, Pod | Namespace | NetworkPolicy]
"""By kind and key."""

PLACES = ("local-0", "local-1", "local-2", "remote-0", "remote-1", "remote-2")
NAMESPACES = {"even": {"side": "a"}, "odd": {"side": "b"}}
BLOCKS = [
    {"cidr": "10.244.0.0/16", "except": ["10.244.1.11/32", "10.244.2.0/24"]},
    {"cidr": "fd00:10:244::/56", "except": ["fd00:10:244:1::11/128"]},
    {"cidr": "192.0.2.0/28"},
    {"cidr": "2001:db8:1::/64"},
    {"cidr": "0.0.0.0/0"},
    {"cidr": f"{NODE.gateways[0]}/32"},
]
PORTS: list[JSON] = [
    {"port": TARGET},
    {"port": OTHER_TARGET, "protocol": "UDP"},
    {"port": TARGET, "endPort": OTHER_TARGET, "protocol": "UDP"},
    {"protocol": "SCTP"},
    {"port": "web"},
]


def objects(*policies: NetworkPolicy) -> PolicyObjects:
    """The pods and namespaces of the lab, and policies."""
    found: PolicyObjects = {
        f"namespace {name}": k8s.namespace(name, **labels) for name, labels in NAMESPACES.items()
    }
    for number, place in enumerate(PLACES):
        pod = k8s.pod(
            place,
            address(place, 4),
            namespace="odd" if number % 2 else "even",
            labels={"app": f"a{number % 3}", "place": place},
            node=SPEC.node_name if place.startswith("local") else SPEC.peer_name,
            ip6=address(place, 6),
            containers=[{"name": "c", "ports": [{"name": "web", "containerPort": TARGET}]}],
        )
        found[f"pod {pod.key}"] = pod
    return found | {f"policy {each.key}": each for each in policies}


def some(rng: random.Random) -> PolicyObjects:
    """A few policies of all kinds, and the objects that they are about."""
    return objects(*(_policy(rng, f"p{number}") for number in range(rng.choice([0, 2, 3]))))


def _policy(rng: random.Random, name: str) -> NetworkPolicy:
    spec: JSON = {"podSelector": _selector(rng)}
    if rng.random() < 0.7:
        spec["policyTypes"] = rng.choice([["Ingress"], ["Egress"], ["Ingress", "Egress"]])
    if rng.random() < 0.8:
        spec["ingress"] = [_rule(rng, "from") for _ in range(rng.choice([1, 1, 2, 20]))]
    if rng.random() < 0.8:
        spec["egress"] = [_rule(rng, "to") for _ in range(rng.choice([1, 1, 2, 20]))]
    return k8s.policy(name, spec, namespace=rng.choice(list(NAMESPACES)))


def _rule(rng: random.Random, side: str) -> JSON:
    rule: JSON = {}
    if rng.random() < 0.8:
        rule[side] = [_peer(rng) for _ in range(rng.choice([1, 2]))]
    if rng.random() < 0.6:
        rule["ports"] = rng.sample(PORTS, rng.choice([1, 2]))
    return rule


def _peer(rng: random.Random) -> JSON:
    peers: Sequence[JSON] = (
        {"podSelector": _selector(rng)},
        {"namespaceSelector": {}},
        {"namespaceSelector": {"matchLabels": {"side": "a"}}, "podSelector": _selector(rng)},
        {"ipBlock": rng.choice(BLOCKS)},
        {"ipBlock": rng.choice(BLOCKS)},
    )
    return rng.choice(peers)


def _selector(rng: random.Random) -> JSON:
    return rng.choice(
        [
            {},
            {"matchLabels": {"app": rng.choice(["a0", "a1", "a2"])}},
            {"matchExpressions": [{"key": "place", "operator": "NotIn", "values": ["local-0", "remote-1"]}]},
        ]
    )
