"""The reconciler over a mode in memory: nothing is lost, healthy work does not wait, retries are bounded."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.addresses import Family
from kproxy.backends.core.base import CheckError, SyncReport
from kproxy.backends.core.reconciler import RETRY_SECONDS, RETRY_SHARE
from kproxy.backends.core.retries import FIRST_RETRY, LONGEST_RETRY, retry_interval
from kproxy.backends.core.service_reconciler import ServiceReconciler
from tests.backends.core.fake_operations import FakeOperations, KernelError, plan

KEYS = [f"ns/{name}" for name in "abcdef"]


class Node:
    """A reconciler with its kernel and its clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.kernel = FakeOperations()
        self.failed: dict[str, str] = {}
        self.backend = ServiceReconciler(Family.IPV4, self.kernel, lambda: self.now)

    def update(self, *plans: Any) -> None:
        self.backend.update(plans)

    def sync(self) -> SyncReport:
        return self.backend.sync()

    def done(self) -> SyncReport:
        report = self.sync()
        assert (report.error, report.failed) == (None, {})
        return report

    def wait(self) -> SyncReport:
        """Sync when the next retry is due."""
        report = self.sync()
        self.now += report.retry_in or 0.0
        return self.sync()


def settle(node: Node) -> SyncReport:
    """Sync whenever a retry is due, for as long as it may take until a cause that is gone is noticed."""
    deadline = node.now + 2 * LONGEST_RETRY
    report = node.sync()
    while report.retry_in is not None and node.now + report.retry_in <= deadline:
        node.now += report.retry_in
        report = node.sync()
    return report


# Histories ----------------------------------------------------------------------------------------------

KEY = st.sampled_from(KEYS)
STEP = st.one_of(
    st.tuples(st.just("put"), KEY, st.integers(1, 3), st.booleans()),
    st.tuples(st.just("drop"), KEY),
    st.tuples(st.just("bad"), KEY),
    st.tuples(st.just("good"), KEY),
    st.tuples(st.just("affinity"), st.booleans()),
    st.tuples(st.just("use"), KEY),
    st.tuples(st.just("foreign"), KEY, st.booleans()),
    st.tuples(st.just("wait"), st.sampled_from([0.1, 2.0, 1000.0])),
    st.tuples(st.just("check"), st.booleans()),
    st.tuples(st.just("invalidate")),
    st.tuples(st.just("part")),
    st.tuples(st.just("sync"), st.none() | st.tuples(st.integers(0, 3), st.booleans(), st.booleans())),
)


def play(node: Node, step: tuple[Any, ...]) -> None:
    kernel = node.kernel
    match step:
        case "put", key, number, affinity:
            node.update(plan(key, number, affinity=affinity))
        case "drop", key:
            node.update(plan(key, gone=True))
        case "bad", key:
            kernel.bad.add(key)
        case "good", key:
            kernel.bad.discard(key)
        case "affinity", missing:
            kernel.no_affinity = missing
        case "use", key:
            kernel.in_use ^= {key}
        case "foreign", key, present:
            kernel.writes_by_others += 1
            if present:
                kernel.kernel[key] = (99, False)
            else:
                kernel.kernel.pop(key, None)
        case "wait", seconds:
            node.now += seconds
        case "check", full:
            node.backend.check(full=full)
        case ("invalidate",):
            node.backend.invalidate()
        case ("part",):
            node.backend.sync(0.0)
        case "sync", failure:
            sync_with(node, failure)


def sync_with(node: Node, failure: tuple[int, bool, bool] | None) -> None:
    """Sync, with a write that fails before or after it is applied; look at what the report says."""
    kernel = node.kernel
    if failure is not None:
        left, after, stale = failure

        def fail(applied: bool) -> None:
            nonlocal left
            if applied is after:
                left -= 1
                if left < 0:
                    raise KernelError("interrupted", stale=stale or after)

        kernel.fail = fail
    before = node.failed
    report = node.sync()
    kernel.fail = lambda _: None
    if report.error is not None:
        return
    node.failed = report.failed
    assert all(kernel.refuses(key) for key in report.failed.keys() - before.keys())
    healthy = {key: value for key, value in kernel.desired.items() if key not in report.failed}
    assert {key: kernel.applied.get(key) for key in healthy} == healthy
    named = {name.removeprefix("value ") for name in report.leftovers}
    assert named == kernel.applied.keys() - kernel.desired.keys()


