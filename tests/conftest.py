"""The whole suite's plugins (tests/suite) and what every test needs."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

from kproxy.addresses import Family
from kproxy.kernel.ipvs.netlink import NetlinkIpvs
from kproxy.kernel.ipvs.types import IpvsError
from kproxy_lab import uml
from tests.suite import kernels, signals
from tests.suite.matrix import SEED, Matrix
from tests.suite.outcome import Recorder
from tests.suite.skips import Skips


@pytest.fixture(autouse=True)
def _own_log_configuration() -> Iterator[None]:
    """Restore the configuration of logs: a command that runs in this process sets its own level."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture(scope="session", autouse=True)
def _own_xtables_lock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A lock file for each worker: one worker's tests that hold the lock are no fault of another's node."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XTABLES_LOCKFILE", str(tmp_path_factory.mktemp("lock") / "xtables.lock"))
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--ipvs-kernels",
        type=int,
        default=min(2, os.cpu_count() or 1),
        help="user-mode kernels to boot for tests that need IPVS, where the running one has none; 0: skip",
    )
    parser.addoption("--outcome-to", type=Path, help="write what passed, failed and was lost to this file")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "ipvs: needs a kernel with IPVS; runs in a user-mode kernel elsewhere")
    config.addinivalue_line("markers", "slow: takes many seconds; user-mode kernels begin with these")
    config.addinivalue_line(
        "markers",
        "alternates(parameter, ...): a mode gets every second value, the next one the others",
    )
    # How long an example takes says nothing on a busy machine; without a seed, each run tries the same ones.
    settings.register_profile("suite", deadline=None, derandomize=not SEED, print_blob=True)
    settings.load_profile("suite")
    signals.restore()
    config.pluginmanager.register(Matrix())
    if kernels.REPORTS in os.environ:
        reports, taken = (Path(os.environ[name]) for name in (kernels.REPORTS, kernels.TAKEN))
        config.pluginmanager.register(kernels.GuestRunner(config, reports, taken))
        return
    is_worker = hasattr(config, "workerinput")
    recorder = None
    if not is_worker:
        config.pluginmanager.register(Skips())
        if path := config.getoption("--outcome-to"):
            recorder = Recorder(path)
            config.pluginmanager.register(recorder)
    reason = _no_ipvs()
    if not reason:
        return
    with_workers = is_worker or bool(getattr(config.option, "numprocesses", None))
    looks = config.option.collectonly or config.option.help
    cannot = (
        uml.missing()
        or ("" if config.getoption("--ipvs-kernels") else "--ipvs-kernels is 0")
        or os.environ.get(kernels.NONE, "")
    )
    if not cannot and with_workers and not is_worker and not looks and (cannot := uml.boot_failure()):
        os.environ[kernels.NONE] = cannot
    if cannot:
        config.pluginmanager.register(kernels.KernelUnavailable(f"{reason}; and {cannot}"))
        return
    elsewhere = kernels.IpvsDeselector(tried=with_workers or looks)
    config.pluginmanager.register(elsewhere)
    if not is_worker and not looks:
        config.pluginmanager.register(kernels.Kernels(config, elsewhere, recorder))


def _no_ipvs() -> str:
    """Why the running kernel's IPVS cannot be used; "" if it can."""
    if not Path("/proc/net/ip_vs").exists() and os.geteuid() != 0:
        return "this kernel has no IPVS"
    try:
        NetlinkIpvs().servers(Family.IPV4)
    except IpvsError as error:
        return str(error)
    return ""
