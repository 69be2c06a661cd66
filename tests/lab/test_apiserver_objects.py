"""Create, read, update, patch and delete over HTTP, and discovery."""

from collections.abc import Iterator

import pytest

from kproxy_lab.apiserver import ApiServer
from tests.lab.apiserver_client import JSON, SERVICES, SLICES, call, endpoint_slice, get, service

NODES = "/api/v1/nodes"


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with ApiServer() as api:
        yield api


@pytest.fixture
def api(server: ApiServer) -> ApiServer:
    server.store.reset()
    server.registry.allocations.release("default/web")
    return server


def test_create_fills_in_what_the_server_owns(api: ApiServer) -> None:
    body = service("web")
    body["metadata"] |= {"uid": "mine", "creationTimestamp": "1999-01-01T00:00:00Z"}
    body["status"] = {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}
    made = call(api, "POST", SERVICES, body)
    assert made.code == 201
    assert made.headers["Content-Type"] == "application/json"
    metadata = made.body["metadata"]
    assert metadata["uid"] != "mine"
    assert not metadata["creationTimestamp"].startswith("1999")
    assert metadata["resourceVersion"] == str(api.revision)
    assert made.body["status"] == {"loadBalancer": {}}
    assert get(api, f"{SERVICES}/web").body == made.body


def test_generated_names(api: ApiServer) -> None:
    body = endpoint_slice("", "10.0.0.1")
    body["metadata"] = {"generateName": "web-"}
    names = {call(api, "POST", SLICES, body).body["metadata"]["name"] for _ in range(3)}
    assert len(names) == 3
    assert all(name.startswith("web-") and len(name) == 9 for name in names)


@pytest.mark.parametrize(
    ("method", "path", "body", "code", "reason"),
    [
        ("POST", SERVICES, service("web"), 409, "AlreadyExists"),
        ("POST", SERVICES, service("Web_1"), 422, "Invalid"),
        ("POST", SERVICES, service("x", namespace="other"), 400, "BadRequest"),
        ("POST", SERVICES, service("x", ports="80"), 400, "BadRequest"),
        ("POST", SERVICES, {"kind": "Pod", "apiVersion": "v1", "metadata": {}}, 400, "BadRequest"),
        ("POST", SERVICES, b"{", 400, "BadRequest"),
        ("POST", SERVICES, b"[]", 400, "BadRequest"),
        ("PUT", f"{SERVICES}/web", service("other"), 400, "BadRequest"),
        ("PUT", f"{SERVICES}/none", service("none"), 404, "NotFound"),
        ("GET", f"{SERVICES}/none", None, 404, "NotFound"),
        ("DELETE", f"{SERVICES}/none", None, 404, "NotFound"),
        ("GET", "/api/v1/widgets", None, 404, "NotFound"),
        ("GET", "/openapi/v3", None, 404, "NotFound"),
        ("POST", f"{SERVICES}/web", service("web"), 405, "MethodNotAllowed"),
        ("PUT", f"{SERVICES}/web", service("web", clusterIP="10.96.9.9"), 422, "Invalid"),
    ],
)
def test_refusals_are_status_objects(
    api: ApiServer, method: str, path: str, body: object, code: int, reason: str
) -> None:
    api.apply(service("web"))
    refused = call(api, method, path, body)
    assert (refused.code, refused.body["code"]) == (code, code)
    assert (refused.body["kind"], refused.body["status"], refused.body["reason"]) == (
        "Status",
        "Failure",
        reason,
    )


def test_protobuf_is_refused_so_that_clients_can_tell(api: ApiServer) -> None:
    refused = call(api, "POST", "/apis/events.k8s.io/v1/namespaces/default/events", b"k8s\x00",
                   media="application/vnd.kubernetes.protobuf")  # fmt: skip
    assert (refused.code, refused.body["reason"]) == (415, "UnsupportedMediaType")
    accept = {"Accept": "application/vnd.kubernetes.protobuf,application/json"}
    assert call(api, "GET", NODES, headers=accept).code == 200
    assert call(api, "GET", NODES, headers={"Accept": "application/vnd.kubernetes.protobuf"}).code == 406