@given(st.lists(STEP, max_size=40))
def test_any_history_ends_as_a_fresh_sync(history: list[tuple[Any, ...]]) -> None:
    node = Node()
    for step in history:
        play(node, step)
    node.kernel.bad.clear()
    node.kernel.in_use.clear()
    node.kernel.no_affinity = False
    report = settle(node)
    assert (report.error, report.services, report.leftovers, report.retry_in) == (None, {}, {}, None)
    node.backend.check(full=True)
    node.done()
    assert node.kernel.kernel == node.kernel.desired
    attempts = len(node.kernel.attempts)
    assert node.done().changes == {}
    assert len(node.kernel.attempts) == attempts


# Refused services ---------------------------------------------------------------------------------------


def refused_node(count: int = 300) -> Node:
    """A node with healthy services, and many that need a match that its kernel lacks."""
    node = Node()
    node.kernel.no_affinity = True
    node.update(*(plan(f"ns/good{n:03}") for n in range(100)))
    node.update(*(plan(f"ns/poor{n:03}", affinity=True) for n in range(count)))
    return node


def test_one_cause_of_many_refusals_is_searched_once() -> None:
    node = refused_node()
    report = node.sync()
    assert len(report.failed) == 300
    assert len(node.kernel.kernel) == 100
    assert len(node.kernel.attempts) < 40
    assert all("no match recent" in reason for reason in report.failed.values())


def test_a_retry_of_many_tries_one_and_they_become_rarer() -> None:
    node = refused_node()
    node.sync()
    node.kernel.attempts.clear()
    waits = []
    for _ in range(12):
        report = node.sync()
        assert report.retry_in is not None
        waits.append(report.retry_in)
        node.now += report.retry_in
        assert len(node.sync().failed) == 300
    assert [len(batch) for batch in node.kernel.attempts] == [1] * 12
    assert len(set(node.kernel.attempts)) == 12
    assert waits[0] <= FIRST_RETRY
    assert sorted(waits[:8]) == waits[:8]
    assert 0.75 * LONGEST_RETRY <= waits[-1] <= LONGEST_RETRY


def test_when_the_cause_is_gone_all_are_back_within_the_longest_interval() -> None:
    node = refused_node()
    for _ in range(15):
        node.wait()
    node.kernel.no_affinity = False
    gone = node.now
    while (report := node.sync()).failed:
        assert report.retry_in is not None
        node.now += report.retry_in
    assert node.now - gone <= LONGEST_RETRY
    assert node.kernel.kernel == node.kernel.desired


def test_more_of_a_refused_kind_are_not_tried_at_all() -> None:
    node = refused_node(4)
    node.sync()
    node.kernel.attempts.clear()
    node.update(plan("ns/another", affinity=True), plan("ns/good"))
    report = node.sync()
    assert "no match recent" in report.failed["ns/another"]
    assert node.kernel.attempts == [("ns/good",)]


def test_a_refused_service_whose_rules_are_of_another_kind_now_is_tried_at_once() -> None:
    node = refused_node(4)
    node.sync()
    node.update(plan("ns/poor001", 7))
    assert "ns/poor001" not in node.sync().failed
    assert node.kernel.kernel["ns/poor001"] == (7, False)


def test_a_cause_is_not_assumed_while_the_kernel_holds_a_service_of_the_kind() -> None:
    node = Node()
    node.update(plan("ns/first", affinity=True))
    node.done()
    node.kernel.no_affinity = True
    node.update(*(plan(key, affinity=True) for key in KEYS[:4]))
    node.sync()
    node.kernel.no_affinity = False
    node.update(plan("ns/later", affinity=True))
    assert "ns/later" not in node.sync().failed


