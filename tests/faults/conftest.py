"""One site per mode; every test starts kproxy on it itself. What became of the faults is told at the end."""

from collections.abc import Generator, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from kproxy_lab import uml
from tests.faults.report import add_to, table
from tests.faults.selection import RESULTS
from tests.faults.site import Counts, Site
from tests.packets import conftest as packets
from tests.packets.cluster import Cluster
from tests.suite import mounts

_capable = packets._capable
mode = packets.mode
spare_cluster = packets.spare_cluster
pytest_configure = packets.pytest_configure


PATIENCE = 900
"""Seconds for a test in a user-mode kernel: on a busy machine the longest took five minutes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if uml.inside() and here in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(PATIENCE))


@pytest.fixture(scope="session")
def session_site(spare_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Site:
    mounts.needed()
    return Site(spare_cluster, tmp_path_factory.mktemp("site"))


@pytest.fixture
def site(request: pytest.FixtureRequest, session_site: Site) -> Iterator[Site]:
    """The mode's site in good order; the program of the test before may still run."""
    session_site.renew()
    yield session_site
    session_site.tools.bring_back()
    session_site.tools.behave()
    session_site.sockets.behave()
    session_site.cluster.api.faults.clear()
    request.node.user_properties.extend(("fault", asdict(counts)) for counts in session_site.counts)
    session_site.counts.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    made = getattr(item, "funcargs", {}).get("site")
    if report.failed and isinstance(made, Site) and made.cluster.program is not None:
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
