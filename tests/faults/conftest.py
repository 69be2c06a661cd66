"""One fault bench per mode; every test starts kproxy on it. A summary of all faults is printed at the end."""

from collections.abc import Generator, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from kproxy_lab import uml
from tests.faults.bench import Counts, FaultBench
from tests.faults.report import add_to, table
from tests.faults.selection import RESULTS
from tests.packets import conftest as packets
from tests.packets.cluster import Cluster
from tests.suite import mounts

_capable = packets._capable
mode = packets.mode
spare_cluster = packets.spare_cluster
pytest_configure = packets.pytest_configure


PATIENCE = 900
"""Timeout of a test in a user-mode kernel in seconds: on a busy machine the longest took five minutes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if uml.inside() and here in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(PATIENCE))


@pytest.fixture(scope="session")
def session_bench(spare_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> FaultBench:
    mounts.needed()
    return FaultBench(spare_cluster, tmp_path_factory.mktemp("bench"))


@pytest.fixture
def bench(request: pytest.FixtureRequest, session_bench: FaultBench) -> Iterator[FaultBench]:
    """The mode's bench with new services and no fault; the process of the previous test may still run."""
    session_bench.renew()
    yield session_bench
    session_bench.tools.install()
    session_bench.tools.disable()
    session_bench.sockets.disable()
    session_bench.cluster.api.faults.clear()
    request.node.user_properties.extend(("fault", asdict(counts)) for counts in session_bench.counts)
    session_bench.counts.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    made = getattr(item, "funcargs", {}).get("bench")
    if report.failed and isinstance(made, FaultBench) and made.cluster.program is not None:
        report.sections.append(("kproxy log, last lines", "\n".join(made.cluster.program.log[-40:])))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts = [
        Counts(**value)
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == "fault"
    ]
    if counts and RESULTS is not None:
        add_to(RESULTS, counts)
    if counts:
        terminalreporter.section("faults")
        for line in table(counts):
            terminalreporter.line(line)
