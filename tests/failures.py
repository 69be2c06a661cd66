"""Writes down which tests failed, so that `make test` can run these once more by themselves.

Thousands of tests with real packets and real time limits share a machine that others may starve; what fails
beside others and passes alone is told twice and counts as passed, and what fails twice fails.
"""

from pathlib import Path

import pytest

_MANY = 20
"""More failures than this are of the code or of the machine, and no second run would tell more."""


class Failures:
    """Writes the node ids of tests that failed to a file, one a line; none without failures or with many."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        self._failed: dict[str, None] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed[report.nodeid] = None

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if exitstatus == pytest.ExitCode.TESTS_FAILED and 0 < len(self._failed) <= _MANY:
            self._path.write_text("".join(f"{nodeid}\n" for nodeid in self._failed), encoding="utf-8")
