from pathlib import Path
from typing import Literal

import pytest

from tests.failures import Failures


def reported(
    nodeid: str, outcome: Literal["passed", "failed"], when: Literal["setup", "call"]
) -> pytest.TestReport:
    return pytest.TestReport(nodeid, ("tests/test_a.py", 1, "a"), {}, outcome, None, when)


def written(
    path: Path, reports: list[pytest.TestReport], status: pytest.ExitCode = pytest.ExitCode.TESTS_FAILED
) -> list[str]:
    """The ids that a session with these reports leaves in the file."""
    failures = Failures(path)
    for report in reports:
        failures.pytest_runtest_logreport(report)
    failures.pytest_sessionfinish(status)
    return path.read_text().splitlines() if path.exists() else []


def test_what_failed_is_named_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "failed"
    reports = [
        reported("a.py::test[node port]", "failed", "setup"),
        reported("a.py::test[node port]", "failed", "call"),
        reported("a.py::fine", "passed", "call"),
    ]
    assert written(path, reports) == ["a.py::test[node port]"]
    assert written(path, reports[2:], pytest.ExitCode.OK) == []


@pytest.mark.parametrize(
    ("failed", "status"),
    [(21, pytest.ExitCode.TESTS_FAILED), (1, pytest.ExitCode.INTERRUPTED), (0, pytest.ExitCode.TESTS_FAILED)],
    ids=["too many", "not the end", "none of the tests"],
)
def test_what_no_second_run_can_tell_is_not_named(
    tmp_path: Path, failed: int, status: pytest.ExitCode
) -> None:
    reports = [reported(f"a.py::test_{n}", "failed", "call") for n in range(failed)]
    assert written(tmp_path / "failed", reports, status) == []
