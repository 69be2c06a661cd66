"""Pods, Namespaces and NetworkPolicies as a real server serves them."""

from collections.abc import Iterator

import pytest

from kproxy_lab.apiserver import ApiServer
from tests.lab.apiserver_client import JSON, call, get, watch
from tests.state.policy_objects import pod_json

POLICIES = "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies"
PODS = "/api/v1/namespaces/shop/pods"
MERGE = "application/merge-patch+json"


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with ApiServer() as api:
        yield api


@pytest.fixture
def api(server: ApiServer) -> ApiServer:
    server.store.reset()
    return server


def policy(**spec: object) -> JSON:
    return {"kind": "NetworkPolicy", "metadata": {"name": "web"}, "spec": spec}


def create(api: ApiServer, **spec: object) -> JSON:
    made = call(api, "POST", POLICIES, policy(**spec))
    assert made.code == 201, made.body
    found: JSON = made.body["spec"]
    return found


@pytest.mark.parametrize(
    ("spec", "types"),
    [
        ({}, ["Ingress"]),
        ({"egress": []}, ["Ingress"]),
        ({"egress": [{}]}, ["Ingress", "Egress"]),
        ({"egress": [{}], "policyTypes": []}, ["Ingress", "Egress"]),
        ({"policyTypes": ["Egress"]}, ["Egress"]),
    ],
)
def test_directions_are_defaulted(api: ApiServer, spec: JSON, types: list[str]) -> None:
    made = create(api, **spec)
    assert (made["policyTypes"], made["podSelector"]) == (types, {})


def test_ports_are_of_tcp_unless_they_say_otherwise(api: ApiServer) -> None:
    made = create(api, ingress=[{"ports": [{"port": 80}, {"port": "dns", "protocol": "UDP"}, {}]}])
    assert made["ingress"] == [
        {"ports": [{"port": 80, "protocol": "TCP"}, {"port": "dns", "protocol": "UDP"}, {"protocol": "TCP"}]}
    ]


BLOCK = {"cidr": "10.0.0.0/8"}


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"policyTypes": ["Both"]}, "spec.policyTypes[0]"),
        ({"ingress": [{"from": [{}]}]}, "spec.ingress[0].from[0]"),
        ({"ingress": [{"from": [{"ipBlock": BLOCK, "podSelector": {}}]}]}, "spec.ingress[0].from[0]"),
        ({"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.1"}}]}]}, "spec.egress[0].to[0].ipBlock.cidr"),
        (
            {"egress": [{"to": [{"ipBlock": BLOCK | {"except": ["10.0.0.0/8"]}}]}]},
            "spec.egress[0].to[0].ipBlock.except[0]",
        ),
        (
            {"egress": [{"to": [{"ipBlock": BLOCK | {"except": ["fd00::/64"]}}]}]},
            "spec.egress[0].to[0].ipBlock.except[0]",
        ),
        ({"ingress": [{"ports": [{"port": 0}]}]}, "spec.ingress[0].ports[0].port"),
        ({"ingress": [{"ports": [{"port": "Not_A_Name"}]}]}, "spec.ingress[0].ports[0].port"),
        ({"ingress": [{"ports": [{"port": 80, "protocol": "ICMP"}]}]}, "spec.ingress[0].ports[0].protocol"),
        ({"ingress": [{"ports": [{"port": 80, "endPort": 79}]}]}, "spec.ingress[0].ports[0].endPort"),
        ({"ingress": [{"ports": [{"endPort": 79}]}]}, "spec.ingress[0].ports[0].endPort"),
        ({"ingress": [{"ports": [{"port": "web", "endPort": 79}]}]}, "spec.ingress[0].ports[0].endPort"),
        (
            {"podSelector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}},
            "spec.podSelector.matchExpressions[0].operator",
        ),
        (
            {"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}},
            "spec.podSelector.matchExpressions[0].values",
        ),
    ],
)
def test_values_that_no_policy_may_have_are_refused_by_field(api: ApiServer, spec: JSON, field: str) -> None:
    refused = call(api, "POST", POLICIES, policy(**spec))
    assert (refused.code, [each["field"] for each in refused.body["details"]["causes"]]) == (422, [field])


