"""Watches: order, selectors, bookmarks, streamed lists, expiry, slow readers, restarts."""

import socket
from collections.abc import Iterator

import pytest

from kproxy_lab.apiserver import ApiServer
from tests.lab.apiserver_client import (
    ALL_SERVICES,
    ALL_SLICES,
    CUT,
    SERVICES,
    call,
    endpoint_slice,
    get,
    service,
    watch,
)

STREAMED = {
    "sendInitialEvents": "true",
    "resourceVersionMatch": "NotOlderThan",
    "allowWatchBookmarks": "true",
}
END = {"k8s.io/initial-events-end": "true"}


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with ApiServer() as api:
        yield api


def test_events_from_a_listed_revision_on(api: ApiServer) -> None:
    api.apply(service("old"))
    revision = get(api, ALL_SERVICES).body["metadata"]["resourceVersion"]
    api.apply(service("web"))
    with watch(api, ALL_SERVICES, resourceVersion=revision) as stream:
        api.apply(service("web", selector={"a": "b"}))
        api.delete("Service", "default", "web")
        api.apply(endpoint_slice("not-asked-for", "10.0.0.1"))
        api.apply(service("last"))
        kinds, objects = zip(*(stream.event() for _ in range(4)), strict=True)
    assert kinds == ("ADDED", "MODIFIED", "DELETED", "ADDED")
    versions = [int(obj["metadata"]["resourceVersion"]) for obj in objects]
    assert versions == sorted(set(versions))
    assert objects[2]["spec"]["selector"] == {"a": "b"}, "DELETED carries the last state"
    assert (objects[0]["kind"], objects[0]["apiVersion"]) == ("Service", "v1")


@pytest.mark.parametrize("query", [{}, {"resourceVersion": "0"}])
def test_watches_without_a_revision_begin_with_what_there_is(api: ApiServer, query: dict[str, str]) -> None:
    api.apply_many([service("b"), service("a")])
    with watch(api, SERVICES, **query) as stream:
        api.apply(service("c"))
        assert stream.events(3) == [("ADDED", "a"), ("ADDED", "b"), ("ADDED", "c")]


def test_a_watch_is_closed_to_other_namespaces(api: ApiServer) -> None:
    with watch(api, SERVICES, resourceVersion=api.revision) as stream:
        api.apply(service("a", namespace="other"))
        api.apply(service("b"))
        assert stream.events(1) == [("ADDED", "b")]


def test_label_transitions(api: ApiServer) -> None:
    with watch(api, ALL_SERVICES, resourceVersion=api.revision, labelSelector="app=web,!hidden") as stream:
        for labels in (
            {},
            {"app": "web"},
            {"app": "web", "x": "1"},
            {"app": "web", "hidden": ""},
            {"app": "web"},
        ):
            api.apply(service("web", labels=dict(labels)))
        api.apply(service("other"))
        api.delete("Service", "default", "other")
        api.delete("Service", "default", "web")
        events = [stream.event() for _ in range(5)]
    assert [kind for kind, _ in events] == ["ADDED", "MODIFIED", "DELETED", "ADDED", "DELETED"]
    assert events[2][1]["metadata"]["labels"] == {"app": "web", "x": "1"}
    assert int(events[2][1]["metadata"]["resourceVersion"]) > int(events[1][1]["metadata"]["resourceVersion"])


def test_field_transitions(api: ApiServer) -> None:
    with watch(api, ALL_SERVICES, resourceVersion=api.revision, fieldSelector="spec.type=NodePort") as stream:
        api.apply(service("web"))
        api.apply(service("web", type="NodePort"))
        api.apply(service("web"))
        assert stream.events(2) == [("ADDED", "web"), ("DELETED", "web")]


def test_one_object_can_be_watched(api: ApiServer) -> None:
    with watch(api, f"{SERVICES}/web", resourceVersion=api.revision) as stream:
        api.apply_many([service("other"), service("web")])
        assert stream.events(1) == [("ADDED", "web")]


def test_streamed_lists_end_with_an_annotated_bookmark(api: ApiServer) -> None:
    api.apply_many(service(f"s{n}") for n in range(3))
    with watch(api, ALL_SERVICES, **STREAMED) as stream:
        assert stream.events(3) == [("ADDED", f"s{n}") for n in range(3)]
        kind, obj = stream.event()
        assert (kind, obj["kind"], obj["apiVersion"]) == ("BOOKMARK", "Service", "v1")
        assert obj["metadata"]["annotations"] == END
        assert obj["metadata"]["resourceVersion"] == str(api.revision)
        api.apply(service("s3"))
        assert stream.events(1) == [("ADDED", "s3")]


def test_an_empty_streamed_list_still_ends(api: ApiServer) -> None:
    with watch(api, ALL_SLICES, **STREAMED) as stream:
        kind, obj = stream.event()
    assert (kind, obj["endpoints"], obj["metadata"]["annotations"]) == ("BOOKMARK", None, END)


