"""The store: what wakes the loop, when all is listed, and what counts as waiting."""

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import structlog.testing

from kproxy.state import store as module
from kproxy.state.decode import decode
from kproxy.state.kinds import KINDS, Kind
from kproxy.state.problems import Problem
from kproxy.state.store import ObjectStore
from kproxy.state.wire import WireObject


def service(name: str, port: int = 80) -> WireObject:
    raw = b'{"metadata":{"name":"%s","namespace":"n"},"spec":{"clusterIP":"10.0.0.1","ports":[{"port":%d}]}}'
    return decode(Kind.SERVICE, raw % (name.encode(), port))


def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let the store read the last of these moments, in seconds."""
    moments = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: moments[-1], time=time.time))
    return moments


def waiting(store: ObjectStore) -> bool:
    return store.pending_since is not None


def test_nothing_is_ready_before_every_first_list() -> None:
    store = ObjectStore(frozenset(KINDS))
    for kind in (Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.SERVICE_CIDR):
        store.replace(kind, [], [])
        assert not store.ready
    store.upsert(Kind.SERVICE, service("a"))
    assert not store.ready
    store.replace(Kind.NODE, [], [])
    assert store.ready


def test_only_real_changes_count() -> None:
    store = ObjectStore([Kind.SERVICE])
    store.replace(Kind.SERVICE, [service("a")], [])
    assert [given.key for given in store.take()] == ["n/a"]
    assert not store.changed
    store.upsert(Kind.SERVICE, service("a"))
    store.delete(Kind.SERVICE, "n/unknown")
    assert [given.key for given in store.take()] == ["n/a"]
    store.commit(store.take())
    store.upsert(Kind.SERVICE, service("a", 81))
    assert [given.key for given in store.take()] == ["n/a"]


def test_what_is_not_committed_comes_again() -> None:
    store = ObjectStore([Kind.SERVICE])
    store.replace(Kind.SERVICE, [service("a"), service("b")], [])
    assert waiting(store)
    taken = store.take()
    store.commit(given for given in taken if given.key == "n/a")
    assert [given.key for given in store.take()] == ["n/b"]
    assert waiting(store)
    store.commit(store.take())
    assert not waiting(store)
    assert store.take() == []
    assert [given.key for given in store.take(everything=True)] == ["n/a", "n/b"]


def test_under_constant_change_only_what_came_after_the_last_sync_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = clock(monkeypatch)
    store = ObjectStore([Kind.SERVICE])
    store.replace(Kind.SERVICE, [service("a")], [])
    taken = store.take()
    for moment in range(1, 100):
        now.append(float(moment))
        store.upsert(Kind.SERVICE, service("a", moment))
        assert store.unsynced_since == store.pending_since == moment - 1
        store.commit(taken)
        assert store.unsynced_since == store.pending_since == moment
        taken = store.take()


def test_what_was_refused_is_pending_but_waits_for_no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    now = clock(monkeypatch)
    store = ObjectStore([Kind.SERVICE])
    store.replace(Kind.SERVICE, [service("a"), service("b")], [])
    store.commit(given for given in store.take() if given.key == "n/a")
    assert (store.unsynced_since, store.pending_since) == (None, 0.0)
    now.append(5.0)
    store.upsert(Kind.SERVICE, service("a", 81))
    assert (store.unsynced_since, store.pending_since) == (5.0, 0.0)
    store.commit(given for given in store.take() if given.key == "n/a")
    assert (store.unsynced_since, store.pending_since) == (None, 0.0)
    store.commit(store.take())
    assert (store.unsynced_since, store.pending_since) == (None, None)


def test_a_sync_that_was_not_finished_leaves_its_changes_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = clock(monkeypatch)
    store = ObjectStore([Kind.SERVICE])
    store.replace(Kind.SERVICE, [service("a")], [])
    store.take()
    now.append(5.0)
    store.upsert(Kind.SERVICE, service("b"))
    store.take()
    assert store.unsynced_since == store.pending_since == 0.0


def test_no_sync_is_late_before_the_first_lists_are_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    now = clock(monkeypatch)
    store = ObjectStore([Kind.SERVICE, Kind.NODE])
    assert (store.waiting_since, store.pending_since) == (0.0, 0.0)
    store.replace(Kind.SERVICE, [service("a")], [])
    now.append(500.0)
    assert (store.unsynced_since, store.waiting_since, store.pending_since) == (None, 0.0, 0.0)
    assert store.missing_lists == [Kind.NODE]
    store.replace(Kind.NODE, [], [])
    assert (store.unsynced_since, store.waiting_since, store.pending_since) == (500.0, 500.0, 0.0)
    store.commit(store.take())
    assert (store.unsynced_since, store.waiting_since, store.pending_since) == (None, None, None)


def test_what_is_planned_again_waits_until_it_is_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    """No object changed, but the node or the settings did."""
    now = clock(monkeypatch)
    store = ObjectStore([Kind.SERVICE])
    store.replace(Kind.SERVICE, [service("a")], [])
    store.commit(store.take())
    now.append(5.0)
    again = store.take(everything=True)
    assert (store.unsynced_since, store.pending_since) == (5.0, 5.0)
    now.append(6.0)
    store.commit(given for given in again if given.key != "n/a")
    assert (store.unsynced_since, store.pending_since) == (None, 5.0)
    store.commit(store.take())
    assert store.pending_since is None


def test_a_service_that_is_refused_as_it_is_repaired_is_pending(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was applied before, and no object changed since."""
    now = clock(monkeypatch)
    store = ObjectStore([Kind.SERVICE])
    store.replace(Kind.SERVICE, [service("a")], [])
    store.commit(store.take())
    now.append(7.0)
    store.commit(store.take(), refused=True)
    now.append(8.0)
    store.commit(store.take(), refused=True)
    assert (store.unsynced_since, store.pending_since) == (None, 7.0)
    store.commit(store.take())
    assert store.pending_since is None


