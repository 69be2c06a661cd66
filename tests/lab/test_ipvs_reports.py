import json

import pytest

from tests.suite.kernels import reread


def test_a_skip_that_another_kernel_reported_can_be_listed(pytestconfig: pytest.Config) -> None:
    skip = ("tests/test_a.py", 12, "Skipped: no such module")
    told = pytest.TestReport(
        "tests/test_a.py::test_a", ("tests/test_a.py", 12, "test_a"), {}, "skipped", skip, "setup"
    )
    line = json.dumps(pytestconfig.hook.pytest_report_to_serializable(config=pytestconfig, report=told))
    read = reread(pytestconfig, line)
    assert (read.nodeid, read.outcome, read.longrepr) == (told.nodeid, "skipped", skip)