def test_a_server_without_streamed_lists_says_so() -> None:
    with ApiServer(watch_list=False) as api:
        refused = get(api, ALL_SERVICES, watch="1", **STREAMED)
        assert (refused.code, refused.body["reason"]) == (422, "Invalid")
        assert refused.body["details"]["causes"][0]["field"] == "sendInitialEvents"


def test_options_that_exclude_each_other(api: ApiServer) -> None:
    for query in ({"sendInitialEvents": "true"}, {"resourceVersionMatch": "NotOlderThan"}):
        assert get(api, ALL_SERVICES, watch="1", **query).code == 422
    assert get(api, ALL_SERVICES, watch="1", resourceVersion=api.revision + 1).code == 504


def test_bookmarks_move_on_with_the_revision() -> None:
    with (
        ApiServer(bookmark_interval=0.05) as api,
        watch(api, ALL_SERVICES, resourceVersion=api.revision, allowWatchBookmarks="true") as stream,
    ):
        api.apply(endpoint_slice("elsewhere", "10.0.0.1"))
        seen = 0
        while seen < api.revision:
            kind, obj = stream.event()
            assert (kind, obj["metadata"].get("annotations")) == ("BOOKMARK", None)
            seen = int(obj["metadata"]["resourceVersion"])


def test_a_watch_ends_after_its_time_with_a_bookmark(api: ApiServer) -> None:
    with watch(
        api, ALL_SERVICES, resourceVersion=api.revision, timeoutSeconds=1, allowWatchBookmarks="true"
    ) as stream:
        assert stream.event()[0] == "BOOKMARK"
        assert stream.line() == b""
    assert api.wait_watchers(0)


def test_an_expired_revision_is_an_error_event(api: ApiServer) -> None:
    revision = api.revision
    api.apply(service("a"))
    api.compact()
    with watch(api, ALL_SERVICES, resourceVersion=revision) as stream:
        kind, status = stream.event()
        assert stream.line() == b""
    assert (kind, status["kind"], status["code"], status["reason"]) == ("ERROR", "Status", 410, "Expired")
    with watch(api, ALL_SERVICES, resourceVersion=api.revision) as stream:
        api.apply(service("b"))
        assert stream.events(1) == [("ADDED", "b")]


def test_running_watches_survive_compaction(api: ApiServer) -> None:
    with watch(api, ALL_SERVICES, resourceVersion=api.revision) as stream:
        assert api.wait_watchers(1, "services")
        api.apply(service("a"))
        assert stream.events(1) == [("ADDED", "a")]
        api.compact()
        api.apply(service("b"))
        assert stream.events(1) == [("ADDED", "b")]


def test_a_reader_that_falls_too_far_behind_is_cut_off() -> None:
    with ApiServer(history=200, watch_buffer=100) as api:
        link = socket.create_connection(("127.0.0.1", api.port))
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        link.sendall(
            f"GET {ALL_SERVICES}?watch=1&resourceVersion={api.revision} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        )
        assert api.wait_watchers(1)
        big = {"note": "x" * 100_000}
        for _ in range(400):
            api.apply({**service("web"), "metadata": {"name": "web", "annotations": big}})
        assert api.wait_watchers(0)
        link.close()


def test_many_watchers_get_every_event_in_order(api: ApiServer) -> None:
    start = api.revision
    with watch(api, ALL_SERVICES, resourceVersion=start) as one, watch(api, ALL_SERVICES, **STREAMED) as two:
        assert two.event()[0] == "BOOKMARK"
        api.apply_many(service(f"s{n:04}") for n in range(2000))
        expected = [("ADDED", f"s{n:04}") for n in range(2000)]
        assert one.events(2000) == expected
        assert two.events(2000) == expected


def test_watching_through_a_restart(api: ApiServer) -> None:
    with watch(api, ALL_SERVICES, resourceVersion=api.revision) as stream:
        revision, port = api.revision, api.port
        api.restart(while_down=lambda: api.apply(service("meanwhile")))
        with pytest.raises(CUT):
            stream.event()
    assert (api.port, api.wait_watchers(0)) == (port, True)
    with watch(api, ALL_SERVICES, resourceVersion=revision) as stream:
        assert stream.events(1) == [("ADDED", "meanwhile")]
    api.restart(keep_history=False)
    with watch(api, ALL_SERVICES, resourceVersion=revision) as stream:
        assert stream.event()[1]["code"] == 410


def test_writes_over_http_wake_watches_too(api: ApiServer) -> None:
    with watch(api, ALL_SERVICES, resourceVersion=api.revision) as stream:
        call(api, "POST", SERVICES, service("web"))
        call(api, "DELETE", f"{SERVICES}/web")
        assert stream.events(2) == [("ADDED", "web"), ("DELETED", "web")]
