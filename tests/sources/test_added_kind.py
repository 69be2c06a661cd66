"""A kind that exists in this test only: one row, and it is listed, watched, read from files and checked."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from kproxy.config.model import ProxyConfig
from kproxy.inspect.preflight.cluster import access_findings, access_reviews
from kproxy.modes.findings import Level
from kproxy.sources.kubernetes import ClusterAccess
from kproxy.sources.list_once import list_once
from kproxy.sources.manifests import ManifestSource, load_manifests
from kproxy.state.decode import decode
from kproxy.state.kinds import KINDS, Kind, Loss
from kproxy.state.problems import Problem, show
from kproxy.state.store import ObjectStore
from kproxy.state.wire import NamespacedMeta, NamespacedObject
from kproxy_lab.apiserver import ApiServer, Fault
from kproxy_lab.apiserver.resources import RESOURCES, Resource, ResourceTable
from tests.sources.conftest import MakeSource
from tests.sources.objects import service, write
from tests.sources.recording import Running


class Gadget(NamespacedObject, frozen=True):
    """example.org/v1 Gadget."""

    metadata: NamespacedMeta
    size: int = 0


def _defects(gadget: Gadget) -> tuple[Problem, ...]:
    return (
        (Problem(f"Gadget {gadget.key}", "size", show(gadget.size), "too large"),) if gadget.size > 9 else ()
    )


GADGET = Kind(
    name="Gadget",
    api_version="example.org/v1",
    plural="gadgets",
    wire=Gadget,
    label_selector="!hidden",
    loss=Loss("gadgets do nothing", instead="set --gadgets"),
    relevant=lambda gadget: gadget.size >= 0,
    defects=_defects,
)
ADDED = (*KINDS, GADGET)
REQUIRED = tuple(kind for kind in KINDS if kind.required)


def gadget(name: str, size: int = 1, **labels: str) -> dict[str, Any]:
    meta = {"name": name, "namespace": "default", "labels": labels}
    return {"apiVersion": "example.org/v1", "kind": "Gadget", "metadata": meta, "size": size}


@pytest.fixture
def api() -> Iterator[ApiServer]:
    row = Resource("example.org", "v1", "gadgets", "Gadget")
    with ApiServer(resources=ResourceTable((*RESOURCES, row))) as server:
        yield server


def test_it_is_listed_and_watched_once_it_is_wanted(api: ApiServer, make_source: MakeSource) -> None:
    for each in (gadget("a"), gadget("b", hidden="")):
        api.apply(each)
    source = make_source(api, kinds=ADDED)
    with Running(source, ADDED) as sink:
        sink.wait_listed(*REQUIRED)
        assert api.requests.matching(resource="gadgets") == []
        assert [each.kind for each in source.status()] == list(REQUIRED)
        source.watch([GADGET])
        sink.wait_listed(GADGET)
        assert sink.objects[GADGET] == {"default/a": Gadget(NamespacedMeta("a"), 1)}
        assert [each.kind for each in source.status()] == [*REQUIRED, GADGET]
        api.apply(gadget("a", 2))
        sink.wait(lambda: sink.objects[GADGET] == {"default/a": Gadget(NamespacedMeta("a"), 2)})
        api.delete("Gadget", "default", "a")
        sink.wait(lambda: not sink.objects[GADGET])
    paths = {each.path for each in api.requests.matching(resource="gadgets")}
    assert paths == {"/apis/example.org/v1/gadgets"}


def test_where_it_is_refused_its_loss_is_logged_once_and_all_else_works(
    api: ApiServer, make_source: MakeSource
) -> None:
    refused = api.faults.add(Fault.status(403, resource="gadgets", times=3))
    api.apply(gadget("a"))
    source = make_source(api, kinds=ADDED, unavailable_retry_seconds=0.05)
    source.watch([GADGET])
    with capture_logs() as logs, Running(source, ADDED) as sink:
        sink.wait_listed(*REQUIRED, GADGET)
        assert api.faults.wait(refused, hits=3)
        sink.wait(lambda: sink.keys(GADGET) == {"default/a"})
    told = [each for each in logs if each["event"] == "kind_unavailable"]
    assert [(each["kind"], each["effect"]) for each in told] == [
        ("Gadget", "gadgets do nothing; to avoid it, set --gadgets")
    ]


def test_it_is_listed_once_for_a_preview_and_left_out_where_it_is_refused(
    api: ApiServer, tmp_path: Path
) -> None:
    api.apply(gadget("a", 10))
    access = ClusterAccess(kubeconfig=api.kubeconfig(tmp_path / "kubeconfig"))
    found = list_once(access, "n1", kinds=ADDED)
    assert [obj.key for obj in found.objects[GADGET]] == ["default/a"]
    assert [problem.field for problem in found.problems] == ["size"]
    with api.faults.during(Fault.status(403, resource="gadgets", times=None)):
        assert list_once(access, "n1", kinds=ADDED).objects[GADGET] == ()


def test_it_is_read_from_manifests_alone_and_in_lists(tmp_path: Path) -> None:
    of_kind = {"apiVersion": "example.org/v1", "kind": "GadgetList", "items": [gadget("b", 10)]}
    write(tmp_path / "a.yaml", gadget("a"), of_kind, service("x"))
    loaded = load_manifests(tmp_path, kinds=ADDED)
    assert [obj.key for obj in loaded.objects[GADGET]] == ["default/a", "default/b"]
    assert [(problem.object, problem.field) for problem in loaded.problems] == [("Gadget default/b", "size")]
    with Running(ManifestSource(tmp_path, None, kinds=ADDED), ADDED) as sink:
        sink.wait_listed(*ADDED)
        assert sink.keys(GADGET) == {"default/a", "default/b"}
        assert sink.keys(Kind.SERVICE) == {"default/x"}


def test_it_is_kept_and_a_change_of_it_marks_no_service() -> None:
    def made(name: str, size: int) -> Gadget:
        obj = decode(GADGET, b'{"metadata":{"name":"%s"},"size":%d}' % (name.encode(), size))
        assert isinstance(obj, Gadget)
        return obj

    store = ObjectStore([GADGET], ADDED)
    assert store.missing == {GADGET}
    store.replace(GADGET, [made("a", 1), made("b", -1)], [])
    assert store.ready
    assert store.objects(GADGET) == {"default/a": made("a", 1)}
    assert store.changed_services() == []
    store.upsert(GADGET, made("a", 1))
    assert not store.changed
    store.upsert(GADGET, made("a", 10))
    assert (store.changed, store.changed_services()) == (True, [])
    assert [problem.field for problem in store.rejected()] == ["size"]
    store.upsert(GADGET, made("a", -1))
    assert (store.changed, store.objects(GADGET), store.rejected()) == (True, {}, [])


def test_check_asks_for_it_and_names_its_loss() -> None:
    config = ProxyConfig(node_name="n1")
    asked = [each for each in access_reviews(config, ADDED) if each.resource == "gadgets"]
    assert [str(each) for each in asked] == ["list gadgets.example.org", "watch gadgets.example.org"]
    found = list(access_findings({asked[0]: True, asked[1]: False}, ADDED))
    assert [(each.level, each.found) for each in found] == [
        (Level.WARNING, "may not watch gadgets.example.org: gadgets do nothing")
    ]
    assert "set --gadgets" in str(found[0])
