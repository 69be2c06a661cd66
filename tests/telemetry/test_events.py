"""Events as the API server gets them: complete, at their service, few, and never in anybody's way."""

import queue
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from kproxy.sources.api_client import ObjectApi
from kproxy.sources.cluster import ClusterAccess, ClusterAccessError
from kproxy.sources.errors import ApiError
from kproxy.sources.transport import Transport
from kproxy.telemetry import events as module
from kproxy.telemetry import series
from kproxy.telemetry.events import (
    BURST,
    REFILL_SECONDS,
    REMEMBERED_SECONDS,
    UPDATE_SECONDS,
    EventRecorder,
    Notice,
    Reason,
)
from kproxy.telemetry.metrics import Metrics
from kproxy_lab.apiserver import ApiServer

NOTICE = Notice(Reason.QUARANTINED, "default/web", "IPv4: iptables-restore: line 4 failed")


class World:
    def __init__(self, api: ApiServer, kubeconfig: Path) -> None:
        self.api = api
        self.now = 0.0
        self.metrics = Metrics()
        transport = Transport(ClusterAccess(kubeconfig=kubeconfig))
        self.recorder = EventRecorder(
            ObjectApi(transport), "node-a", self.metrics, (ApiError, ClusterAccessError), lambda: self.now
        )

    def events(self) -> list[dict[str, object]]:
        return list(self.api.list("Event.events.k8s.io"))

    def outcomes(self) -> dict[str, float]:
        return {s.labels[0]: s.value for s in self.metrics.samples() if s.series is series.EVENTS}  # type: ignore[misc]


def service(name: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"ports": [{"port": 80}]},
    }


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with ApiServer() as api:
        api.apply(service("web"))
        yield World(api, api.kubeconfig(tmp_path / "kubeconfig"))


def test_an_event_is_complete_and_stands_at_its_service(world: World) -> None:
    stored = world.api.get("Service", "default", "web")
    assert stored is not None
    world.recorder.send(NOTICE)
    (event,) = world.events()
    assert event["regarding"] == {
        "apiVersion": "v1",
        "kind": "Service",
        "namespace": "default",
        "name": "web",
        "uid": stored["metadata"]["uid"],
    }
    told = {key: event[key] for key in ("type", "reason", "action", "note", "reportingController")}
    assert told == {
        "type": "Warning",
        "reason": "ServiceQuarantined",
        "action": "ProgramService",
        "note": "node node-a: IPv4: iptables-restore: line 4 failed",
        "reportingController": "kproxy.io/kproxy",
    }
    assert event["reportingInstance"] == "kproxy-node-a"
    assert world.outcomes() == {"sent": 1}


@pytest.mark.parametrize("reason", [Reason.POLICY_REJECTED, Reason.POLICY_QUARANTINED])
def test_what_concerns_a_policy_stands_at_it(world: World, reason: Reason) -> None:
    metadata = {"name": "web", "namespace": "default"}
    kind = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy"}
    stored = world.api.apply({**kind, "metadata": metadata, "spec": {"podSelector": {}}})
    world.recorder.send(Notice(reason, "default/web", "spec.ingress[0]: must not be"))
    (event,) = world.events()
    assert event["regarding"] == {**kind, **metadata, "uid": stored["metadata"]["uid"]}
    assert (event["reason"], event["action"]) == (reason.value, "EnforceNetworkPolicy")


def test_what_concerns_the_node_stands_where_kubectl_describe_node_looks(world: World) -> None:
    world.recorder.send(Notice(Reason.MODE, "", "mode ipvs: the kernel has no IPVS; iptables stays"))
    (event,) = world.events()
    assert event["regarding"] == {"apiVersion": "v1", "kind": "Node", "name": "node-a", "uid": "node-a"}
    assert event["metadata"]["namespace"] == "default"  # type: ignore[index]
    assert (event["reason"], event["action"]) == ("ProxyModeRefused", "ChangeProxyMode")
    assert event["note"] == "node node-a: mode ipvs: the kernel has no IPVS; iptables stays"


def test_what_is_said_again_is_counted_in_the_first_event(world: World) -> None:
    for _ in range(3):
        world.recorder.send(NOTICE)
    (event,) = world.events()
    assert "series" not in event
    world.now += UPDATE_SECONDS
    world.recorder.send(NOTICE)
    (event,) = world.events()
    assert event["series"]["count"] == 4  # type: ignore[index]
    world.now += REMEMBERED_SECONDS + 1
    world.recorder.send(NOTICE)
    assert len(world.events()) == 2


def test_a_flood_becomes_a_handful(world: World) -> None:
    notices = [Notice(Reason.CONFLICT, "default/web", f"port {n}") for n in range(BURST + 10)]
    for notice in notices:
        world.recorder.send(notice)
    assert len(world.events()) == BURST
    assert world.outcomes() == {"sent": BURST, "dropped": 10}
    world.now += REFILL_SECONDS
    world.recorder.send(notices[-1])
    assert len(world.events()) == BURST + 1


class FakeApi:
    """An API server that takes everything."""

    def __init__(self) -> None:
        self.notes: queue.Queue[str] = queue.Queue()

    def uid(self, path: str) -> str:
        return path

    def create(self, path: str, body: Mapping[str, Any]) -> None:
        self.notes.put(body["note"])

    def patch(self, path: str, body: Mapping[str, Any]) -> None:
        raise AssertionError("no Event is sent twice here")


def test_notices_are_sent_from_their_own_thread_until_the_stop() -> None:
    api, stop = FakeApi(), threading.Event()
    recorder = EventRecorder(api, "node-a", Metrics(), ())
    recorder.notify(NOTICE)
    thread = threading.Thread(target=recorder.run, args=(stop,))
    thread.start()
    assert api.notes.get(timeout=20) == f"node node-a: {NOTICE.note}"
    recorder.wake()
    recorder.notify(Notice(Reason.MODE, "", "second"))
    assert api.notes.get(timeout=20) == "node node-a: second"
    stop.set()
    recorder.notify(Notice(Reason.MODE, "", "third"))
    thread.join(20)
    assert not thread.is_alive()
    assert api.notes.empty()


def test_notices_that_are_not_sent_in_time_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_QUEUED", 2)
    metrics = Metrics()
    recorder = EventRecorder(FakeApi(), "node-a", metrics, ())
    for _ in range(5):
        recorder.notify(NOTICE)
    recorder.wake()
    assert [s.value for s in metrics.samples() if s.series is series.EVENTS] == [3]


def test_events_are_remembered_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REMEMBERED", 2)
    api = FakeApi()
    recorder = EventRecorder(api, "node-a", Metrics(), ())
    for note in ("a", "b", "b", "c", "b", "a"):
        recorder.send(Notice(Reason.MODE, "", note))
    assert [api.notes.get_nowait()[-1] for _ in range(api.notes.qsize())] == ["a", "b", "c", "a"]


def test_a_failure_is_counted_and_the_next_notice_is_sent(world: World) -> None:
    world.recorder.send(Notice(Reason.CONFLICT, "default/gone", "already belongs to another"))
    assert world.outcomes() == {"failed": 1}
    world.recorder.send(NOTICE)
    assert len(world.events()) == 1


def test_a_long_note_is_cut_to_what_the_api_takes(world: World) -> None:
    world.recorder.send(Notice(Reason.CONFLICT, "default/web", "é" * 1000))
    (event,) = world.events()
    note = event["note"]
    assert isinstance(note, str)
    assert len(note.encode()) <= 1024
    assert note.endswith("é...")
