"""A cleanup beside a kproxy that runs: it is asked to leave, waited for, and never overrun."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import msgspec
import pytest
from structlog.testing import capture_logs

from kproxy.modes import leftovers as module
from kproxy.modes.leftovers import LeavingError, clean_up, clean_up_on_exit
from kproxy.node.holder import Holder, Report
from kproxy.node.instance import CLEAN_UP_NOW, CLEAN_UP_ON_EXIT, Instance, InstanceRunning

REPORT = Report(7, "2026-01-01T00:00:00Z", "0.1.0", "run", "ipvs")
PROMISED = msgspec.structs.replace(REPORT, cleanup_on_exit=True)
ENDS = None
"""In the place of a report: the holder ends."""


class Node:
    """A node whose kproxy reports as the test says; each report takes a second."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: Holder | None = Holder(7, os.geteuid(), REPORT)
        self.reports: list[Report | None] = []
        self.silent = False
        self.signals: list[signal.Signals] = []
        self.refusal: OSError | None = None
        self.successor: Holder | None = None
        self.removed: list[bool] = []
        self.now = 100.0
        monkeypatch.setattr(module, "connection", self._connection)
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(Instance, "acquire", lambda _, *, wait: self._acquire(wait))
        monkeypatch.setattr(module, "remove_everything", self._remove)

    @contextmanager
    def _connection(self) -> Iterator[Node | None]:
        yield self if self.found is not None else None

    def _acquire(self, wait: float) -> None:
        assert wait == 0
        if self.successor is not None:
            raise InstanceRunning(self.successor)

    def _remove(self, *, kube_proxy: bool) -> bool:
        self.removed.append(kube_proxy)
        return True

    def holder(self) -> Holder:
        assert self.found is not None
        return self.found

    def send(self, number: signal.Signals) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.signals.append(number)

    def next(self, seconds: float) -> Report | None:
        if self.silent:
            self.now += seconds
            return None
        assert seconds > 0
        self.now += 1
        report = self.reports.pop(0)
        if report is ENDS:
            raise EOFError
        return report


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(monkeypatch)


def test_a_cleanup_with_stop_waits_for_the_end_and_removes_the_rest(node: Node) -> None:
    node.reports = [PROMISED, REPORT, ENDS]
    assert clean_up(stop=True, kube_proxy=True)
    assert node.signals == [CLEAN_UP_NOW]
    assert node.removed == [True]
    assert node.now == 103


def test_a_cleanup_without_a_kproxy_removes_all(node: Node) -> None:
    node.found = None
    assert clean_up(stop=True)
    assert clean_up()
    assert node.signals == []
    assert node.removed == [False, False]


def test_a_kproxy_that_does_not_end_in_time_is_named(node: Node) -> None:
    node.silent = True
    with pytest.raises(LeavingError, match=r"\(pid 7: kproxy run, mode ipvs.* has not ended within 90 s"):
        clean_up(stop=True)
    assert node.removed == []
    assert node.now == 190


@pytest.mark.parametrize(
    ("stop", "remedy"), [(False, "kproxy cleanup --stop lets it remove"), (True, "was started again")]
)
def test_beside_a_kproxy_nothing_is_removed(node: Node, stop: bool, remedy: str) -> None:
    node.reports = [ENDS]
    node.successor = Holder(8, 0, REPORT)
    with pytest.raises(LeavingError, match=remedy) as error:
        clean_up(stop=stop)
    assert "pid 8" in str(error.value)
    assert node.removed == []


@pytest.mark.parametrize("first", [REPORT, None])
def test_a_cleanup_at_the_exit_is_promised(node: Node, first: Report | None) -> None:
    node.found = Holder(7, 0, first)
    node.reports = [REPORT, PROMISED]
    with capture_logs() as logs:
        clean_up_on_exit()
    assert node.signals == [CLEAN_UP_ON_EXIT]
    assert [each["event"] for each in logs] == ["cleanup_on_exit"]
    assert node.reports == []


def test_a_promise_that_was_given_before_is_one(node: Node) -> None:
    node.found = Holder(7, 0, PROMISED)
    clean_up_on_exit()
    assert node.signals == [CLEAN_UP_ON_EXIT]
    assert node.now == 100


def ends(node: Node) -> None:
    node.reports = [REPORT, ENDS]


def stays_silent(node: Node) -> None:
    node.silent = True


def is_absent(node: Node) -> None:
    node.found = None


def cannot_be_reached(node: Node) -> None:
    node.refusal = ProcessLookupError("its process cannot be seen from here")


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (ends, "the kproxy that ran here ended"),
        (stays_silent, "has not answered within 10 s"),
        (is_absent, "no kproxy runs in this network namespace"),
        (cannot_be_reached, "cannot be seen from here; run this in its container"),
    ],
)
def test_a_promise_that_is_not_given_is_an_error(
    node: Node, trouble: Callable[[Node], None], message: str
) -> None:
    trouble(node)
    with pytest.raises(LeavingError, match=message):
        clean_up_on_exit()
    assert node.now in {100, 102, 110}


def test_another_users_process_is_not_asked(node: Node) -> None:
    node.found = Holder(7, os.geteuid() + 1234, REPORT)
    assert clean_up(stop=True)
    assert node.signals == []
    with pytest.raises(LeavingError, match="no kproxy runs"):
        clean_up_on_exit()
