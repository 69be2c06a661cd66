"""Plain objects for tests of planning, and strategies that make clusters of them."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from kproxy.addresses import Family
from kproxy.plan.policy.planner import PolicyPlanner
from kproxy.plan.policy.rules import Policy
from kproxy.plan.policy.spec import read_policy
from kproxy.state.decode import decode
from kproxy.state.kinds import Kind
from kproxy.state.policy_wire import Namespace, NetworkPolicy, Pod

Json = dict[str, Any]
NODE = "node1"
FAMILIES = tuple(Family)


def pod(
    name: str,
    *ips: str,
    namespace: str = "shop",
    labels: Mapping[str, str] | None = None,
    node: str = NODE,
    ports: Iterable[tuple[str, str, int]] = (),
    sidecar_ports: Iterable[tuple[str, str, int]] = (),
    **fields: Any,
) -> Json:
    """`ports`: (name, protocol, number). `fields`: phase, hostNetwork, created, deleted, initContainers."""
    metadata: Json = {"name": name, "namespace": namespace, "labels": dict(labels or {})}
    for field, key in (("created", "creationTimestamp"), ("deleted", "deletionTimestamp")):
        if fields.get(field):
            metadata[key] = fields[field]
    spec: Json = {"nodeName": node, "containers": [_container(ports)]}
    if fields.get("hostNetwork"):
        spec["hostNetwork"] = True
    if sidecar_ports:
        spec["initContainers"] = [_container(sidecar_ports) | {"restartPolicy": "Always"}]
    if "initContainers" in fields:
        spec["initContainers"] = fields["initContainers"]
    status = {"phase": fields.get("phase", "Running"), "podIPs": [{"ip": ip} for ip in ips]}
    return {"metadata": metadata, "spec": spec, "status": status}


def _container(ports: Iterable[tuple[str, str, int]]) -> Json:
    return {"ports": [{"name": n, "protocol": p, "containerPort": number} for n, p, number in ports]}


def namespace(name: str, labels: Mapping[str, str] | None = None) -> Json:
    return {"metadata": {"name": name, "labels": dict(labels or {})}}


def policy(name: str, namespace: str = "shop", **spec: Any) -> Json:
    return {"metadata": {"name": name, "namespace": namespace}, "spec": spec}


def labels(**pairs: str) -> Json:
    """A LabelSelector."""
    return {"matchLabels": pairs}


def key(plain: Json) -> str:
    metadata = plain["metadata"]
    return f"{metadata['namespace']}/{metadata['name']}" if "namespace" in metadata else str(metadata["name"])


def pods_of(plain: Iterable[Json]) -> dict[str, Pod | None]:
    found = [decode(Kind.POD, json.dumps(each).encode()) for each in plain]
    return {each.key: each for each in found if isinstance(each, Pod)}


def namespaces_of(plain: Iterable[Json]) -> dict[str, Namespace | None]:
    found = [decode(Kind.NAMESPACE, json.dumps(each).encode()) for each in plain]
    return {each.key: each for each in found if isinstance(each, Namespace)}


def policies_of(plain: Iterable[Json]) -> dict[str, NetworkPolicy | None]:
    found = [decode(Kind.NETWORK_POLICY, json.dumps(each).encode()) for each in plain]
    return {each.key: each for each in found if isinstance(each, NetworkPolicy)}


def planner(
    pods: Iterable[Json] = (), policies: Iterable[Json] = (), namespaces: Iterable[Json] = ()
) -> PolicyPlanner:
    """A planner of both families that knows these objects."""
    return PolicyPlanner.full(NODE, FAMILIES, pods_of(pods), namespaces_of(namespaces), policies_of(policies))


def read(spec: object) -> Policy:
    """What a policy with this spec says."""
    (found,) = policies_of([{"metadata": {"name": "web", "namespace": "shop"}, "spec": spec}]).values()
    assert isinstance(found, NetworkPolicy)
    return read_policy(found)


def ingress(**rule: Any) -> Json:
    """A spec with one rule."""
    return {"podSelector": {}, "ingress": [rule]}


def source(**peer: Any) -> Json:
    """A spec with one rule that has one peer."""
    return ingress(**{"from": [peer]})


def examples(number: int) -> settings:
    """Settings for so many examples, whose objects may take long to make on a busy machine."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=number, deadline=None, suppress_health_check=slow)


NAMESPACES = ("a", "b", "c")
LABELS = st.dictionaries(st.sampled_from(["x", "y"]), st.sampled_from(["1", "2"]), max_size=2)
PROTOCOLS = ("TCP", "UDP", "SCTP")
NUMBERS = (80, 81, 443)
NAMES = ("web", "dns")
ADDRESSES = [(f"10.0.0.{n}", f"fd00::{n}") for n in range(1, 10)]
OUTSIDE = [("10.0.0.200", "fd00::200"), ("192.0.2.1", "2001:db8::1")]