def test_events_are_accepted(api: ApiServer) -> None:
    event = {"metadata": {"name": "e.1", "namespace": "default"}, "reason": "Broken", "type": "Warning"}
    assert call(api, "POST", "/apis/events.k8s.io/v1/namespaces/default/events", event).code == 201
    assert [one["reason"] for one in api.list("Event.events.k8s.io")] == ["Broken"]


def test_update_with_a_stale_version_conflicts(api: ApiServer) -> None:
    call(api, "POST", SERVICES, service("web"))
    first = get(api, f"{SERVICES}/web").body
    changed = call(
        api, "PUT", f"{SERVICES}/web", {**first, "spec": {**first["spec"], "selector": {"a": "b"}}}
    )
    assert changed.code == 200
    stale = call(api, "PUT", f"{SERVICES}/web", first)
    assert (stale.code, stale.body["reason"]) == (409, "Conflict")
    unconditional = service("web", selector={"c": "d"})
    assert call(api, "PUT", f"{SERVICES}/web", unconditional).body["spec"]["selector"] == {"c": "d"}


def test_a_write_that_changes_nothing_keeps_the_version(api: ApiServer) -> None:
    made = call(api, "POST", SERVICES, service("web")).body
    assert call(api, "PUT", f"{SERVICES}/web", made).body == made
    assert api.revision == int(made["metadata"]["resourceVersion"])


def test_status_is_written_through_its_subresource_only(api: ApiServer) -> None:
    made = call(api, "POST", SERVICES, service("web")).body
    status = {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}
    assert call(api, "PUT", f"{SERVICES}/web", {**made, "status": status}).body["status"] == made["status"]
    body = {**made, "status": status, "spec": {"ports": [{"port": 9}]}}
    put = call(api, "PUT", f"{SERVICES}/web/status", body).body
    assert (put["status"], put["spec"]) == (status, made["spec"])
    patched = call(api, "PATCH", f"{SERVICES}/web/status", {"status": {"loadBalancer": None}},
                   media="application/merge-patch+json")  # fmt: skip
    assert "ingress" not in patched.body["status"].get("loadBalancer", {})
    assert call(api, "GET", f"{SLICES}/web/status").code == 404


@pytest.mark.parametrize(
    ("media", "patch"),
    [
        ("application/json-patch+json", [{"op": "replace", "path": "/spec/ports/0/targetPort", "value": 99}]),
        ("application/merge-patch+json", {"spec": {"ports": [{"port": 80, "targetPort": 99}]}}),
        ("application/strategic-merge-patch+json", {"spec": {"ports": [{"port": 80, "targetPort": 99}]}}),
        ("application/apply-patch+yaml", service("web", ports=[{"port": 80, "targetPort": 99}])),
    ],
)
def test_every_kind_of_patch(api: ApiServer, media: str, patch: object) -> None:
    made = call(api, "POST", SERVICES, service("web")).body
    patched = call(api, "PATCH", f"{SERVICES}/web", patch, media=media)
    assert patched.code == 200
    assert patched.body["spec"]["ports"] == [{"port": 80, "protocol": "TCP", "targetPort": 99}]
    assert patched.body["spec"]["clusterIP"] == made["spec"]["clusterIP"]
    assert "managedFields" not in patched.body["metadata"]


def test_patches_that_cannot_be(api: ApiServer) -> None:
    api.apply(service("web"))
    cases: list[tuple[str, object, int]] = [
        ("application/json-patch+json", [{"op": "test", "path": "/kind", "value": "Pod"}], 422),
        ("application/merge-patch+json", {"spec": {"ports": [{"port": 0}]}}, 422),
        ("application/merge-patch+json", {"metadata": {"resourceVersion": "1"}}, 409),
        ("application/merge-patch+json", [], 400),
        ("application/x-patch", {}, 415),
    ]
    for media, patch, code in cases:
        assert call(api, "PATCH", f"{SERVICES}/web", patch, media=media).code == code, (media, patch)


