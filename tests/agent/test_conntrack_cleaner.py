"""The thread that forgets UDP flows: what it deletes, and that a failure loses nothing."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Collection, Iterator, Sequence

import msgspec
import pytest

from kproxy.addresses import Family
from kproxy.agent import conntrack_cleaner as module
from kproxy.agent.conntrack_cleaner import ConntrackCleaner
from kproxy.kernel.conntrack.types import ConntrackError, Flow
from kproxy.plan.stale_conntrack import StaleConntrack
from kproxy.telemetry.metrics import Distribution, Metrics
from kproxy.telemetry.series import CONNTRACK_DELETED, CONNTRACK_SYNC

VIP = ("10.96.0.1", 53)
OLD, NEW = Flow(*VIP, "10.1.0.1", 5353), Flow(*VIP, "10.1.0.2", 5353)
ELSEWHERE = Flow("10.96.0.9", 53, "10.1.0.1", 5353)
MOVED = StaleConntrack(kept={VIP: frozenset({"10.1.0.2:5353"})})


class FakeConntrack:
    """Flows in memory; fails as often as told."""

    def __init__(self, failures: int = 0) -> None:
        self.flows = [OLD, NEW, ELSEWHERE]
        self.failures = failures
        self.changed = threading.Event()
        self.metrics = Metrics()

    def udp_flows(self, family: Family, ports: Collection[int]) -> list[Flow]:
        assert family is Family.IPV4
        if self.failures:
            self.failures -= 1
            raise ConntrackError("conntrack: cannot read flows: No buffer space available")
        return [flow for flow in self.flows if flow.dst_port in ports]

    def delete(self, family: Family, flows: Sequence[Flow]) -> list[Flow]:
        deleted = [flow for flow in flows if flow in self.flows]
        self.flows = [flow for flow in self.flows if flow not in flows]
        self.changed.set()
        return deleted


@pytest.fixture
def running() -> Iterator[functools.partial[None]]:
    """Starts a cleaner over a fake; ends it after the test."""
    ends: list[functools.partial[None]] = []

    def start(fake: FakeConntrack) -> ConntrackCleaner:
        cleaner, stop = ConntrackCleaner(lambda: fake, fake.metrics), threading.Event()
        thread = threading.Thread(target=cleaner.run, args=(stop,), daemon=True)
        thread.start()

        def end() -> None:
            stop.set()
            cleaner.wake()
            thread.join(5)
            assert not thread.is_alive()

        ends.append(functools.partial(end))
        return cleaner

    yield start  # type: ignore[misc]
    for end in ends:
        end()


@pytest.mark.parametrize("failures", [0, 2])
def test_stale_flows_go_and_others_stay(
    running: functools.partial[ConntrackCleaner], monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    monkeypatch.setattr(module, "_AGAIN", 0.01)
    fake = FakeConntrack(failures)
    running(fake).submit(Family.IPV4, MOVED)
    assert fake.changed.wait(5)
    assert fake.flows == [NEW, ELSEWHERE]


def test_each_pass_is_timed_and_what_it_deletes_is_counted() -> None:
    fake, stop = FakeConntrack(), threading.Event()
    cleaner = ConntrackCleaner(lambda: fake, fake.metrics)
    cleaner.submit(Family.IPV4, MOVED)
    thread = threading.Thread(target=cleaner.run, args=(stop,), daemon=True)
    began = time.monotonic()
    thread.start()
    assert fake.changed.wait(5)
    stop.set()
    cleaner.wake()
    thread.join(5)
    values = {sample.series.name: sample.value for sample in fake.metrics.samples()}
    assert values[CONNTRACK_DELETED.name] == 1
    timed = values[CONNTRACK_SYNC.name]
    assert isinstance(timed, Distribution)
    assert sum(timed.counts) == 1
    assert 0 <= timed.sum <= time.monotonic() - began


@pytest.mark.parametrize("failures", [0, 1])
def test_deleted_flows_are_counted_for_the_change_of_their_service(failures: int) -> None:
    """Changes that wait together, also after a failure, are counted apart; one without a number is not."""
    other, gone = ("10.96.0.9", 53), ("", 30053)
    counts: dict[int, int] = {}
    fake, stop = FakeConntrack(failures), threading.Event()
    fake.flows += [Flow(*VIP, "10.1.0.3", 5353), Flow("192.0.2.1", 30053, "10.1.0.3", 5353)]
    cleaner = ConntrackCleaner(lambda: fake, fake.metrics)
    cleaner.on_deleted = counts.update
    cleaner.submit(Family.IPV4, msgspec.structs.replace(MOVED, services={VIP: "ns/a"}), {"ns/a": 7})
    moved = StaleConntrack(
        {other: frozenset()}, {gone: frozenset({"10.1.0.3:5353"})}, {other: "ns/b", gone: "ns/c"}
    )
    cleaner.submit(Family.IPV4, moved, {"ns/b": 8})
    stop.set()
    for _ in range(1 + failures):
        cleaner.run(stop)
    assert fake.flows == [NEW]
    assert counts == {7: 2, 8: 1}


def test_what_was_asked_for_before_the_end_is_done() -> None:
    fake, stop = FakeConntrack(), threading.Event()
    cleaner = ConntrackCleaner(lambda: fake, fake.metrics)
    cleaner.submit(Family.IPV4, MOVED)
    stop.set()
    cleaner.run(stop)
    assert fake.flows == [NEW, ELSEWHERE]


def test_a_failure_does_not_hold_up_the_end() -> None:
    fake, stop = FakeConntrack(failures=1), threading.Event()
    cleaner = ConntrackCleaner(lambda: fake, fake.metrics)
    cleaner.submit(Family.IPV4, MOVED)
    stop.set()
    cleaner.run(stop)
    assert fake.flows == [OLD, NEW, ELSEWHERE]


def test_nothing_to_look_for_reads_nothing(running: functools.partial[ConntrackCleaner]) -> None:
    fake = FakeConntrack()
    cleaner = running(fake)
    cleaner.submit(Family.IPV4, StaleConntrack())
    cleaner.submit(Family.IPV4, MOVED)
    assert fake.changed.wait(5)
    assert OLD not in fake.flows
