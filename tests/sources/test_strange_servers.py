"""Servers that are older, confused, or lie: what is not a complete list or a proper event changes nothing."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from kproxy.sources.kubernetes import ClusterAccess, KubernetesSource
from kproxy.state.kinds import Kind
from tests.sources.conftest import FAST
from tests.sources.objects import service
from tests.sources.recording import Running, wait_for_status
from tests.sources.scripted import Answering, ScriptedServer, bookmark, page


def at(obj: dict[str, Any], version: int) -> dict[str, Any]:
    return {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(version)}}


def source_for(server: ScriptedServer, **config: Any) -> KubernetesSource:
    """A refusal by the other kinds' quiet resources is not remembered, so the script alone decides."""
    config.setdefault("streamed_list_retry_seconds", 0.0)
    return KubernetesSource(ClusterAccess(master=server.url), None, replace(FAST, **config))


def lists_of(server: ScriptedServer) -> int:
    """How many lists were begun, looks at the current version aside."""
    return sum(not each.watch and each.query.get("limit") != "1" for each in server.requests)


@pytest.mark.parametrize("tell", ["silence", "an ordinary bookmark", "changes without end"])
def test_a_server_that_ignores_the_streamed_lists_parameters_is_asked_for_pages(tell: str) -> None:
    def script(ask: Answering) -> None:
        if ask.streamed_list:
            ask.begin()
            ask.event("ADDED", at(service("a"), 5))
            if tell == "an ordinary bookmark":
                ask.event("BOOKMARK", bookmark(6))
            while tell == "changes without end" and not ask.released.wait(0.01):
                ask.event("MODIFIED", at(service("a"), 7))
            ask.hold()
        elif ask.watch:
            ask.begin()
            ask.hold()
        else:
            ask.reply(page("Service", [at(service("a"), 5), at(service("b"), 6)], 8))

    seconds = 0.2 if tell == "changes without end" else 100.0
    idle = 0.2 if tell == "silence" else 100.0
    with ScriptedServer(script) as server:
        source = source_for(server, streamed_list_idle_seconds=idle, streamed_list_seconds=seconds)
        with Running(source) as sink:
            sink.wait_listed(Kind.SERVICE)
            assert sink.history[-1][0] == "replace"
            assert sink.keys(Kind.SERVICE) == {"default/a", "default/b"}


@pytest.mark.parametrize(
    "answer",
    [
        {},
        [],
        {"kind": "ServiceList", "metadata": {"resourceVersion": "5"}},
        {"kind": "ServiceList", "metadata": {}, "items": []},
        {"kind": "ServiceList", "metadata": {"resourceVersion": ""}, "items": []},
        {"kind": "Status", "metadata": {"resourceVersion": "5"}, "items": []},
        {"kind": "PodList", "metadata": {"resourceVersion": "5"}, "items": []},
        {"kind": "ServiceList", "metadata": {"resourceVersion": "5"}, "items": {}},
        b"<html>please log in</html>",
        b"",
        b"[" * 100_000,
    ],
)
def test_an_answer_that_is_no_list_is_never_taken_for_an_empty_one(answer: object) -> None:
    def script(ask: Answering) -> None:
        if ask.streamed_list:
            ask.reply({"code": 404}, 404)
        elif ask.watch:
            ask.begin()
            if lists_of(server) == 1:
                ask.event("ERROR", {"code": 410, "kind": "Status"})
                ask.end()
                return
            ask.hold()
        elif lists_of(server) not in (2, 3):
            ask.reply(page("Service", [at(service("a"), 5)], 8))
        else:
            ask.reply(answer)

    with ScriptedServer(script) as server, Running(source_for(server)) as sink:
        sink.wait_listed(Kind.SERVICE, times=2)
        assert sink.keys(Kind.SERVICE) == {"default/a"}
        assert not sink.vanished
        assert ("replace", Kind.SERVICE, "0") not in sink.history


def test_an_items_null_is_an_empty_list_as_go_writes_it() -> None:
    def script(ask: Answering) -> None:
        if ask.watch:
            ask.reply({"code": 405}, 405)
        else:
            ask.reply({**page("Service", [], 3), "items": None})

    with ScriptedServer(script) as server, Running(source_for(server)) as sink:
        sink.wait_listed(Kind.SERVICE)
        assert not sink.keys(Kind.SERVICE)


def test_a_watch_that_goes_back_in_time_is_listed_again() -> None:
    def script(ask: Answering) -> None:
        lists = lists_of(server)
        if ask.streamed_list:
            ask.reply({"code": 400}, 400)
        elif not ask.watch:
            name, version = ("a", 100) if lists == 1 else ("b", 7)
            ask.reply(page("Service", [at(service(name), version)], version))
        else:
            ask.begin()
            if lists == 1:
                ask.event("BOOKMARK", bookmark(6))
            ask.hold()

    with ScriptedServer(script) as server, Running(source_for(server)) as sink:
        sink.wait(lambda: sink.keys(Kind.SERVICE) == {"default/b"})
        assert sink.deletes() == []