def test_a_refused_service_keeps_what_it_had_and_the_others_are_written() -> None:
    node = Node()
    node.update(*map(plan, KEYS))
    node.done()
    node.kernel.bad = {"ns/c"}
    node.update(*(plan(key, 2) for key in KEYS))
    assert list(node.sync().failed) == ["ns/c"]
    assert node.kernel.kernel == {key: (1 if key == "ns/c" else 2, False) for key in KEYS}


def test_retries_come_after_the_healthy_work_of_a_sync() -> None:
    node = Node()
    node.kernel.bad = {"ns/a"}
    node.update(plan("ns/a"))
    node.now += node.sync().retry_in or 0.0
    node.update(plan("ns/z"))
    node.kernel.attempts.clear()
    node.sync()
    assert node.kernel.attempts == [("ns/z",), ("ns/a",)]


def test_retries_keep_to_their_share_of_time() -> None:
    node = Node()
    node.kernel.bad = {f"ns/x{letter}" for letter in "abcdefghijklmnopqrst"}
    node.update(*map(plan, node.kernel.bad))
    node.sync()
    node.now += 2 * FIRST_RETRY
    node.kernel.attempts.clear()

    def slow() -> None:
        node.now += 0.4 * RETRY_SECONDS

    node.kernel.cost = slow
    report = node.sync()
    assert len(node.kernel.attempts) == 3
    assert report.retry_in is not None
    assert report.retry_in >= 1.2 * RETRY_SECONDS * (1 / RETRY_SHARE - 1) - 1e-6


def test_an_operator_s_retry_tries_everything_now() -> None:
    node = refused_node(4)
    node.sync()
    node.kernel.no_affinity = False
    node.backend.retry()
    node.done()
    assert node.kernel.kernel == node.kernel.desired


def test_intervals_grow_within_their_bounds_and_differ_between_names() -> None:
    series = [retry_interval("ns/a", n) for n in range(1, 40)]
    assert all(0.75 * FIRST_RETRY <= each <= LONGEST_RETRY for each in series)
    assert series[:9] == sorted(series[:9])
    assert len({retry_interval(key, 20) for key in KEYS}) == len(KEYS)


# Stale state --------------------------------------------------------------------------------------------


def test_a_refusal_after_writes_by_others_makes_the_kernel_be_read_once_more() -> None:
    node = Node()
    node.update(plan("ns/a"), plan("ns/b"))
    node.done()
    node.kernel.kernel.pop("ns/b")
    node.kernel.writes_by_others += 1
    node.update(plan("ns/b", gone=True))
    report = node.done()
    assert (node.kernel.reads, report.full, report.resynced) == (2, True, "ns/b does not exist")
    assert [str(drift) for drift in report.drifts] == ["value ns/b is missing"]
    assert report.leftovers == {}


def test_a_bad_service_is_found_although_others_write_all_the_time() -> None:
    node = Node()
    node.done()

    def others(_: bool) -> None:
        node.kernel.writes_by_others += 1

    node.kernel.fail = others
    node.kernel.bad = {"ns/b"}
    node.update(*map(plan, KEYS))
    assert list(node.sync().failed) == ["ns/b"]
    assert node.kernel.reads == 2
    node.wait()
    assert node.kernel.reads == 2


def test_a_failure_of_known_outcome_costs_no_read_and_loses_nothing() -> None:
    node = Node()
    node.update(plan("ns/a"))
    node.done()

    def locked(_: bool) -> None:
        raise KernelError("locked", stale=False)

    node.kernel.fail = locked
    node.update(plan("ns/a", 2))
    assert node.sync().error == "locked"
    node.kernel.fail = lambda _: None
    node.done()
    assert (node.kernel.kernel, node.kernel.reads) == ({"ns/a": (2, False)}, 1)


