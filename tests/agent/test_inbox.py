"""The inbox: what wakes the loop, when all is listed, and what counts as waiting."""

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import msgspec
import pytest
import structlog.testing

from kproxy.state import store as module
from kproxy.state.decode import Kind, WireObject, decode
from kproxy.state.problems import Problem
from kproxy.state.store import Inbox


def service(name: str, port: int = 80) -> WireObject:
    raw = b'{"metadata":{"name":"%s","namespace":"n"},"spec":{"clusterIP":"10.0.0.1","ports":[{"port":%d}]}}'
    return decode(Kind.SERVICE, raw % (name.encode(), port))


def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let the inbox read the last of these moments, in seconds."""
    moments = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: moments[-1], time=time.time))
    return moments


def waiting(inbox: Inbox) -> bool:
    return inbox.pending_since is not None


def test_nothing_is_ready_before_every_first_list() -> None:
    inbox = Inbox(frozenset(Kind))
    for kind in (Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.SERVICE_CIDR):
        inbox.replace(kind, [], [])
        assert not inbox.ready
    inbox.upsert(Kind.SERVICE, service("a"))
    assert not inbox.ready
    inbox.replace(Kind.NODE, [], [])
    assert inbox.ready


def test_only_real_changes_count() -> None:
    inbox = Inbox([Kind.SERVICE])
    inbox.replace(Kind.SERVICE, [service("a")], [])
    assert [given.key for given in inbox.take()] == ["n/a"]
    assert not inbox.changed
    inbox.upsert(Kind.SERVICE, service("a"))
    inbox.delete(Kind.SERVICE, "n/unknown")
    assert [given.key for given in inbox.take()] == ["n/a"]
    inbox.commit(inbox.take())
    inbox.upsert(Kind.SERVICE, service("a", 81))
    assert [given.key for given in inbox.take()] == ["n/a"]


def test_what_is_not_committed_comes_again() -> None:
    inbox = Inbox([Kind.SERVICE])
    inbox.replace(Kind.SERVICE, [service("a"), service("b")], [])
    assert waiting(inbox)
    taken = inbox.take()
    inbox.commit(given for given in taken if given.key == "n/a")
    assert [given.key for given in inbox.take()] == ["n/b"]
    assert waiting(inbox)
    inbox.commit(inbox.take())
    assert not waiting(inbox)
    assert inbox.take() == []
    assert [given.key for given in inbox.take(everything=True)] == ["n/a", "n/b"]


def test_under_constant_change_only_what_came_after_the_last_sync_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = clock(monkeypatch)
    inbox = Inbox([Kind.SERVICE])
    inbox.replace(Kind.SERVICE, [service("a")], [])
    taken = inbox.take()
    for moment in range(1, 100):
        now.append(float(moment))
        inbox.upsert(Kind.SERVICE, service("a", moment))
        assert inbox.unsynced_since == inbox.pending_since == moment - 1
        inbox.commit(taken)
        assert inbox.unsynced_since == inbox.pending_since == moment
        taken = inbox.take()


def test_what_was_refused_is_pending_but_waits_for_no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    now = clock(monkeypatch)
    inbox = Inbox([Kind.SERVICE])
    inbox.replace(Kind.SERVICE, [service("a"), service("b")], [])
    inbox.commit(given for given in inbox.take() if given.key == "n/a")
    assert (inbox.unsynced_since, inbox.pending_since) == (None, 0.0)
    now.append(5.0)
    inbox.upsert(Kind.SERVICE, service("a", 81))
    assert (inbox.unsynced_since, inbox.pending_since) == (5.0, 0.0)
    inbox.commit(given for given in inbox.take() if given.key == "n/a")
    assert (inbox.unsynced_since, inbox.pending_since) == (None, 0.0)
    inbox.commit(inbox.take())
    assert (inbox.unsynced_since, inbox.pending_since) == (None, None)


def test_a_sync_that_was_not_finished_leaves_its_changes_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = clock(monkeypatch)
    inbox = Inbox([Kind.SERVICE])
    inbox.replace(Kind.SERVICE, [service("a")], [])
    inbox.take()
    now.append(5.0)
    inbox.upsert(Kind.SERVICE, service("b"))
    inbox.take()
    assert inbox.unsynced_since == inbox.pending_since == 0.0


def test_no_sync_is_late_before_the_first_lists_are_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    now = clock(monkeypatch)
    inbox = Inbox([Kind.SERVICE, Kind.NODE])
    assert (inbox.waiting_since, inbox.pending_since) == (0.0, 0.0)
    inbox.replace(Kind.SERVICE, [service("a")], [])
    now.append(500.0)
    assert (inbox.unsynced_since, inbox.waiting_since, inbox.pending_since) == (None, 0.0, 0.0)
    assert inbox.missing_lists == [Kind.NODE]
    inbox.replace(Kind.NODE, [], [])
    assert (inbox.unsynced_since, inbox.waiting_since, inbox.pending_since) == (500.0, 500.0, 0.0)
    inbox.commit(inbox.take())
    assert (inbox.unsynced_since, inbox.waiting_since, inbox.pending_since) == (None, None, None)


def test_what_is_planned_again_waits_until_it_is_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    """No object changed, but the node or the settings did."""
    now = clock(monkeypatch)
    inbox = Inbox([Kind.SERVICE])
    inbox.replace(Kind.SERVICE, [service("a")], [])
    inbox.commit(inbox.take())
    now.append(5.0)
    again = inbox.take(everything=True)
    assert (inbox.unsynced_since, inbox.pending_since) == (5.0, 5.0)
    now.append(6.0)
    inbox.commit(given for given in again if given.key != "n/a")
    assert (inbox.unsynced_since, inbox.pending_since) == (None, 5.0)
    inbox.commit(inbox.take())
    assert inbox.pending_since is None


def test_a_service_that_is_refused_as_it_is_repaired_is_pending(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was applied before, and no object changed since."""
    now = clock(monkeypatch)
    inbox = Inbox([Kind.SERVICE])
    inbox.replace(Kind.SERVICE, [service("a")], [])
    inbox.commit(inbox.take())
    now.append(7.0)
    inbox.commit(inbox.take(), refused=True)
    now.append(8.0)
    inbox.commit(inbox.take(), refused=True)
    assert (inbox.unsynced_since, inbox.pending_since) == (None, 7.0)
    inbox.commit(inbox.take())
    assert inbox.pending_since is None