def test_apply_creates_what_is_missing(api: ApiServer) -> None:
    yaml = b"apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n"
    made = call(api, "PATCH", f"{SERVICES}/web", yaml, media="application/apply-patch+yaml")
    assert made.code == 201
    assert made.body["spec"]["clusterIP"].startswith("10.96.")


def test_deletes_answer_as_each_kind_does(api: ApiServer) -> None:
    api.apply_many([service("web"), endpoint_slice("web-1", "10.0.0.1")])
    assert call(api, "DELETE", f"{SERVICES}/web").body["kind"] == "Service"
    gone = call(api, "DELETE", f"{SLICES}/web-1").body
    assert (gone["kind"], gone["status"], gone["details"]["name"]) == ("Status", "Success", "web-1")
    assert get(api, f"{SERVICES}/web").code == 404


def test_delete_preconditions_collections_and_dry_runs(api: ApiServer) -> None:
    api.apply_many([service("a", labels={"x": "1"}), service("b", labels={"x": "1"}), service("c")])
    options = {"preconditions": {"uid": "another"}}
    assert call(api, "DELETE", f"{SERVICES}/a", options).code == 409
    assert call(api, "DELETE", f"{SERVICES}/a", dryRun="All").code == 200
    assert call(api, "DELETE", SERVICES, labelSelector="x=1").names == ["a", "b"]
    assert get(api, SERVICES).names == ["c"]
    assert call(api, "POST", SERVICES, service("d"), dryRun="All").code == 201
    assert get(api, SERVICES).names == ["c"]


def test_finalizers_hold_a_delete_up(api: ApiServer) -> None:
    body = service("web")
    body["metadata"]["finalizers"] = ["example.com/hold"]
    call(api, "POST", SERVICES, body)
    held = call(api, "DELETE", f"{SERVICES}/web").body
    assert held["metadata"]["deletionTimestamp"]
    assert get(api, f"{SERVICES}/web").code == 200
    released = call(api, "PATCH", f"{SERVICES}/web", {"metadata": {"finalizers": None}},
                    media="application/merge-patch+json")  # fmt: skip
    assert released.code == 200
    assert get(api, f"{SERVICES}/web").code == 404


def test_deleting_a_namespace_empties_it(api: ApiServer) -> None:
    api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}})
    api.apply_many([service("a", namespace="team"), service("b")])
    assert call(api, "DELETE", "/api/v1/namespaces/team").code == 200
    assert [one["metadata"]["name"] for one in api.list("Service")] == ["b"]


def test_nodes_register_with_a_status(api: ApiServer) -> None:
    node: JSON = {
        "metadata": {"name": "n1"},
        "status": {"addresses": [{"type": "InternalIP", "address": "1.2.3.4"}]},
    }
    assert call(api, "POST", NODES, node).body["status"] == node["status"]


def test_discovery_and_reviews(api: ApiServer) -> None:
    assert get(api, "/version").body["minor"] == "36"
    assert get(api, "/api").body["versions"] == ["v1"]
    groups = {group["name"] for group in get(api, "/apis").body["groups"]}
    assert {"discovery.k8s.io", "networking.k8s.io", "events.k8s.io", "authorization.k8s.io"} <= groups
    core = {one["name"]: one for one in get(api, "/api/v1").body["resources"]}
    assert core["services"]["shortNames"] == ["svc"]
    assert core["nodes"]["namespaced"] is False
    assert {"services/status", "events", "configmaps", "pods", "namespaces"} <= core.keys()
    assert get(api, "/apis/discovery.k8s.io").body["preferredVersion"]["version"] == "v1"
    assert get(api, "/apis/discovery.k8s.io/v1").body["resources"][0]["kind"] == "EndpointSlice"
    review = call(api, "POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", {"spec": {}})
    assert (review.code, review.body["status"]) == (201, {"allowed": True})
