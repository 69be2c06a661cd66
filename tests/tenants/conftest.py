"""One rig per mode, on which every attack is made. A table of all attacks is printed at the end."""

from collections.abc import Generator, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.packets import conftest as packets
from tests.packets.cluster import Cluster
from tests.tenants.report import add_to, table
from tests.tenants.rig import PATIENT, Counts, TenantRig
from tests.tenants.selection import RESULTS, SEED

_capable = packets._capable
mode = packets.mode
spare_cluster = packets.spare_cluster
pytest_configure = packets.pytest_configure


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(PATIENT))


@pytest.fixture(scope="session")
def session_rig(spare_cluster: Cluster) -> Iterator[TenantRig]:
    made = TenantRig(spare_cluster)
    yield made
    made.stop()


@pytest.fixture
def rig(request: pytest.FixtureRequest, session_rig: TenantRig) -> Iterator[TenantRig]:
    """The mode's rig without objects of the attacker; the process of the previous test may still run."""
    yield session_rig
    for counts in session_rig.counts:
        request.node.user_properties.append(("tenant", asdict(counts)))
        if counts.lost or not counts.same:
            session_rig.renew()
    session_rig.counts.clear()
    session_rig.attacker.vanish()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    made = getattr(item, "funcargs", {}).get("rig")
    if report.failed and isinstance(made, TenantRig) and made.cluster.program is not None:
        report.sections.append(("kproxy log, last lines", "\n".join(made.cluster.program.log[-40:])))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts = [
        Counts(**value)
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == "tenant"
    ]
    if counts and RESULTS is not None:
        add_to(RESULTS, counts)
    if counts:
        terminalreporter.section(f"tenants (KPROXY_TENANTS_SEED={SEED})")
        for line in table(counts):
            terminalreporter.line(line)