def test_a_sync_that_fails_without_a_change_leaves_something_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = clock(monkeypatch)
    inbox = Inbox([Kind.SERVICE])
    inbox.replace(Kind.SERVICE, [], [])
    inbox.commit(inbox.take())
    now.append(9.0)
    inbox.not_applied()
    now.append(10.0)
    inbox.not_applied()
    assert (inbox.waiting_since, inbox.pending_since) == (9.0, 9.0)
    inbox.commit(inbox.take())
    assert inbox.pending_since is None


def test_a_change_ends_a_wait() -> None:
    inbox = Inbox([Kind.SERVICE])
    woken = threading.Event()

    def wait() -> None:
        inbox.wait(30)
        woken.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    inbox.upsert(Kind.SERVICE, service("a"))
    assert woken.wait(20)
    thread.join()


def test_a_rejected_object_is_told_once_per_defect() -> None:
    inbox = Inbox([Kind.SERVICE])
    first = Problem("Service n/a", "spec.ports", '"x"', "not a list")
    second = Problem("Service n/a", "spec.type", "7", "not a text")
    with structlog.testing.capture_logs() as logs:
        for problem in (first, first, second):
            inbox.reject(Kind.SERVICE, "n/a", problem)
    assert inbox.rejected() == [second]
    assert [(entry["field"], entry["object"]) for entry in logs] == [
        ("spec.ports", "Service n/a"),
        ("spec.type", "Service n/a"),
    ]


def halved(inbox: Inbox) -> float | None:
    return inbox.halved_since