def test_a_sync_that_fails_without_a_change_leaves_something_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = clock(monkeypatch)
    store = ObjectStore([Kind.SERVICE])
    store.replace(Kind.SERVICE, [], [])
    store.commit(store.take())
    now.append(9.0)
    store.not_applied()
    now.append(10.0)
    store.not_applied()
    assert (store.waiting_since, store.pending_since) == (9.0, 9.0)
    store.commit(store.take())
    assert store.pending_since is None


def test_a_change_ends_a_wait() -> None:
    store = ObjectStore([Kind.SERVICE])
    woken = threading.Event()

    def wait() -> None:
        store.wait(30)
        woken.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    store.upsert(Kind.SERVICE, service("a"))
    assert woken.wait(20)
    thread.join()


def test_a_rejected_object_is_told_once_per_defect() -> None:
    store = ObjectStore([Kind.SERVICE])
    first = Problem("Service n/a", "spec.ports", '"x"', "not a list")
    second = Problem("Service n/a", "spec.type", "7", "not a text")
    with structlog.testing.capture_logs() as logs:
        for problem in (first, first, second):
            store.reject(Kind.SERVICE, "n/a", problem)
    assert store.rejected() == [second]
    assert [(entry["field"], entry["object"]) for entry in logs] == [
        ("spec.ports", "Service n/a"),
        ("spec.type", "Service n/a"),
    ]


def halved(store: ObjectStore) -> float | None:
    return store.incomplete_since


def test_a_service_that_is_half_here_is_told_since_when_until_it_is_whole_or_taken() -> None:
    store = ObjectStore([])
    for kind in (Kind.SERVICE, Kind.ENDPOINT_SLICE):
        store.replace(kind, [], [])
    assert halved(store) is None
    store.upsert(Kind.SERVICE, service("a"))
    since = halved(store)
    assert since is not None
    store.upsert(Kind.SERVICE, service("b"))
    store.delete(Kind.SERVICE, "n/a")
    assert halved(store) == since
    store.take()
    assert halved(store) is None
    store.upsert(Kind.SERVICE, service("c"))
    assert halved(store) is not None
    store.delete(Kind.SERVICE, "n/c")
    assert halved(store) is None


def ranges(name: str, *cidrs: str) -> WireObject:
    return decode(
        Kind.SERVICE_CIDR, msgspec.json.encode({"metadata": {"name": name}, "spec": {"cidrs": cidrs}})
    )


def test_a_cidr_that_is_none_costs_itself_and_is_named_once_until_it_is_gone() -> None:
    store = ObjectStore([])
    problem = Problem("ServiceCIDR a", "spec.cidrs[1]", '"10.97.0.0"', "not a CIDR")
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            store.replace(Kind.SERVICE_CIDR, [ranges("a", "10.96.0.0/16", "10.97.0.0")], [])
        assert store.rejected() == [problem]
        assert store.service_ranges == ("10.96.0.0/16",)
    assert [entry["object"] for entry in logs if entry["event"] == "object_rejected"] == ["ServiceCIDR a"]
    store.delete(Kind.SERVICE_CIDR, "a")
    assert not store.rejected()
    assert not store.service_ranges