def test_a_server_whose_versions_have_no_order_is_believed_in_the_end() -> None:
    def script(ask: Answering) -> None:
        if ask.streamed_list:
            ask.reply({"code": 400}, 400)
        elif not ask.watch:
            ask.reply(page("Service", [at(service("a"), 2)], 100))
        else:
            ask.begin()
            ask.event("ADDED", at(service("a"), 2))
            ask.event("ADDED", at(service("b"), 1))
            ask.hold()

    with ScriptedServer(script) as server, Running(source_for(server)) as sink:
        sink.wait(lambda: sink.keys(Kind.SERVICE) == {"default/a", "default/b"})
        assert lists_of(server) == 2
        assert sink.deletes() == []


def test_a_server_that_stays_silent_behind_our_version_is_listed_again() -> None:
    """A restored server accepts a watch from a version it has not reached, and says nothing."""

    def script(ask: Answering) -> None:
        lists = lists_of(server)
        if ask.streamed_list:
            ask.reply({"code": 400}, 400)
        elif not ask.watch:
            name = "a" if lists == 1 else "b"
            ask.reply(page("Service", [at(service(name), 100)], 100))
        else:
            ask.begin()
            ask.hold()

    with ScriptedServer(script) as server, Running(source_for(server, inactivity_seconds=0.2)) as sink:
        sink.wait(lambda: sink.keys(Kind.SERVICE) == {"default/b"})
        assert sink.deletes() == []


def test_events_that_cannot_be_decoded_are_reported_and_deletes_among_them_obeyed() -> None:
    broken = {
        "metadata": {"name": "a", "namespace": "default", "resourceVersion": "9", "labels": 5},
        "spec": [],
    }

    def script(ask: Answering) -> None:
        if ask.streamed_list:
            ask.reply({"code": 400}, 400)
        elif not ask.watch:
            ask.reply(page("Service", [at(service("a"), 5), at(service("b"), 5)], 5))
        else:
            ask.begin()
            if ask.query["resourceVersion"] == "5":
                ask.event("MODIFIED", {"metadata": {"name": "b", "namespace": "default", "labels": 5}})
                ask.event("ADDED", {"metadata": 7})
                ask.event("DELETED", broken)
                ask.event("MODIFIED", at(service("c"), 10))
            ask.hold()

    with ScriptedServer(script) as server, Running(source_for(server)) as sink:
        sink.wait(lambda: sink.keys(Kind.SERVICE) == {"default/b", "default/c"})
        assert sink.lists[Kind.SERVICE] == 1
        assert [(kind, key) for kind, key, _ in sink.problems] == [
            (Kind.SERVICE, "default/b"),
            (Kind.SERVICE, None),
        ]


@pytest.mark.parametrize(
    "line",
    [
        b"<html>oops</html>\n",
        b'{"type":"MODIFIED"}\n',
        b'{"type":"FUNNY","object":{"metadata":{}}}\n',
        b'{"type":"DELETED","object":{"metadata":{}}}\n',
        b'{"type":"MODIFIED","object":{"metadata":{"name":"a","resourceVersion":"6"},"spec"',
        b'{"type":"ERROR","object":5}\n',
        b'{"type":"ERROR","object":{"code":500,"message":"etcd\\nis away"}}\n',
        b"[" * 100_000 + b"\n",
        b"x" * 5000,
    ],
)
def test_a_line_that_is_no_event_changes_nothing_and_the_watch_goes_on(line: bytes) -> None:
    def script(ask: Answering) -> None:
        watches = sum(each.watch and not each.streamed_list for each in server.requests)
        if ask.streamed_list:
            ask.reply({"code": 400}, 400)
        elif not ask.watch:
            ask.reply(page("Service", [at(service("a"), 5)], 5))
        else:
            ask.begin()
            if watches == 1:
                ask.send(line)
                ask.end()
                return
            assert ask.query["resourceVersion"] == "5"
            ask.event("ADDED", at(service("b"), 6))
            ask.hold()

    with ScriptedServer(script) as server, Running(source_for(server, event_bytes=4000)) as sink:
        sink.wait(lambda: sink.keys(Kind.SERVICE) == {"default/a", "default/b"})
        assert not sink.vanished


