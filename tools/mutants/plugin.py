"""The pytest plugin of `make mutants`: records which test executes which line, and selects tests.

With KPROXY_MUTANTS_RECORD=DIRECTORY each process of pytest writes `.coverage` data with a context per test,
and the first one writes `tests.json`: the seconds and the outcome of each test. A kproxy that a test starts
finds the name of the test in KPROXY_MUTANTS_TEST and measures itself (site/sitecustomize.py). With
KPROXY_MUTANTS_TESTS=FILE only the tests that the file names run, in its order.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import coverage
import pytest

RECORD: Final = "KPROXY_MUTANTS_RECORD"
TEST: Final = "KPROXY_MUTANTS_TEST"
TESTS: Final = "KPROXY_MUTANTS_TESTS"


class _Recorder:
    """Measures lines per test in this process, and in the first one writes what became of each test."""

    def __init__(self, directory: Path, *, is_worker: bool) -> None:
        self._directory = directory
        self._is_worker = is_worker
        self._seconds: dict[str, float] = {}
        self._failed: set[str] = set()
        self._coverage = coverage.Coverage(
            data_file=str(directory / ".coverage"), data_suffix=True, source=["kproxy"], config_file=False
        )
        self._coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._coverage.switch_context(item.nodeid)
        os.environ[TEST] = item.nodeid
        yield
        del os.environ[TEST]
        self._coverage.switch_context("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid] = self._seconds.get(report.nodeid, 0) + report.duration
        if not report.passed:
            self._failed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        self._coverage.stop()
        self._coverage.save()
        if not self._is_worker:
            passed = {test: took for test, took in self._seconds.items() if test not in self._failed}
            (self._directory / "tests.json").write_text(
                json.dumps({"passed": passed, "not passed": sorted(self._failed)}), encoding="utf-8"
            )


class _Selection:
    """Runs the listed tests only, in the order of the list."""

    def __init__(self, path: Path) -> None:
        self._place = {test: place for place, test in enumerate(path.read_text("utf-8").splitlines())}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        chosen = [item for item in items if item.nodeid in self._place]
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in self._place])
        items[:] = sorted(chosen, key=lambda item: self._place[item.nodeid])


def pytest_configure(config: pytest.Config) -> None:
    """Install what the environment asks for."""
    if directory := os.environ.get(RECORD):
        config.pluginmanager.register(
            _Recorder(Path(directory), is_worker=hasattr(config, "workerinput")), "mutants-recorder"
        )
    if tests := os.environ.get(TESTS):
        config.pluginmanager.register(_Selection(Path(tests)), "mutants-selection")
