"""One site per mode; every test starts kproxy on it itself. What became of the faults is told at the end."""

from collections.abc import Iterator
from dataclasses import asdict

import pytest

from tests.faults.report import table
from tests.faults.site import Counts, Site
from tests.packets import conftest as packets
from tests.packets.cluster import Cluster
from tests.packets.conftest import (  # noqa: F401 - fixtures and hooks
    _capable,
    mode,
    pytest_configure,
    pytest_runtest_makereport,
    spare_cluster,
)

spare = packets.spare


@pytest.fixture
def site(
    request: pytest.FixtureRequest, spare: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    made = Site(spare, tmp_path_factory.mktemp("site"))
    yield made
    request.node.user_properties.extend(("fault", asdict(counts)) for counts in made.counts)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts = [
        Counts(**value)
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == "fault"
    ]
    if counts:
        terminalreporter.section("faults")
        for line in table(counts):
            terminalreporter.line(line)