EXPRESSIONS = st.one_of(
    st.fixed_dictionaries(
        {
            "key": st.sampled_from(["x", "y", "kubernetes.io/metadata.name"]),
            "operator": st.sampled_from(["In", "NotIn"]),
            "values": st.lists(st.sampled_from(["1", "2", "a", "b"]), min_size=1, max_size=2),
        }
    ),
    st.fixed_dictionaries(
        {"key": st.sampled_from(["x", "y"]), "operator": st.sampled_from(["Exists", "DoesNotExist"])}
    ),
)
SELECTORS = st.one_of(
    st.just({}),
    LABELS.map(lambda found: {"matchLabels": found}),
    st.builds(lambda found: {"matchExpressions": [found]}, EXPRESSIONS),
    st.builds(lambda a, b: {"matchLabels": a, "matchExpressions": [b]}, LABELS, EXPRESSIONS),
    st.sampled_from(NAMESPACES).map(lambda name: labels(**{"kubernetes.io/metadata.name": name})),
)
BLOCKS = st.sampled_from(
    [
        {"cidr": "0.0.0.0/0"},
        {"cidr": "::/0"},
        {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/29", "192.0.2.1/32"]},
        {"cidr": "10.0.0.77/24", "except": ["10.0.0.4/30"]},
        {"cidr": "10.0.0.4/31"},
        {"cidr": "0.0.0.0/1"},
        {"cidr": "128.0.0.0/1"},
        {"cidr": "fd00::/64", "except": ["fd00::2/127"]},
        {"cidr": "2001:db8::/32"},
        {"cidr": "fd00::3/128"},
    ]
)
PEERS = st.one_of(
    SELECTORS.map(lambda found: {"podSelector": found}),
    SELECTORS.map(lambda found: {"namespaceSelector": found}),
    st.builds(lambda a, b: {"podSelector": a, "namespaceSelector": b}, SELECTORS, SELECTORS),
    BLOCKS.map(lambda found: {"ipBlock": found}),
)
PORTS = st.one_of(
    st.builds(lambda number: {"port": number}, st.sampled_from(NUMBERS)),
    st.builds(
        lambda p, number: {"protocol": p, "port": number},
        st.sampled_from(PROTOCOLS),
        st.sampled_from(NUMBERS),
    ),
    st.builds(lambda p, n: {"protocol": p, "port": n}, st.sampled_from(PROTOCOLS), st.sampled_from(NAMES)),
    st.builds(lambda p: {"protocol": p}, st.sampled_from(PROTOCOLS)),
    st.just({"port": 80, "endPort": 100}),
    st.just({"protocol": "TCP", "port": 81, "endPort": 81}),
)
_LISTS: st.SearchStrategy[list[Json] | None] = st.sampled_from([None, []])


def _rules(peers: str) -> st.SearchStrategy[list[Json]]:
    rule = st.fixed_dictionaries(
        {},
        optional={
            peers: st.one_of(_LISTS, st.lists(PEERS, min_size=1, max_size=3)),
            "ports": st.one_of(_LISTS, st.lists(PORTS, min_size=1, max_size=3)),
        },
    )
    return st.lists(rule, max_size=2)


SPECS = st.fixed_dictionaries(
    {"podSelector": SELECTORS},
    optional={
        "ingress": _rules("from"),
        "egress": _rules("to"),
        "policyTypes": st.sampled_from([[], ["Ingress"], ["Egress"], ["Ingress", "Egress"]]),
    },
)
CONTAINER_PORTS = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(PROTOCOLS), st.sampled_from(NUMBERS)), max_size=2
)


def pod_strategy(
    name: str, ips: st.SearchStrategy[tuple[str, ...]], **fields: Any
) -> st.SearchStrategy[Json]:
    """A pod of that name in any of NAMESPACES."""
    return st.builds(
        pod,
        st.just(name),
        namespace=st.sampled_from(NAMESPACES),
        labels=LABELS,
        node=st.sampled_from([NODE, NODE, "node2"]),
        ports=CONTAINER_PORTS,
        sidecar_ports=CONTAINER_PORTS,
        phase=st.sampled_from(["Running"] * 6 + ["Pending", "Succeeded"]),
        hostNetwork=st.sampled_from([False] * 6 + [True]),
        **fields,
    ).flatmap(lambda plain: ips.map(lambda found: _at(plain, found)))


def _at(plain: Json, ips: tuple[str, ...]) -> Json:
    return plain | {"status": plain["status"] | {"podIPs": [{"ip": ip} for ip in ips]}}
