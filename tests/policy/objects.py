"""The cluster of the policy tests as objects: pods of three namespaces on two nodes, and hosts.

Pods of the node under test are on routed links or on one plain bridge; both must be judged alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from kproxy_lab.lab import LabSpec, Pod
from kproxy_lab.lab.topology import NODE, PEER

JSON = dict[str, Any]
Key = tuple[str, str, str]
"""Kind, namespace ("" for Namespaces) and name."""

SPEC = LabSpec(local_pods=5, routed_pods=4, remote_pods=5, plain_bridge=True, client_addresses=4)
CREATED = "2026-01-01T00:00:00Z"

VERSIONS = {"NetworkPolicy": "networking.k8s.io/v1", "EndpointSlice": "discovery.k8s.io/v1"}


@dataclass(frozen=True, slots=True)
class Place:
    """A pod of the tests: which pod of the lab it is, its labels and its named ports (`name/PROTOCOL`)."""

    at: str
    labels: Mapping[str, str]
    ports: Mapping[str, int]


PLACES: Mapping[str, Place] = {
    "shop/web": Place("routed-0", {"app": "web", "tier": "front"}, {"http/TCP": 80, "dns/UDP": 53}),
    "shop/db": Place("routed-1", {"app": "db", "tier": "back"}, {"http/TCP": 8080, "sql/TCP": 5432}),
    "pay/web": Place("routed-2", {"app": "web", "tier": "front"}, {"http/TCP": 8081}),
    "ops/prom": Place("routed-3", {"app": "prom", "role": "scrape"}, {"http/TCP": 9090}),
    "shop/api": Place("local-0", {"app": "api", "tier": "back"}, {"http/TCP": 8080, "dns/UDP": 8080}),
    "shop/bare": Place("local-1", {}, {}),
    "pay/card": Place("local-2", {"app": "card", "tier": "back"}, {"http/TCP": 80, "http/SCTP": 8080}),
    "pay/api": Place("local-3", {"app": "api", "tier": "back"}, {"http/UDP": 8080}),
    "shop/web-far": Place("remote-0", {"app": "web", "tier": "front"}, {"http/TCP": 8080}),
    "pay/card-far": Place("remote-1", {"app": "card", "tier": "back"}, {"http/TCP": 9090}),
    "ops/prom-far": Place("remote-2", {"app": "prom", "role": "scrape"}, {"http/TCP": 80}),
    "fence/target": Place("local-4", {"fence": "target"}, {}),
    "fence/even": Place("remote-3", {}, {}),
    "fence/odd": Place("remote-4", {}, {}),
}
SPACES: Mapping[str, Mapping[str, str]] = {
    "shop": {"team": "a", "env": "prod"},
    "pay": {"team": "b", "env": "prod"},
    "ops": {"team": "a", "env": "lab"},
    "fence": {},
}


def key_of(obj: JSON) -> Key:
    """The key of an object."""
    namespace = "" if obj["kind"] == "Namespace" else obj["metadata"].get("namespace", "default")
    return obj["kind"], namespace, obj["metadata"]["name"]


def namespace(name: str, labels: Mapping[str, str]) -> JSON:
    """A Namespace as a manifest has it: without the label that the API server adds."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": dict(labels)}}


def pod(
    key: str, at: Pod | None, labels: Mapping[str, str], ports: Mapping[str, int], *, phase: str = "Running",
    created: str = CREATED, deleted: str = "", host_network: bool = False, node: str = "",
) -> JSON:  # fmt: skip
    """A Pod with the addresses of a pod of the lab; None: it has none yet."""
    space, name = key.split("/")
    metadata: JSON = {"name": name, "namespace": space, "labels": dict(labels), "creationTimestamp": created}
    if deleted:
        metadata["deletionTimestamp"] = deleted
    listed = [
        {"name": port.partition("/")[0], "containerPort": number, "protocol": port.partition("/")[2]}
        for port, number in ports.items()
    ]
    status: JSON = {"phase": phase}
    if at is not None:
        status |= {"podIP": at.ip4, "podIPs": [{"ip": at.ip4}, {"ip": at.ip6}]}
    spec: JSON = {
        "nodeName": node or (at.node_name if at is not None else SPEC.node_name),
        "containers": [{"name": "main", "image": "none", **({"ports": listed} if listed else {})}],
    }
    if host_network:
        spec["hostNetwork"] = True
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status}


def policy(key: str, spec: str | JSON) -> JSON:
    """A NetworkPolicy; its spec may be YAML."""
    space, name = key.split("/")
    parsed = yaml.safe_load(spec) if isinstance(spec, str) else spec
    return {
        "apiVersion": VERSIONS["NetworkPolicy"],
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": space},
        "spec": parsed,
    }


def labels_in(**labels: str) -> JSON:
    """A selector of labels; without any, of all."""
    return {"matchLabels": labels} if labels else {}


def pods_with(**labels: str) -> JSON:
    """A peer: pods of the policy's namespace."""
    return {"podSelector": labels_in(**labels)}


def spaces_with(**labels: str) -> JSON:
    """A peer: all pods of some namespaces."""
    return {"namespaceSelector": labels_in(**labels)}


def blocks(*cidrs: str) -> list[JSON]:
    """Peers by address."""
    return [{"ipBlock": {"cidr": cidr}} for cidr in cidrs]


def spec(
    selector: JSON, *, ingress: Sequence[JSON] | None = None, egress: Sequence[JSON] | None = None
) -> JSON:
    """A spec of the directions that are given; each is the list of its rules."""
    directions = {"Ingress": ingress, "Egress": egress}
    made: JSON = {"podSelector": selector}
    made["policyTypes"] = [name for name, rules in directions.items() if rules is not None]
    return made | {name.lower(): list(rules) for name, rules in directions.items() if rules}


def rule_from(*peers: JSON, ports: Sequence[JSON] = ()) -> JSON:
    """A rule of ingress; without peers, of everything."""
    return {"from": list(peers), "ports": list(ports)}


def rule_to(*peers: JSON, ports: Sequence[JSON] = ()) -> JSON:
    """A rule of egress; without peers, to everything."""
    return {"to": list(peers), "ports": list(ports)}


def base(pods: Mapping[str, Pod], hosts: Iterable[Pod]) -> dict[Key, JSON]:
    """Every object of the cluster but policies, by key; `pods` are the lab's by the keys of PLACES."""
    made: list[JSON] = [namespace(name, labels) for name, labels in SPACES.items()]
    made += [pod(key, pods[key], place.labels, place.ports) for key, place in PLACES.items()]
    for at, name in zip(hosts, ("ops/agent", "ops/agent-far"), strict=True):
        made.append(pod(name, at, {"app": "agent"}, {"http/TCP": 80}, host_network=True))
    return by_key(made)


def addresses(pods: Mapping[str, Pod]) -> dict[str, tuple[str, str]]:
    """The addresses of every end that flows may name."""
    clients = list(zip(SPEC.client_ip4, SPEC.client_ip6, strict=True))
    return {key: (each.ip4, each.ip6) for key, each in pods.items()} | {
        "node": (NODE.ip4[0], NODE.ip6[0]),
        "peer": (PEER.ip4[0], PEER.ip6[0]),
        "gateway": NODE.gateways,
        "out": clients[0],
        "out2": clients[1],
    }


def by_key(objects: Iterable[JSON]) -> dict[Key, JSON]:
    """Objects by key; of equal keys the last."""
    return {key_of(obj): obj for obj in objects}