@pytest.mark.parametrize(
    "spec", [{"podSelector": 5}, {"ingress": {}}, {"ingress": [{"ports": [{"port": []}]}]}]
)
def test_wrong_types_are_a_bad_request(api: ApiServer, spec: JSON) -> None:
    assert call(api, "POST", POLICIES, policy(**spec)).code == 400


def test_a_policy_is_patched_and_deleted(api: ApiServer) -> None:
    create(api, ingress=[{"ports": [{"port": 80}]}])
    path = f"{POLICIES}/web"
    changed = call(api, "PATCH", path, {"spec": {"ingress": None, "egress": [{}]}}, media=MERGE)
    assert changed.body["metadata"]["generation"] == 2
    assert changed.body["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"], "egress": [{}]}
    assert call(api, "DELETE", path).body["status"] == "Success"
    assert get(api, path).code == 404


def test_pods_are_selected_by_node_network_phase_and_address(api: ApiServer) -> None:
    for made in (
        pod_json("a", "10.0.0.1", node="n1"),
        pod_json("b", "10.0.0.2", node="n2"),
        pod_json("host", "192.0.2.1", node="n1", hostNetwork=True),
        pod_json("done", "10.0.0.3", node="n1", phase="Succeeded"),
    ):
        api.apply(made)
    bare = pod_json("bare", "10.0.0.4")
    del bare["spec"]["hostNetwork"]
    api.apply(bare)

    def found(selector: str) -> list[str]:
        return get(api, PODS, fieldSelector=selector).names

    assert found("spec.hostNetwork=false,status.phase!=Succeeded,status.phase!=Failed") == ["a", "b", "bare"]
    assert found("spec.hostNetwork=true") == ["host"]
    assert found("spec.nodeName=n2") == ["b"]
    assert found("status.podIP=10.0.0.3") == ["done"]


def test_a_pod_that_leaves_a_selection_is_deleted_for_its_watch(api: ApiServer) -> None:
    api.apply(pod_json("a", phase="Running"))
    with watch(api, PODS, fieldSelector="status.phase!=Succeeded", resourceVersion=api.revision) as stream:
        call(api, "PATCH", f"{PODS}/a/status", {"status": {"phase": "Succeeded"}}, media=MERGE)
        assert stream.events(1) == [("DELETED", "a")]


def test_a_pod_begins_pending_and_its_status_is_written_apart(api: ApiServer) -> None:
    made = call(
        api, "POST", PODS, {"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c"}]}, "status": {}}
    )
    assert (made.code, made.body["status"]) == (201, {"phase": "Pending"})
    status = {"status": {"phase": "Running", "podIP": "10.0.0.1"}}
    call(api, "PATCH", f"{PODS}/a/status", status, media=MERGE)
    assert get(api, f"{PODS}/a").body["status"] == {
        "phase": "Running",
        "podIP": "10.0.0.1",
        "podIPs": [{"ip": "10.0.0.1"}],
    }
    call(
        api,
        "PATCH",
        f"{PODS}/a",
        {"status": {"phase": "Failed"}, "metadata": {"labels": {"x": "y"}}},
        media=MERGE,
    )
    found = get(api, f"{PODS}/a").body
    assert (found["status"]["phase"], found["metadata"]["labels"]) == ("Running", {"x": "y"})


def test_a_namespace_that_is_deleted_takes_its_pods_and_policies_along(api: ApiServer) -> None:
    api.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"team": "x"}}}
    )
    labels = get(api, "/api/v1/namespaces/shop").body["metadata"]["labels"]
    assert labels == {"team": "x", "kubernetes.io/metadata.name": "shop"}
    api.apply(pod_json("a"))
    create(api)
    call(api, "DELETE", "/api/v1/namespaces/shop")
    assert get(api, PODS).names == get(api, POLICIES).names == []