def rejections(logs: list[Any]) -> list[tuple[str, str]]:
    return [(each["object"], each["field"]) for each in logs if each["event"] == "object_rejected"]


def test_each_bad_cidr_is_reported_once_whatever_else_of_its_object_is_updated() -> None:
    store = ObjectStore([])
    bad = ("10.96.0.0", "fd00::")
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            store.upsert(Kind.SERVICE_CIDR, ranges("a", *bad))
            store.replace(Kind.SERVICE_CIDR, [ranges("a", *bad)], [])
        assert [problem.field for problem in store.rejected()] == ["spec.cidrs[0]", "spec.cidrs[1]"]
        store.upsert(Kind.SERVICE_CIDR, ranges("a", "10.96.0.0/16", "fd00::"))
        store.upsert(Kind.SERVICE_CIDR, ranges("a", "10.96.0.0/16", "fd00::"))
        assert [problem.field for problem in store.rejected()] == ["spec.cidrs[1]"]
    assert rejections(logs) == [("ServiceCIDR a", f"spec.cidrs[{number}]") for number in (0, 1)]
    with structlog.testing.capture_logs() as logs:
        store.upsert(Kind.SERVICE_CIDR, ranges("a", "10.96.0.0/16"))
        store.upsert(Kind.SERVICE_CIDR, ranges("a", *bad))
    assert [each["event"] for each in logs] == ["object_valid_again", "object_rejected", "object_rejected"]


def test_a_standing_defect_is_not_reported_again_by_an_update() -> None:
    """A source of files gives all defects after each look at them."""
    store = ObjectStore([])
    obj = ranges("a", "10.96.0.0", "fd00::")
    with structlog.testing.capture_logs() as logs:
        for cidrs in (("10.96.0.0", "fd00::"), ("10.96.0.0", "fd00::", "10.97.0.0/16")):
            obj = ranges("a", *cidrs)
            store.upsert(Kind.SERVICE_CIDR, obj)
            store.set_problems(Kind.SERVICE_CIDR.problems_of(obj))
    assert len(rejections(logs)) == 2
    assert len(store.rejected()) == 2


DEFECT = Problem("Service n/a", "spec.ports", '"x"', "not a list")


def relist_without(store: ObjectStore) -> None:
    store.replace(Kind.SERVICE, [], [])


def relist_with(store: ObjectStore) -> None:
    store.replace(Kind.SERVICE, [service("a")], [])


def update(store: ObjectStore) -> None:
    store.upsert(Kind.SERVICE, service("a"))


def delete(store: ObjectStore) -> None:
    store.delete(Kind.SERVICE, "n/a")


@pytest.mark.parametrize(
    ("mend", "event"),
    [
        (relist_without, "rejected_object_deleted"),
        (relist_with, "object_valid_again"),
        (update, "object_valid_again"),
        (delete, "rejected_object_deleted"),
    ],
)
@pytest.mark.parametrize("listed", [True, False])
def test_a_rejected_object_that_is_mended_or_gone_is_told_once_and_forgotten(
    listed: bool, mend: Callable[[ObjectStore], None], event: str
) -> None:
    store = ObjectStore([Kind.SERVICE])
    store.reject(Kind.SERVICE, "n/a", DEFECT)
    if listed:
        store.replace(Kind.SERVICE, [], ["n/a"])
    assert store.rejected() == [DEFECT]
    with structlog.testing.capture_logs() as logs:
        mend(store)
        mend(store)
    assert store.rejected() == []
    assert [(line["event"], line["object"]) for line in logs] == [(event, "Service n/a")]


def test_objects_without_a_name_stay_rejected_until_a_list_has_none() -> None:
    first = Problem("Service ?", "metadata.name", "null", "is missing")
    second = Problem("Service ?", "metadata.name", "7", "is no text")
    store = ObjectStore([Kind.SERVICE])
    for _ in range(2):
        store.reject(Kind.SERVICE, None, first)
        store.reject(Kind.SERVICE, None, second)
        store.replace(Kind.SERVICE, [], [])
        assert store.rejected() == [second, first]
    store.upsert(Kind.SERVICE, service("a"))
    store.reject(Kind.SERVICE, None, first)
    store.replace(Kind.SERVICE, [], [])
    assert store.rejected() == [first]
    store.replace(Kind.SERVICE, [], [])
    assert store.rejected() == []


def test_objects_without_a_name_are_bounded() -> None:
    store = ObjectStore([Kind.SERVICE])
    for number in range(1000):
        store.reject(Kind.SERVICE, None, Problem("Service ?", "metadata.name", str(number), "is no text"))
    assert len(store.rejected()) == 100
