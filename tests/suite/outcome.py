"""Records the outcome of a session, for the program that decides whether to rerun failed tests.

A rerun can clear a failed test. It cannot clear a session that lost part of its work: a user-mode kernel that
ended early, a worker that died, a file that could not be collected. These are recorded separately as `lost`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a session.

    `failed` maps the node id of each failed test to its output; `passed` has the ids of those that passed;
    `lost` describes work without a report, one text each.
    """

    passed: frozenset[str] = frozenset()
    failed: Mapping[str, str] = field(default_factory=dict)
    lost: tuple[str, ...] = ()


class Recorder:
    """Collects reports and writes the Outcome to a file when the session ends; without an end, no file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        self._passed: set[str] = set()
        self._failed: dict[str, list[str]] = {}
        self._lost: list[str] = []

    def lose(self, what: str) -> None:
        """Record work that ended without a report."""
        self._lost.append(what)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            text = [f"{report.when}:", report.longreprtext]
            text += [f"--- {title} ---\n{content}" for title, content in report.sections]
            self._failed.setdefault(report.nodeid, []).extend(text)
        elif report.passed and report.when == "call":
            self._passed.add(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.lose(f"{report.nodeid or 'the tests'}: not collected:\n{report.longreprtext}")

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object, error: object) -> None:
        """A worker of pytest-xdist has ended; `error` is None if it was asked to."""
        if error:
            self.lose(f"worker {getattr(getattr(node, 'gateway', None), 'id', '?')} ended: {error}")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Write the outcome; pytest calls this at every end except a kill."""
        failed = {nodeid: "\n".join(text) for nodeid, text in self._failed.items()}
        passed = sorted(self._passed - failed.keys())
        self._path.write_text(
            json.dumps({"passed": passed, "failed": failed, "lost": self._lost}), encoding="utf-8"
        )


def read(path: Path) -> Outcome:
    """Return the Outcome that a Recorder wrote; without a file, one that says that all work was lost."""
    if not path.exists():
        return Outcome(lost=("pytest did not come to its end",))
    data = json.loads(path.read_text(encoding="utf-8"))
    return Outcome(frozenset(data["passed"]), data["failed"], tuple(data["lost"]))
