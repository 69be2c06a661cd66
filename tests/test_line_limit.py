"""The bound of log lines about one service, through the whole pipeline of the log."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import redirect_stderr
from typing import Any

import pytest
import structlog

from kproxy import logs
from kproxy.line_limit import WINDOW, LineLimit
from kproxy.state.problems import Problem
from kproxy.telemetry.problem_log import ProblemLog

LINES = 5


class Log:
    """The log with a limit and a clock; `lines` are those printed since the last call."""

    def __init__(self, out: io.StringIO) -> None:
        self.now = 0.0
        self._out = out
        logs.configure(form="json", lines_per_minute=LINES)
        processors = structlog.get_config()["processors"]
        assert isinstance(processors[0], LineLimit)
        structlog.configure(processors=[LineLimit(LINES, lambda: self.now), *processors[1:]])

    def lines(self) -> list[dict[str, Any]]:
        text = self._out.getvalue()
        self._out.truncate(0)
        self._out.seek(0)
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def logged() -> Iterator[Log]:
    before = structlog.get_config()
    out = io.StringIO()
    with redirect_stderr(out):
        yield Log(out)
    structlog.configure(**before)


log = structlog.stdlib.get_logger("test")


def test_the_first_lines_are_logged_at_once_and_the_rest_is_counted(logged: Log) -> None:
    for number in range(100):
        log.warning("service_degraded", service="ns/bad", number=number)
    assert [line["number"] for line in logged.lines()] == list(range(LINES))
    logged.now += WINDOW
    logs.report_left_out()
    (told,) = logged.lines()
    assert (told["event"], told["object"], told["lines"]) == ("log_lines_left_out", "ns/bad", 100 - LINES)
    logs.report_left_out()
    assert logged.lines() == []
    log.warning("service_degraded", service="ns/bad", number=0)
    assert len(logged.lines()) == 1


def test_a_service_costs_others_no_line(logged: Log) -> None:
    for number in range(50):
        log.warning("service_degraded", service="ns/bad", number=number)
        log.info("synced", services=1)
    log.warning("service_degraded", service="ns/good")
    lines = logged.lines()
    assert sum(line["event"] == "synced" for line in lines) == 50
    assert lines[-1]["service"] == "ns/good"


def test_a_service_is_one_subject_whichever_event_names_it(logged: Log) -> None:
    for _ in range(LINES):
        log.warning("object_problem", object="Service ns/bad")
        log.error("service_quarantined", service="ns/bad")
    assert len(logged.lines()) == LINES


def test_problems_that_come_and_go_all_the_time_are_bounded_by_the_minute(logged: Log) -> None:
    """Ten minutes of an object that changes ten times a second, each time with another defect."""
    problems = ProblemLog()
    for number in range(6000):
        found = Problem("Service ns/bad", "spec.ports", str(number), "is no port")
        problems.update({"ns/bad": (found,) if number % 2 else ()})
        logged.now += 0.1
    lines = logged.lines()
    assert len(lines) <= 11 * (LINES + 1)
    assert sum(line.get("lines", 1) for line in lines) == pytest.approx(6000, abs=700)


def test_subjects_of_the_past_take_no_memory(logged: Log) -> None:
    limit = LineLimit(1, lambda: logged.now)
    for number in range(10_000):
        limit(None, "info", {"event": "x", "service": f"ns/{number}"})
        logged.now += 1.0
    assert len(limit._windows) <= WINDOW


def test_without_a_limit_everything_is_logged() -> None:
    before = structlog.get_config()
    out = io.StringIO()
    with redirect_stderr(out):
        logs.configure()
        for _ in range(200):
            log.warning("service_degraded", service="ns/bad")
    structlog.configure(**before)
    assert len(out.getvalue().splitlines()) == 200
