"""Pods, Namespaces and NetworkPolicies from an API server and from files: only while they are enforced."""

import threading
from pathlib import Path
from typing import Any, Self

import msgspec
import pytest
from structlog.testing import capture_logs

from kproxy.config.model import ProxyConfig
from kproxy.modes.kinds import kinds_of_files
from kproxy.sources.kubernetes import ClusterAccess
from kproxy.sources.list_once import list_once
from kproxy.sources.manifests import ManifestSource, load_manifests
from kproxy.state.kinds import KINDS, POLICY_KINDS, Kind
from kproxy.state.policy_wire import NetworkPolicy
from kproxy.state.store import ObjectStore
from kproxy_lab.apiserver import ApiServer, Fault
from tests.sources.conftest import MakeSource
from tests.sources.objects import service, write
from tests.sources.recording import Running
from tests.state.policy_objects import pod_json

SERVICES = tuple(kind for kind in KINDS if kind.required)
LIVE = "status.phase!=Succeeded,status.phase!=Failed"


def policy(name: str, spec: object = None) -> dict[str, Any]:
    head = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy"}
    return {**head, "metadata": {"name": name, "namespace": "shop"}, "spec": spec or {"podSelector": {}}}


def namespace(name: str = "shop") -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


class Following:
    """A store that a source fills, whose state a test can wait for."""

    def __init__(self, source: Any) -> None:
        self.store = ObjectStore(())
        self._source = source
        self._stop = threading.Event()
        self._thread = threading.Thread(target=source.run, args=(self.store, self._stop), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def wait_for(self, keys: set[str], *, complete: bool = True) -> None:
        """Wait until these pods are in force, and the lists are complete or not."""
        for _ in range(100):
            taken = self.store.policy_changes(everything=True)
            if (set(taken.pods), taken.complete) == (keys, complete):
                return
            self.store.policy_wait(1)
        raise AssertionError(f"{taken} instead of {keys}")


def test_they_are_listed_with_selectors_and_watched_until_they_are_not_wanted(
    make_source: MakeSource,
) -> None:
    with ApiServer() as api:
        for each in (namespace(), pod_json("a"), pod_json("h", hostNetwork=True), policy("deny")):
            api.apply(each)
        source = make_source(api)
        with Following(source) as following:
            assert api.requests.wait(resource="services")
            assert [each.kind for each in source.status()] == list(SERVICES)
            source.watch(POLICY_KINDS)
            following.wait_for({"shop/a"})
            api.apply(pod_json("b", "10.1.0.2"))
            following.wait_for({"shop/a", "shop/b"})
            api.apply(pod_json("a", phase="Failed"))
            following.wait_for({"shop/b"})
            watching = threading.active_count()
            source.unwatch(POLICY_KINDS)
            following.wait_for(set(), complete=False)
            assert [each.kind for each in source.status()] == list(SERVICES)
            for thread in threading.enumerate():
                if thread.name.startswith(("watch-pod", "watch-n")) and thread.name != "watch-node":
                    thread.join(30)
            assert threading.active_count() == watching - len(POLICY_KINDS)
            source.watch(POLICY_KINDS)
            following.wait_for({"shop/b"})
        sent = {each.query.get("fieldSelector") for each in api.requests.matching(resource="pods")}
        assert sent == {f"spec.hostNetwork=false,{LIVE}"}


@pytest.mark.parametrize(("refusals", "last"), [(2, LIVE), (3, None)])
def test_a_server_that_does_not_know_a_field_gets_simpler_selectors(
    make_source: MakeSource, refusals: int, last: str | None
) -> None:
    with ApiServer() as api:
        for each in (pod_json("a"), pod_json("h", hostNetwork=True), pod_json("s", phase="Succeeded")):
            api.apply(each)
        # The first refusal is that of a streamed list.
        api.faults.add(Fault.status(400, resource="pods", times=refusals))
        source = make_source(api)
        source.watch(POLICY_KINDS)
        with capture_logs() as logs, Following(source) as following:
            following.wait_for({"shop/a"})
            assert api.requests.wait(resource="pods", verb="watch", status=200)
        sent = [
            each.query.get("fieldSelector") for each in api.requests.matching(resource="pods", status=200)
        ]
        assert set(sent) == {last}
        told = [each["refused"] for each in logs if each["event"] == "selectors_unsupported"]
        assert told == [f"spec.hostNetwork=false,{LIVE}", LIVE][: refusals - 1]


def test_a_preview_gets_simpler_selectors_too(tmp_path: Path) -> None:
    with ApiServer() as api:
        api.apply(pod_json("a"))
        access = ClusterAccess(kubeconfig=api.kubeconfig(tmp_path / "k"))
        api.faults.add(Fault.status(400, resource="pods", times=2))
        found = list_once(access, "n1", kinds=POLICY_KINDS)
        assert [each.key for each in found.objects[Kind.POD]] == ["shop/a"]
        with api.faults.during(Fault.status(403, resource="networkpolicies", times=None)):
            assert set(list_once(access, "n1", kinds=POLICY_KINDS).objects) == {Kind.POD, Kind.NAMESPACE}


@pytest.mark.parametrize("code", [403, 404, 500])
def test_without_a_kind_services_go_on_and_nothing_is_taken_for_empty(
    make_source: MakeSource, code: int
) -> None:
    with ApiServer() as api:
        api.apply(service("web"))
        api.apply(pod_json("a"))
        refused = api.faults.add(Fault.status(code, resource="networkpolicies", times=None))
        source = make_source(api, unavailable_retry_seconds=0.05)
        source.watch(POLICY_KINDS)
        with capture_logs() as logs, Following(source) as following:
            assert api.faults.wait(refused, hits=3)
            following.wait_for({"shop/a"}, complete=False)
            assert not following.store.policy_changes(everything=True).complete
        told = [each["effect"] for each in logs if each["event"] == "kind_unavailable"]
        assert [text.partition(",")[0] for text in told] == (
            [] if code == 500 else ["NetworkPolicies are not enforced"]
        )


def test_a_right_that_is_given_later_counts_soon(make_source: MakeSource) -> None:
    """A starting API server refuses what its RBAC does not know yet; pods may not stay open for minutes."""
    with ApiServer() as api:
        api.apply(pod_json("a"))
        api.faults.add(Fault.status(403, resource="pods", times=4))
        source = make_source(api, backoff_seconds=0.01, unavailable_retry_seconds=3600.0)
        source.watch(POLICY_KINDS)
        with Following(source) as following:
            following.wait_for({"shop/a"})


def test_files_are_read_for_them_only_while_they_are_wanted(tmp_path: Path) -> None:
    broken = pod_json("b")
    broken["metadata"]["labels"] = {"a": 5}
    write(tmp_path / "a.yaml", namespace(), pod_json("a"), broken, policy("deny"), service("web"))
    off, on = (kinds_of_files(ProxyConfig(node_name="n", network_policy=wanted)) for wanted in (False, True))
    source = ManifestSource(tmp_path, "n", kinds=off)
    with Following(source) as following:
        store = following.store
        following.wait_for(set(), complete=False)
        source.read_kinds(on)
        following.wait_for({"shop/a"})
        assert set(store.objects(Kind.NETWORK_POLICY)) == {"shop/deny"}
        assert [each.object for each in store.rejected()] == ["Pod shop/b"]
        write(tmp_path / "c.yaml", pod_json("c"))
        following.wait_for({"shop/a", "shop/c"})
        source.read_kinds(off)
        following.wait_for(set(), complete=False)
        write(tmp_path / "c.yaml", service("other"))
        source.read_kinds(on)
        following.wait_for({"shop/a"})
        for _ in range(100):
            if "default/other" in store.objects(Kind.SERVICE):
                break
            store.wait(1)
        assert set(store.objects(Kind.SERVICE)) == {"default/web", "default/other"}
    assert load_manifests(tmp_path, kinds=off).problems == ()


def test_files_have_them_in_lists_and_without_defaults(tmp_path: Path) -> None:
    listed = {
        "apiVersion": "v1",
        "kind": "PodList",
        "items": [pod_json("a"), pod_json("b", phase="Succeeded")],
    }
    every = {"apiVersion": "v1", "kind": "List", "items": [namespace(), policy("deny")]}
    text = """
apiVersion: v1
kind: Pod
metadata: {name: bare, labels: , creationTimestamp: null}
spec: {containers: [{ports: [{containerPort: 80}]}]}
status: {podIP: 10.0.0.1}
"""
    write(tmp_path / "a.yaml", listed, every)
    (tmp_path / "b.yaml").write_text(text)
    with Running(ManifestSource(tmp_path)) as sink:
        sink.wait_listed(*KINDS)
        assert sink.keys(Kind.POD) == {"shop/a", "shop/b", "default/bare"}
        assert (sink.keys(Kind.NAMESPACE), sink.keys(Kind.NETWORK_POLICY)) == ({"shop"}, {"shop/deny"})
        assert sink.problems == []


@pytest.mark.parametrize(
    "spec",
    ["text", "5", "[]", "{podSelector: 7}", "{ingress: {from: all}}", "{egress: [{ports: [{port: [1]}]}]}",
     "{ingress: [{ports: [{port: 80, endPort: 99999999999999999999999999}]}]}"],
)  # fmt: skip
def test_a_policy_of_a_file_reaches_planning_whatever_its_spec_is(tmp_path: Path, spec: str) -> None:
    head = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: deny, namespace: shop}\n"
    (tmp_path / "a.yaml").write_text(f"{head}spec: {spec}\n")
    loaded = load_manifests(tmp_path)
    assert loaded.problems == ()
    (found,) = loaded.objects[Kind.NETWORK_POLICY]
    assert isinstance(found, NetworkPolicy)
    assert bytes(found.spec) not in {b"", b"{}", b"null"}
    assert msgspec.json.decode(found.spec) is not None