def test_a_service_that_is_half_here_is_told_since_when_until_it_is_whole_or_taken() -> None:
    inbox = Inbox([])
    for kind in (Kind.SERVICE, Kind.ENDPOINT_SLICE):
        inbox.replace(kind, [], [])
    assert halved(inbox) is None
    inbox.upsert(Kind.SERVICE, service("a"))
    since = halved(inbox)
    assert since is not None
    inbox.upsert(Kind.SERVICE, service("b"))
    inbox.delete(Kind.SERVICE, "n/a")
    assert halved(inbox) == since
    inbox.take()
    assert halved(inbox) is None
    inbox.upsert(Kind.SERVICE, service("c"))
    assert halved(inbox) is not None
    inbox.delete(Kind.SERVICE, "n/c")
    assert halved(inbox) is None


def ranges(name: str, *cidrs: str) -> WireObject:
    return decode(
        Kind.SERVICE_CIDR, msgspec.json.encode({"metadata": {"name": name}, "spec": {"cidrs": cidrs}})
    )


def test_a_cidr_that_is_none_costs_itself_and_is_named_once_until_it_is_gone() -> None:
    inbox = Inbox([])
    problem = Problem("ServiceCIDR a", "spec.cidrs[1]", '"10.97.0.0"', "not a CIDR")
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            inbox.replace(Kind.SERVICE_CIDR, [ranges("a", "10.96.0.0/16", "10.97.0.0")], [])
        assert inbox.rejected() == [problem]
        assert inbox.service_ranges == ("10.96.0.0/16",)
    assert [entry["object"] for entry in logs if entry["event"] == "object_rejected"] == ["ServiceCIDR a"]
    inbox.delete(Kind.SERVICE_CIDR, "a")
    assert not inbox.rejected()
    assert not inbox.service_ranges


DEFECT = Problem("Service n/a", "spec.ports", '"x"', "not a list")


def relist_without(inbox: Inbox) -> None:
    inbox.replace(Kind.SERVICE, [], [])


def relist_with(inbox: Inbox) -> None:
    inbox.replace(Kind.SERVICE, [service("a")], [])


def update(inbox: Inbox) -> None:
    inbox.upsert(Kind.SERVICE, service("a"))


def delete(inbox: Inbox) -> None:
    inbox.delete(Kind.SERVICE, "n/a")


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
    listed: bool, mend: Callable[[Inbox], None], event: str
) -> None:
    inbox = Inbox([Kind.SERVICE])
    inbox.reject(Kind.SERVICE, "n/a", DEFECT)
    if listed:
        inbox.replace(Kind.SERVICE, [], ["n/a"])
    assert inbox.rejected() == [DEFECT]
    with structlog.testing.capture_logs() as logs:
        mend(inbox)
        mend(inbox)
    assert inbox.rejected() == []
    assert [(line["event"], line["object"]) for line in logs] == [(event, "Service n/a")]


def test_objects_without_a_name_stay_rejected_until_a_list_has_none() -> None:
    first = Problem("Service ?", "metadata.name", "null", "is missing")
    second = Problem("Service ?", "metadata.name", "7", "is no text")
    inbox = Inbox([Kind.SERVICE])
    for _ in range(2):
        inbox.reject(Kind.SERVICE, None, first)
        inbox.reject(Kind.SERVICE, None, second)
        inbox.replace(Kind.SERVICE, [], [])
        assert inbox.rejected() == [second, first]
    inbox.upsert(Kind.SERVICE, service("a"))
    inbox.reject(Kind.SERVICE, None, first)
    inbox.replace(Kind.SERVICE, [], [])
    assert inbox.rejected() == [first]
    inbox.replace(Kind.SERVICE, [], [])
    assert inbox.rejected() == []


def test_objects_without_a_name_are_bounded() -> None:
    inbox = Inbox([Kind.SERVICE])
    for number in range(1000):
        inbox.reject(Kind.SERVICE, None, Problem("Service ?", "metadata.name", str(number), "is no text"))
    assert len(inbox.rejected()) == 100
