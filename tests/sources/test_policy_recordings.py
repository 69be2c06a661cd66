"""Recordings of Pods, Namespaces and NetworkPolicies: only used fields, equal after a replay, anonymous."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kproxy.sources.anonymous import anonymize
from kproxy.sources.recording import FORMAT, Header, Recorder, Recording, read_recording, write_recording
from kproxy.sources.replay import load_replay
from kproxy.state.decode import decode
from kproxy.state.kinds import POLICY_KINDS, Kind
from kproxy.state.policy_wire import NetworkPolicy, Pod
from kproxy.state.store import ObjectStore
from tests.state.policy_objects import namespace, pod, policy

SPEC = {
    "podSelector": {"matchLabels": {"app": "checkout", "acme.example/team": "falcon"}},
    "policyTypes": ["Ingress", "Egress"],
    "ingress": [
        {
            "ports": [{"port": "pay", "protocol": "TCP"}, {"port": 8080, "endPort": 8090}],
            "from": [
                {
                    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}},
                    "podSelector": {
                        "matchExpressions": [
                            {"key": "app", "operator": "NotIn", "values": ["billing", "checkout"]},
                            {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["shop"]},
                        ]
                    },
                }
            ],
        }
    ],
    "egress": [{"to": [{"ipBlock": {"cidr": "10.1.0.0/16", "except": ["10.1.4.0/24"]}}]}],
}
SECRETS = (
    *(
        "checkout",
        "falcon",
        "acme",
        "team",
        "billing",
        "shop",
        "pay",
        "guard",
        "worker-big",
        "uid-cart",
        "cart",
    ),
    *("10.1.4.5", "10.1.4.0"),
)


def recorded(*policies: NetworkPolicy) -> Recording:
    recorder = Recorder()
    containers = [{"name": "secret-sidecar", "ports": [{"name": "pay", "containerPort": 8080}]}]
    labels = {"app": "checkout", "acme.example/team": "falcon"}
    made = pod("cart-x2", "10.1.4.5", labels=labels, node="worker-big", containers=containers, uid="uid-cart")
    recorder.replace(Kind.POD, [made], ["shop/cart-y"])
    recorder.replace(Kind.NAMESPACE, [namespace("shop", **{"kubernetes.io/metadata.name": "shop"})], ())
    recorder.replace(Kind.NETWORK_POLICY, policies, ())
    recorder.upsert(Kind.POD, pod("cart-y", "10.1.4.6"))
    recorder.delete(Kind.POD, "shop/cart-y")
    return Recording(Header(FORMAT, "worker-big"), tuple(recorder.entries))


def in_force(recording: Recording) -> dict[Kind, Any]:
    store = ObjectStore(())
    recording.play(store)
    return {kind: store.objects(kind) for kind in POLICY_KINDS}


def test_a_replay_has_the_same_objects_and_the_file_no_field_that_is_not_used(tmp_path: Path) -> None:
    recording = recorded(policy("guard", SPEC), policy("bare"))
    write_recording(tmp_path / "a.rec", recording)
    assert in_force(read_recording(tmp_path / "a.rec")) == in_force(recording)
    loaded = load_replay(tmp_path / "a.rec")
    assert [each.key for each in loaded.objects[Kind.NETWORK_POLICY]] == ["shop/bare", "shop/guard"]
    text = (tmp_path / "a.rec").read_text()
    assert [each for each in ("volumes", "annotations", "secret-sidecar", "conditions") if each in text] == []


def test_a_spec_that_was_written_on_many_lines_is_one_entry(tmp_path: Path) -> None:
    written = json.dumps({"metadata": {"name": "guard", "namespace": "shop"}, "spec": SPEC}, indent=4)
    made = decode(Kind.NETWORK_POLICY, written.encode())
    assert made == policy("guard", SPEC)
    assert isinstance(made, NetworkPolicy)
    write_recording(tmp_path / "a.rec", recorded(made))
    assert in_force(read_recording(tmp_path / "a.rec"))[Kind.NETWORK_POLICY] == {"shop/guard": made}


def test_an_anonymized_file_names_nothing_and_its_selectors_fit_its_labels(tmp_path: Path) -> None:
    write_recording(tmp_path / "a.rec", anonymize(recorded(policy("guard", SPEC))))
    text = (tmp_path / "a.rec").read_text()
    assert [each for each in SECRETS if each in text] == []
    found = in_force(read_recording(tmp_path / "a.rec"))
    ((key, hidden),) = found[Kind.POD].items()
    ((name, space),) = found[Kind.NAMESPACE].items()
    (guard,) = found[Kind.NETWORK_POLICY].values()
    assert isinstance(hidden, Pod)
    spec = msgspec.json.decode(guard.spec)
    assert key.startswith(f"{name}/pod-")
    assert guard.key == f"{name}/policy-1"
    assert space.metadata.labels == {"kubernetes.io/metadata.name": name}
    assert spec["podSelector"]["matchLabels"] == hidden.metadata.labels
    (rule,), (peer,) = spec["ingress"], spec["ingress"][0]["from"]
    assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": name}
    of_app, of_name = peer["podSelector"]["matchExpressions"]
    (app,) = (label for label, value in hidden.metadata.labels.items() if label == of_app["key"])
    assert of_app["operator"] == "NotIn"
    assert of_app["values"][1] == hidden.metadata.labels[app]
    assert of_app["values"][0] not in hidden.metadata.labels.values()
    assert of_name["values"] == [name]
    assert hidden.spec is not None
    assert hidden.spec.containers is not None
    assert hidden.spec.containers[0].ports is not None
    assert rule["ports"] == [
        {"port": hidden.spec.containers[0].ports[0].name, "protocol": "TCP"},
        {"port": 8080, "endPort": 8090},
    ]
    assert spec["policyTypes"] == ["Ingress", "Egress"]


@pytest.mark.parametrize(
    "spec", ["text", 5, [], {"podSelector": [1]}, {"ingress": {"from": "all"}}, {"key": {}}]
)
def test_what_planning_cannot_understand_stays_so(spec: object, tmp_path: Path) -> None:
    write_recording(tmp_path / "a.rec", anonymize(recorded(policy("guard", spec))))
    (guard,) = in_force(read_recording(tmp_path / "a.rec"))[Kind.NETWORK_POLICY].values()
    hidden = msgspec.json.decode(guard.spec)
    assert type(hidden) is type(spec)
    assert "text" not in str(hidden)
