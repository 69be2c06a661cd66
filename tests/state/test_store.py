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


FAMILIES = ("IPv4", "IPv6")


def waiting(store: ObjectStore) -> bool:
    return store.pending_since is not None


def changed(store: ObjectStore) -> bool:
    return store.changed


def ages(store: ObjectStore) -> tuple[float | None, float | None]:
    return store.unsynced_since, store.pending_since


def take(store: ObjectStore, *, everything: bool = False) -> list[str]:
    """Take what changed, or everything, as the run loop does; the names of the services."""
    if everything:
        inputs = store.take_all(FAMILIES)
    else:
        inputs = store.take([each.key for each in store.changed_services()], FAMILIES)
    return [each.key.removeprefix("n/") for each in inputs]


def done(store: ObjectStore, *refused: str) -> None:
    """End a sync in which every family applied everything but some services."""
    keys = [f"n/{name}" for name in refused]
    store.commit(dict.fromkeys(FAMILIES, keys))


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
    assert take(store) == ["a"]
    assert changed(store) is False
    store.upsert(Kind.SERVICE, service("a"))
    store.delete(Kind.SERVICE, "n/unknown")
    assert take(store) == []
    done(store)
    store.upsert(Kind.SERVICE, service("a", 81))
    assert changed(store)
    assert take(store) == ["a"]


def test_everything_can_be_taken_whether_it_changed_or_not() -> None:
    store = ObjectStore([Kind.SERVICE])
    store.replace(Kind.SERVICE, [service("a"), service("b")], [])
    assert take(store) == ["a", "b"]
    done(store)
    store.upsert(Kind.SERVICE, service("a", 81))
    assert take(store, everything=True) == ["a", "b"]
    assert not store.changed
    assert take(store) == []


def test_under_constant_change_only_what_came_after_the_last_sync_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = clock(monkeypatch)
    store = ObjectStore([Kind.SERVICE])
    store.replace(Kind.SERVICE, [service("a")], [])
    take(store)
    for moment in range(1, 100):
        now.append(float(moment))
        store.upsert(Kind.SERVICE, service("a", moment))
        assert store.unsynced_since == store.pending_since == moment - 1
        done(store)
        assert store.unsynced_since == store.pending_since == moment
        take(store)


def test_what_was_refused_is_pending_but_waits_for_no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    now = clock(monkeypatch)
    store = ObjectStore([Kind.SERVICE])
    store.replace(Kind.SERVICE, [service("a"), service("b")], [])
    take(store)
    done(store, "b")
    assert (store.unsynced_since, store.pending_since) == (None, 0.0)
    now.append(5.0)
    store.upsert(Kind.SERVICE, service("a", 81))
    assert (store.unsynced_since, store.pending_since) == (5.0, 0.0)
    assert take(store) == ["a"]
    done(store, "b")
    assert (store.unsynced_since, store.pending_since) == (None, 0.0)
    done(store)
    assert (store.unsynced_since, store.pending_since) == (None, None)


def test_a_change_that_waits_for_a_later_slice_is_as_old_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = clock(monkeypatch)
    store = ObjectStore([Kind.SERVICE])
    store.replace(Kind.SERVICE, [service("a"), service("b"), service("c")], [])
    assert len(store.changed_services()) == 3
    for name in "abc":
        now.append(now[-1] + 1.0)
        store.upsert(Kind.SERVICE, service(name, 81))
        store.changed_services()
        store.take([f"n/{name}"], FAMILIES)
        assert store.unsynced_since == store.pending_since == 0.0
        done(store)
    assert not waiting(store)


def test_a_family_that_fails_keeps_only_its_own_changes_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = clock(monkeypatch)
    store = ObjectStore([Kind.SERVICE])
    store.replace(Kind.SERVICE, [service("a")], [])
    take(store)
    store.commit({"IPv4": ()}, ["IPv6"])
    assert (store.unsynced_since, store.pending_since) == (None, 0.0)
    for moment in range(1, 50):
        now.append(float(moment))
        store.upsert(Kind.SERVICE, service("a", moment))
        store.upsert(Kind.SERVICE, service(f"other-{moment}"))
        assert ages(store) == (moment, 0.0)
        assert take(store) == ["a", f"other-{moment}"]
        store.commit({"IPv4": ()}, ["IPv6"])
        assert ages(store) == (None, 0.0)
        assert store.changes()[Kind.SERVICE].pending == 1 + moment
    store.commit({"IPv4": (), "IPv6": ()})
    assert not waiting(store)
    assert store.changes()[Kind.SERVICE].pending == 0


def test_a_sync_that_was_not_finished_leaves_its_changes_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = clock(monkeypatch)
    store = ObjectStore([Kind.SERVICE])
    store.replace(Kind.SERVICE, [service("a")], [])
    take(store)
    now.append(5.0)
    store.upsert(Kind.SERVICE, service("b"))
    take(store)
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
    take(store)
    done(store)
    assert (store.unsynced_since, store.waiting_since, store.pending_since) == (None, None, None)


def test_what_is_planned_again_waits_until_it_is_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    """No object changed, but the node or the settings did."""
    now = clock(monkeypatch)
    store = ObjectStore([Kind.SERVICE])
    store.replace(Kind.SERVICE, [service("a")], [])
    take(store)
    done(store)
    now.append(5.0)
    take(store, everything=True)
    assert (store.unsynced_since, store.pending_since) == (5.0, 5.0)
    now.append(6.0)
    done(store, "a")
    assert (store.unsynced_since, store.pending_since) == (None, 5.0)
    done(store)
    assert store.pending_since is None


def test_a_service_that_is_refused_as_it_is_repaired_is_pending(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was applied before, and no object changed since."""
    now = clock(monkeypatch)
    store = ObjectStore([Kind.SERVICE])
    store.replace(Kind.SERVICE, [service("a")], [])
    take(store)
    done(store)
    for moment in (7.0, 8.0):
        now.append(moment)
        take(store)
        done(store, "a")
    assert (store.unsynced_since, store.pending_since) == (None, 7.0)
    done(store)
    assert store.pending_since is None


def test_a_sync_that_fails_without_a_change_leaves_something_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = clock(monkeypatch)
    store = ObjectStore([Kind.SERVICE])
    store.replace(Kind.SERVICE, [], [])
    take(store)
    done(store)
    for moment in (9.0, 10.0):
        now.append(moment)
        store.commit({}, FAMILIES)
    assert store.pending_since == 9.0
    store.commit({"IPv4": ()}, ["IPv6"])
    assert store.pending_since == 9.0
    done(store)
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


def test_a_rejected_object_is_reported_once_per_defect() -> None:
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


def test_an_incomplete_service_has_its_time_until_it_is_complete_or_taken() -> None:
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
    take(store)
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
def test_a_rejected_object_that_is_mended_or_gone_is_reported_once_and_forgotten(
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
