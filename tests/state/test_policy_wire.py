"""What is kept of Pods, Namespaces and NetworkPolicies, and in how much memory."""

import tracemalloc
from typing import Any

import msgspec
import pytest

from kproxy.state.decode import decode
from kproxy.state.kinds import Kind
from kproxy.state.policy_wire import Container, ContainerPort, Pod
from kproxy.state.problems import ObjectRejected
from tests.state.policy_objects import namespace, pod, pod_json, policy


def read(metadata: dict[str, Any], **parts: Any) -> Pod:
    found = decode(Kind.POD, msgspec.json.encode({"metadata": {"name": "a"} | metadata, **parts}))
    assert isinstance(found, Pod)
    return found


def test_a_pod_has_what_policies_ask_for() -> None:
    containers = [
        {"ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}, {"containerPort": 53}]}
    ]
    init = [{"restartPolicy": "Always", "ports": [{"containerPort": 9}]}]
    plain = pod_json("a", "10.1.0.1", containers=containers)
    plain["spec"]["initContainers"] = init
    plain["status"]["podIPs"] = [{"ip": "10.1.0.1"}, {"ip": "fd00::1"}]
    plain["metadata"] |= {
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "deletionTimestamp": "2026-01-02T00:00:00Z",
    }
    found = decode(Kind.POD, msgspec.json.encode(plain))
    assert isinstance(found, Pod)
    assert (found.key, found.node, found.metadata.uid) == ("shop/a", "n1", "uid-a")
    assert found.addresses == ("10.1.0.1", "fd00::1")
    assert found.metadata.labels == {"app": "web"}
    assert (found.metadata.creation_timestamp, found.metadata.deletion_timestamp) == (
        "2026-01-01T00:00:00Z",
        "2026-01-02T00:00:00Z",
    )
    assert found.spec is not None
    assert found.spec.containers == (
        Container((ContainerPort(8080, "http", "TCP"), ContainerPort(53, None, None))),
    )
    assert found.spec.init_containers == (Container((ContainerPort(9),), "Always"),)


def test_what_is_null_or_missing_is_empty() -> None:
    bare = read({"namespace": "x"})
    assert (bare.node, bare.addresses, bare.host_network, bare.finished) == (None, (), False, False)
    assert bare.metadata.labels == {}
    null = {"labels": None, "namespace": "x"}
    assert read(null, spec=None, status={"podIPs": None, "podIP": None, "phase": None}).metadata.labels == {}
    assert read({}, status={"podIP": "10.0.0.1"}).addresses == ("10.0.0.1",)
    assert read({}).key == "default/a"
    assert namespace().metadata.labels == {}


@pytest.mark.parametrize(
    "spec", [{"podSelector": 5}, "text", 7, [], None, {"ingress": [{"from": {"a": {}}}]}]
)
def test_a_policy_reaches_planning_whatever_its_spec_is(spec: object) -> None:
    found = policy("deny", spec)
    assert found.key == "shop/deny"
    assert (msgspec.json.decode(found.spec) if bytes(found.spec) else None) == spec


def test_a_policy_keeps_its_own_spec_and_not_the_answer_it_came_in() -> None:
    raw = msgspec.json.encode(
        {"metadata": {"name": "deny", "annotations": {"a": "x" * 10_000}}, "spec": {"a": 1}}
    )
    tracemalloc.start()
    try:
        kept = [decode(Kind.NETWORK_POLICY, bytes(bytearray(raw))) for _ in range(50)]
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(kept) == 50
    assert used < 50 * 2_000


def test_a_malformed_pod_is_rejected_by_name() -> None:
    with pytest.raises(ObjectRejected) as caught:
        read({"labels": {"app": 5}})
    assert (caught.value.key, caught.value.problem.field) == ("default/a", "metadata.labels[...]")


def test_pods_of_one_workload_share_what_they_have_in_common() -> None:
    one, two = (pod(name, labels={"app": "web", "tier": "x"}) for name in "ab")
    assert one.metadata.labels is two.metadata.labels
    assert one.spec is not None
    assert two.spec is not None
    assert one.spec.containers is two.spec.containers
    assert one.spec.node_name is two.spec.node_name
    assert one.metadata.labels is not pod("c", labels={"app": "web"}).metadata.labels


def test_long_lists_of_a_tenant_are_not_kept_by_the_caches() -> None:
    ports = [{"containerPort": number} for number in range(1, 100)]
    labels = {f"label-{number}": "x" for number in range(100)}
    one, two = (pod(name, labels=labels, containers=[{"ports": ports}]) for name in "ab")
    assert one.metadata.labels == two.metadata.labels == labels
    assert one.metadata.labels is not two.metadata.labels
    assert one.spec is not None
    assert two.spec is not None
    assert one.spec.containers == two.spec.containers
    assert one.spec.containers is not two.spec.containers


def test_a_pod_costs_little_memory() -> None:
    """Each pod of 1,000 workloads with labels of its own, as those of a StatefulSet: at most 1.5 kB each."""

    def made(number: int) -> Pod:
        labels = {
            "app": f"app-{number % 1000}",
            "app.kubernetes.io/part-of": f"system-{number % 50}",
            "statefulset.kubernetes.io/pod-name": f"app-{number}",
        }
        uid = f"00000000-0000-0000-0000-{number:012d}"
        plain = pod_json(
            f"app-{number}-5d4f8c7b9-x2x4z",
            f"10.{number >> 8}.{number & 255}.7",
            uid=uid,
            labels=labels,
            node=f"node-{number % 100}",
            namespace=f"team-{number % 40}",
        )
        plain["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
        found = decode(Kind.POD, msgspec.json.encode(plain))
        assert isinstance(found, Pod)
        return found

    kept = {each.key: each for each in map(made, range(100))}
    tracemalloc.start()
    try:
        more = {each.key: each for each in map(made, range(100, 2_100))}
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(kept | more) == 2_100
    assert used / 2_000 < 1_500
