"""One shared cluster per mode, a spare one for tests that stop, damage or reconfigure kproxy."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager

import pytest

from kproxy_lab.lab import Lab
from kproxy_lab.lab.topology import Family
from tests.packets.cluster import Cluster, build
from tests.packets.modes import MODES, Capability, Mode
from tests.packets.objects import FAMILIES, FAMILY_NAMES


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(capability, ...): skip in modes that lack a capability")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    for value in getattr(item, "funcargs", {}).values() if report.failed else ():
        if isinstance(value, Cluster) and value.program is not None:
            report.sections.append(("kproxy log, last lines", "\n".join(value.program.log[-40:])))
    return report


@pytest.fixture(scope="session", params=MODES, ids=str)
def mode(request: pytest.FixtureRequest) -> Mode:
    chosen: Mode = request.param
    if reasons := Lab.missing(chosen.spec()):
        pytest.skip("; ".join(reasons))
    return chosen


@pytest.fixture(autouse=True)
def _capable(request: pytest.FixtureRequest) -> None:
    for marker in request.node.iter_markers("needs"):
        own: Mode = request.getfixturevalue("mode")
        for capability in marker.args:
            assert isinstance(capability, Capability)
            if capability not in own.capabilities:
                pytest.skip(f"mode {own} lacks {capability.value}")


@pytest.fixture(params=FAMILIES, ids=FAMILY_NAMES.get)
def family(request: pytest.FixtureRequest) -> Family:
    chosen: Family = request.param
    return chosen


@contextmanager
def _cluster(mode: Mode, temporary: pytest.TempPathFactory) -> Iterator[Cluster]:
    with build(mode, temporary.mktemp("kproxy")) as made:
        if reasons := mode.missing(made.lab):
            pytest.skip("; ".join(reasons))
        yield made


@pytest.fixture(scope="session")
def shared_cluster(mode: Mode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with _cluster(mode, tmp_path_factory) as made:
        yield made


@pytest.fixture(scope="session")
def spare_cluster(mode: Mode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with _cluster(mode, tmp_path_factory) as made:
        yield made


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Iterator[Cluster]:
    """The shared cluster with kproxy running; what a test writes is deleted after it."""
    if shared_cluster.program is None or not shared_cluster.program.running:
        shared_cluster.start()
    yield shared_cluster
    shared_cluster.forget()


@pytest.fixture
def spare(spare_cluster: Cluster) -> Iterator[Cluster]:
    """Another cluster, in which every test starts kproxy itself."""
    yield spare_cluster
    spare_cluster.stop()
    spare_cluster.forget()