def test_a_stream_that_is_garbled_from_the_same_place_each_time_is_listed_again() -> None:
    def script(ask: Answering) -> None:
        lists = lists_of(server)
        if ask.streamed_list:
            ask.reply({"code": 400}, 400)
        elif not ask.watch:
            ask.reply(page("Service", [at(service("a" if lists == 1 else "b"), 5)], 5))
        else:
            ask.begin()
            if lists == 1:
                ask.send(b"nonsense\n")
                ask.end()
            else:
                ask.hold()

    with ScriptedServer(script) as server, Running(source_for(server)) as sink:
        sink.wait(lambda: sink.keys(Kind.SERVICE) == {"default/b"})


def test_changes_during_a_streamed_list_are_part_of_it() -> None:
    def script(ask: Answering) -> None:
        assert ask.streamed_list
        ask.begin()
        for name in "abc":
            ask.event("ADDED", at(service(name), 5))
        ask.event("DELETED", at(service("b"), 6))
        ask.event("MODIFIED", at(service("a", port=99), 7))
        ask.event("BOOKMARK", bookmark(8, end="true"))
        ask.event("DELETED", at(service("c"), 9))
        ask.hold()

    with ScriptedServer(script) as server, Running(source_for(server)) as sink:
        sink.wait(lambda: sink.keys(Kind.SERVICE) == {"default/a"})
        services = [each for each in sink.history if each[1] is Kind.SERVICE]
        assert services == [("replace", Kind.SERVICE, "2"), ("delete", Kind.SERVICE, "default/c")]
        ports = (sink.service("default/a").spec or pytest.fail("no spec")).ports or ()
        assert [each.port for each in ports] == [99]


def test_a_streamed_list_that_ends_before_its_bookmark_is_no_list() -> None:
    def script(ask: Answering) -> None:
        ask.begin()
        ask.event("ADDED", at(service("a"), 5))
        if len(server.requests) < 3:
            ask.end()
            return
        ask.event("ADDED", at(service("b"), 6))
        ask.event("BOOKMARK", bookmark(8, end="true"))
        ask.hold()

    with ScriptedServer(script) as server, Running(source_for(server)) as sink:
        sink.wait_listed(Kind.SERVICE)
        services = [each for each in sink.history if each[1] is Kind.SERVICE]
        assert services == [("replace", Kind.SERVICE, "2")]


def _paged_script(refuse: Callable[[Answering], None]) -> Callable[[Answering], None]:
    def script(ask: Answering) -> None:
        if ask.streamed_list:
            refuse(ask)
        elif ask.watch:
            ask.begin()
            ask.hold()
        else:
            ask.reply(page("Service", [at(service("a"), 5)], 8))

    return script


def _at_once(code: int) -> Callable[[Answering], None]:
    return lambda ask: ask.reply({"kind": "Status", "code": code}, code)


def _amid(ask: Answering) -> None:
    ask.begin()
    ask.event("ADDED", at(service("gone"), 5))
    ask.event("ERROR", {"kind": "Status", "code": 500})
    ask.end()


@pytest.mark.parametrize("refuse", [_at_once(500), _at_once(501), _at_once(503), _at_once(403), _amid])
def test_an_error_to_a_streamed_list_is_answered_by_asking_for_pages_at_once(
    refuse: Callable[[Answering], None],
) -> None:
    """As client-go does: no wait, for a wait that long would never end in this test."""
    with ScriptedServer(_paged_script(refuse)) as server:
        source = source_for(server, backoff_seconds=1e6, backoff_max_seconds=1e6)
        with capture_logs() as logs, Running(source) as sink:
            sink.wait_listed(Kind.SERVICE)
            assert sink.keys(Kind.SERVICE) == {"default/a"}
            wait_for_status(source, lambda each: each.kind is Kind.SERVICE and each.connected_since)
        assert [each.streamed_list for each in server.requests] == [True, False, False]
    told = [each["event"] for each in logs if each.get("kind") == "Service"]
    assert told == ["streamed_list_failed", "list_complete"]


@pytest.mark.parametrize(("code", "headers"), [(429, {}), (500, {"Retry-After": "0"}), (502, {})])
def test_where_time_mends_a_streamed_list_it_is_asked_for_again(code: int, headers: dict[str, str]) -> None:
    """Too many requests, a wish to wait, no server behind the load balancer."""

    def script(ask: Answering) -> None:
        if len(server.requests) < 3:
            if code == 502:
                ask.reply(b"bad gateway", code)
            else:
                ask.reply({"kind": "Status", "code": code}, code, headers)
        else:
            ask.begin()
            ask.event("ADDED", at(service("a"), 5))
            ask.event("BOOKMARK", bookmark(6, end="true"))
            ask.hold()

    with ScriptedServer(script) as server, Running(source_for(server)) as sink:
        sink.wait_listed(Kind.SERVICE)
        assert [each.streamed_list for each in server.requests] == [True] * 3