@pytest.mark.parametrize("applied", [False, True])
def test_a_failure_of_unknown_outcome_makes_the_kernel_be_read(applied: bool) -> None:
    node = Node()
    node.update(plan("ns/a"), plan("ns/b"))
    node.done()

    def interrupted(after: bool) -> None:
        if after is applied:
            raise KernelError("interrupted")

    node.kernel.fail = interrupted
    node.update(plan("ns/a", 2))
    assert node.sync().error == "interrupted"
    node.kernel.fail = lambda _: None
    node.kernel.kernel["ns/b"] = (99, False)
    report = node.done()
    assert [str(drift) for drift in report.drifts] == ["value ns/b is modified"]
    assert node.kernel.kernel == node.kernel.desired


def test_a_failure_in_a_retry_keeps_the_service_quarantined() -> None:
    node = Node()
    node.kernel.bad = {"ns/a"}
    node.update(plan("ns/a"))
    node.now += node.sync().retry_in or 0.0

    def locked(_: bool) -> None:
        raise KernelError("locked", stale=False)

    node.kernel.fail = locked
    assert node.sync().error == "locked"
    node.kernel.fail = lambda _: None
    assert list(node.sync().failed) == ["ns/a"]


def test_a_check_names_drift_and_the_next_sync_repairs_it() -> None:
    node = Node()
    node.update(plan("ns/a"))
    node.done()
    node.kernel.kernel.clear()
    assert node.backend.check() == ()
    node.kernel.writes_by_others += 1
    assert [str(drift) for drift in node.backend.check()] == ["value ns/a is missing"]
    assert node.backend.check() == ()
    node.done()
    assert node.kernel.kernel == node.kernel.desired


def test_a_check_that_cannot_read_says_so() -> None:
    node = Node()
    node.done()

    def drift(**_: bool) -> None:
        raise KernelError("unreadable")

    node.kernel.drift = drift  # type: ignore[method-assign]
    with pytest.raises(CheckError, match="unreadable"):
        node.backend.check()


# Leftovers, cost ----------------------------------------------------------------------------------------


def test_leftovers_are_named_until_they_are_gone_and_tried_at_growing_intervals() -> None:
    node = Node()
    node.update(plan("ns/a"), plan("ns/b"))
    node.done()
    node.kernel.in_use = {"ns/a"}
    node.update(plan("ns/a", gone=True), plan("ns/b", gone=True))
    report = node.done()
    assert (report.leftovers, report.kept) == ({"value ns/a": "ns/a is in use"}, 1)
    report = node.done()
    assert (report.leftovers, report.kept) == ({"value ns/a": "ns/a is in use"}, 0)
    waits = []
    for _ in range(3):
        assert report.retry_in is not None
        waits.append(report.retry_in)
        node.now += report.retry_in
        report = node.done()
        assert report.kept == 1
    assert waits == sorted(waits)
    node.kernel.in_use.clear()
    node.now += LONGEST_RETRY
    assert node.done().leftovers == {}
    assert node.kernel.kernel == {}


def test_a_sync_whose_time_is_over_leaves_the_rest_to_the_next_one() -> None:
    node = Node()
    node.done()
    node.update(*(plan(key, 1) for key in KEYS))
    report = node.backend.sync(0.0)
    assert len(report.unfinished) == len(KEYS) - 2
    assert node.kernel.kernel.keys() == set(KEYS) - report.unfinished
    node.update(plan(KEYS[0], gone=True))
    while (report := node.backend.sync(0.0)).unfinished:
        assert report.error is None
    assert node.kernel.kernel.keys() == set(KEYS[1:])


def test_a_sync_without_changes_looks_at_no_service() -> None:
    node = refused_node()
    node.sync()
    wanted, attempts, reads = node.kernel.wanted, len(node.kernel.attempts), node.kernel.reads
    for _ in range(3):
        node.sync()
    assert (node.kernel.wanted, len(node.kernel.attempts), node.kernel.reads) == (wanted, attempts, reads)
