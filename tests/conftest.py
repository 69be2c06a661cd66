"""Tests that need IPVS run in a kernel that has it, and count in the one report.

Where the running kernel has no IPVS, the session boots user-mode kernels beside its own work, runs the tests
marked `ipvs` in them, and replays what they report. Where none can be booted, they skip with the reason.
"""

import json
import os
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from kproxy.addresses import Family
from kproxy.kernel.ipvs.netlink import NetlinkIpvs
from kproxy.kernel.ipvs.types import IpvsError
from kproxy.testing import preloaded, uml
from tests.failures import Failures

_REPORTS = "KPROXY_IPVS_REPORTS"
_TAKEN = "KPROXY_IPVS_TAKEN"
_SUITE = {"KPROXY_FAULTS", "KPROXY_KILLS"}
"""How much of the faults suite is wanted: tests/faults/selection.py."""
_PATIENCE = 10000.0 if _SUITE & os.environ.keys() else 1500.0


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
    parser.addoption(
        "--failed-to", type=Path, help="write the ids of tests that failed to this file, if they are few"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "ipvs: needs a kernel with IPVS; runs in a user-mode kernel elsewhere")
    if _REPORTS in os.environ:
        config.pluginmanager.register(_Inside(config, Path(os.environ[_REPORTS]), Path(os.environ[_TAKEN])))
        return
    is_worker = hasattr(config, "workerinput")
    failed_to = config.getoption("--failed-to")
    if failed_to is not None and not is_worker:
        config.pluginmanager.register(Failures(failed_to))
    reason = _no_ipvs()
    if not reason:
        return
    cannot = uml.missing() or ("" if config.getoption("--ipvs-kernels") else "--ipvs-kernels is 0")
    if cannot:
        config.pluginmanager.register(_Nowhere(f"{reason}; and {cannot}"))
        return
    config.pluginmanager.register(_Elsewhere())
    if not is_worker and not config.option.collectonly and not config.option.help:
        config.pluginmanager.register(_Kernels(config))


def _no_ipvs() -> str:
    """Why the running kernel's IPVS cannot be used; "" if it can."""
    if not Path("/proc/net/ip_vs").exists() and os.geteuid() != 0:
        return "this kernel has no IPVS"
    try:
        NetlinkIpvs().servers(Family.IPV4)
    except IpvsError as error:
        return str(error)
    return ""


class _Nowhere:
    """There is no kernel with IPVS to be had."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if item.get_closest_marker("ipvs"):
            pytest.skip(self._reason)


class _Elsewhere:
    """The tests run in kernels of their own."""

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        there = [item for item in items if item.get_closest_marker("ipvs")]
        if there:
            config.hook.pytest_deselected(items=there)
            items[:] = [item for item in items if not item.get_closest_marker("ipvs")]


class _Inside:
    """The inside of such a kernel: take one test after the other, and write down every report.

    A test belongs to the kernel that first makes the directory of its number in `taken`, so that none is idle
    while another has tests left. (`mkdir` is atomic across kernels on one file system; O_EXCL is not.)
    """

    def __init__(self, config: pytest.Config, path: Path, taken: Path) -> None:
        self._config = config
        self._path = path
        self._taken = taken
        self._stack = ExitStack()

    def pytest_sessionstart(self) -> None:
        """Have a process import kproxy while this one collects: it is forked where tests start kproxy."""
        patch = self._stack.enter_context(pytest.MonkeyPatch.context())
        directory = self._stack.enter_context(TemporaryDirectory())
        socket = Path(directory) / "kproxy"
        self._stack.enter_context(preloaded.serving(socket))
        patch.setenv(preloaded.SOCKET, str(socket))

    def pytest_sessionfinish(self) -> None:
        self._stack.close()

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        mine = (item for number, item in enumerate(session.items) if self._take(number))
        item = next(mine, None)
        while item is not None:
            following = next(mine, None)
            self._config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)
            item = following
        return True

    def _take(self, number: int) -> bool:
        try:
            (self._taken / str(number)).mkdir()
        except FileExistsError:
            return False
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(data) + "\n")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            raise pytest.UsageError(f"collecting {report.nodeid}: {report.longreprtext}")


def _asked_for() -> dict[str, str]:
    """How much of the faults suite is wanted."""
    return {name: os.environ[name] for name in _SUITE & os.environ.keys()}


def reread(config: pytest.Config, line: str) -> pytest.TestReport:
    """The report that a line of JSON holds; JSON knows no tuples, and pytest's list of skips wants one."""
    report = config.hook.pytest_report_from_serializable(config=config, data=json.loads(line))
    assert isinstance(report, pytest.TestReport), line
    told: object = report.longrepr
    if isinstance(told, list):
        path, number, reason = told
        report.longrepr = (path, number, reason)
    return report


class _Guest:
    """One kernel, running beside this session."""

    def __init__(self, number: int, arguments: list[str], path: Path, taken: Path) -> None:
        self.path = path
        self._number = number
        self.lines: list[str] = []
        self.failure = ""
        self._arguments = arguments
        self._taken = taken
        self._thread = threading.Thread(target=self._run, name="ipvs-kernel", daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        environment = {_REPORTS: str(self.path), _TAKEN: str(self._taken), **_asked_for()}
        try:
            status = uml.run(
                self._arguments,
                timeout=_PATIENCE,
                environment=environment,
                tell=self.lines.append,
                number=self._number,
            )
        except (uml.UmlUnavailable, uml.UmlDied, TimeoutError, OSError) as error:
            self.failure = str(error)
            return
        if status not in {0, 1, 5}:
            self.failure = f"pytest ended with status {status}:\n" + "\n".join(self.lines[-60:])


class _Kernels:
    """Boots the kernels when the session starts, and replays their reports when its own tests are done."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._directory = TemporaryDirectory(prefix="kproxy-ipvs-")
        directory = Path(self._directory.name)
        (directory / "taken").mkdir()
        self._guests = [
            _Guest(n, self._arguments(), directory / f"{n}.jsonl", directory / "taken")
            for n in range(config.getoption("--ipvs-kernels"))
        ]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        result = yield
        for guest in self._guests:
            guest.join()
            for report in self._reports(guest):
                session.testscollected += report.when == "call" or report.outcome == "skipped"
                session.config.hook.pytest_runtest_logreport(report=report)
            if guest.failure:
                session.testsfailed += 1
                self._config.issue_config_time_warning(pytest.PytestWarning(guest.failure), 1)
        return result

    def pytest_unconfigure(self) -> None:
        self._directory.cleanup()

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for guest in self._guests:
            if guest.failure:
                terminalreporter.section("IPVS kernel", red=True)
                terminalreporter.line(guest.failure)

    def _arguments(self) -> list[str]:
        option = self._config.option
        marks = f"({option.markexpr}) and ipvs" if option.markexpr else "ipvs"
        arguments = [sys.executable, "-m", "pytest", "-m", marks]
        if option.keyword:
            arguments += ["-k", option.keyword]
        if option.maxfail:
            arguments += ["--maxfail", str(option.maxfail)]
        return [*arguments, *self._config.args]

    def _reports(self, guest: _Guest) -> Iterator[pytest.TestReport]:
        if not guest.path.exists():
            return
        for line in guest.path.read_text(encoding="utf-8").splitlines():
            yield reread(self._config, line)
