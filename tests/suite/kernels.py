"""Runs tests that need IPVS in a user-mode kernel and includes their reports in the session's.

Where the running kernel has no IPVS, the session boots user-mode kernels beside its own work, runs the tests
marked `ipvs` in them, and replays their reports. A kernel that ends early, or a test without a report, is a
loss that no rerun can clear (tests/suite/outcome.py). Where no kernel can be booted, the tests skip.
"""

import json
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from kproxy_lab import forkserver, uml
from tests.suite.outcome import Recorder

NONE = "KPROXY_NO_IPVS_KERNEL"
"""Environment variable: why no kernel boots here, for workers of pytest-xdist."""
REPORTS = "KPROXY_IPVS_REPORTS"
TAKEN = "KPROXY_IPVS_TAKEN"
_SUITE = {"KPROXY_EXPLAIN", "KPROXY_FAULTS", "KPROXY_KILLS", "KPROXY_MATRIX"}
"""Variables that select how much of the suite runs: tests/suite/matrix.py, tests/faults/selection.py."""
_PATIENCE = 10000.0 if _SUITE & os.environ.keys() else 1500.0


class KernelUnavailable:
    """Skips tests that need IPVS with the reason why no kernel boots."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if item.get_closest_marker("ipvs"):
            pytest.skip(self._reason)


class IpvsDeselector:
    """Deselects tests that run in user-mode kernels; `found`: this process collected some.

    With workers of pytest-xdist a kernel was tried before they started; without, it is tried when a test
    needs one. If it does not boot, the tests stay and skip.
    """

    def __init__(self, *, tried: bool) -> None:
        self.found = False
        self._tried = tried

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        there = [item for item in items if item.get_closest_marker("ipvs")]
        if there and not self._tried and (reason := uml.boot_failure()):
            config.pluginmanager.register(KernelUnavailable(reason))
            return
        self.found = bool(there)
        if there:
            config.hook.pytest_deselected(items=there)
            items[:] = [item for item in items if not item.get_closest_marker("ipvs")]


class GuestRunner:
    """Runs tests inside a user-mode kernel and writes their reports to a file.

    A test belongs to the kernel that first creates the directory of its number in `taken`, so that no kernel
    is idle while another has tests left. (`mkdir` is atomic across kernels on one file system; O_EXCL is
    not.) Slow tests come first, so that all kernels end at about the same time.
    """

    def __init__(self, config: pytest.Config, path: Path, taken: Path) -> None:
        self._config = config
        self._path = path
        self._taken = taken
        self._stack = ExitStack()

    def pytest_sessionstart(self) -> None:
        """Start a process that imports kproxy during collection; tests fork it to start kproxy."""
        patch = self._stack.enter_context(pytest.MonkeyPatch.context())
        directory = self._stack.enter_context(TemporaryDirectory())
        socket = Path(directory) / "kproxy"
        self._stack.enter_context(forkserver.serving(socket))
        patch.setenv(forkserver.SOCKET, str(socket))

    def pytest_sessionfinish(self) -> None:
        self._stack.close()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        _collected(self._path).write_text(
            json.dumps([item.nodeid for item in session.items]), encoding="utf-8"
        )

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


def _collected(reports: Path) -> Path:
    return reports.with_suffix(".collected")


def _asked_for() -> dict[str, str]:
    """Return the environment variables that select how much of the suite runs."""
    return {name: os.environ[name] for name in _SUITE & os.environ.keys()}


def reread(config: pytest.Config, line: str) -> pytest.TestReport:
    """Return the report in a line of JSON; pytest's list of skips needs a tuple, which JSON does not have."""
    report = config.hook.pytest_report_from_serializable(config=config, data=json.loads(line))
    assert isinstance(report, pytest.TestReport), line
    reason_parts: object = report.longrepr
    if isinstance(reason_parts, list):
        path, number, reason = reason_parts
        report.longrepr = (path, number, reason)
    return report


Boot = Callable[..., int]
"""`uml.run`, or a fake of it."""


class Guest:
    """One kernel, running beside this session."""

    def __init__(
        self, number: int, arguments: Sequence[str], path: Path, taken: Path, boot: Boot = uml.run
    ) -> None:
        self.path = path
        self._number = number
        self.lines: list[str] = []
        self.failure = ""
        self._arguments = arguments
        self._taken = taken
        self._boot = boot
        self._thread = threading.Thread(target=self._run, name="ipvs-kernel", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join()

    def collected(self) -> list[str]:
        """Return the ids of the collected tests, in order."""
        path = _collected(self.path)
        found: list[str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        return found

    def reports(self) -> list[str]:
        """Return its reports, a line of JSON each."""
        return self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []

    def _run(self) -> None:
        environment = {REPORTS: str(self.path), TAKEN: str(self._taken), **_asked_for()}
        try:
            status = self._boot(
                self._arguments,
                timeout=_PATIENCE,
                environment=environment,
                on_line=self.lines.append,
                number=self._number,
            )
        except (uml.UmlUnavailable, uml.UmlDied, TimeoutError, OSError) as error:
            self.failure = str(error)
            return
        if status not in {0, 1, 5}:
            self.failure = f"pytest ended with status {status}:\n" + "\n".join(self.lines[-60:])


def losses(guests: Sequence[Guest], ended: set[str]) -> list[str]:
    """Return lost work: failures of guests, different collections, tests without a report."""
    found = [f"an IPVS kernel failed: {guest.failure}" for guest in guests if guest.failure]
    lists = [guest.collected() for guest in guests if not guest.failure]
    if any(each != lists[0] for each in lists[1:]):
        found.append("the IPVS kernels collected different tests")
    unreported = sorted({nodeid for each in lists for nodeid in each} - ended)
    if unreported:
        found.append(f"{len(unreported)} tests without a report of an IPVS kernel: {', '.join(unreported)}")
    return found


class Kernels:
    """Boots the kernels, and replays their reports when the session's own tests are done.

    With workers of pytest-xdist they boot at the start, for this process collects nothing; without workers
    once a test that needs one is found.
    """

    def __init__(self, config: pytest.Config, elsewhere: IpvsDeselector, recorder: Recorder | None) -> None:
        self._config = config
        self._elsewhere = elsewhere
        self._recorder = recorder
        self._directory = TemporaryDirectory(prefix="kproxy-ipvs-")
        self._guests: list[Guest] = []
        self._lost: list[str] = []
        if getattr(config.option, "numprocesses", None):
            self._boot()

    def _boot(self) -> None:
        directory = Path(self._directory.name)
        (directory / "taken").mkdir()
        self._guests = [
            Guest(n, self._arguments(), directory / f"{n}.jsonl", directory / "taken")
            for n in range(self._config.getoption("--ipvs-kernels"))
        ]

    def pytest_collection_finish(self) -> None:
        if self._elsewhere.found and not self._guests:
            self._boot()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        result = yield
        ended = set()
        for guest in self._guests:
            guest.join()
            for report in self._reports(guest):
                if report.when == "teardown":
                    ended.add(report.nodeid)
                session.testscollected += report.when == "call" or report.outcome == "skipped"
                session.config.hook.pytest_runtest_logreport(report=report)
        # With --maxfail, a kernel ends before its tests do.
        self._lost = [] if session.shouldfail or session.shouldstop else losses(self._guests, ended)
        for lost in self._lost:
            session.testsfailed += 1
            if self._recorder is not None:
                self._recorder.lose(lost)
        return result

    def pytest_unconfigure(self) -> None:
        self._directory.cleanup()

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for lost in self._lost:
            terminalreporter.section("IPVS kernels", red=True)
            terminalreporter.line(lost)

    def _arguments(self) -> list[str]:
        option = self._config.option
        marks = f"({option.markexpr}) and ipvs" if option.markexpr else "ipvs"
        arguments = [sys.executable, "-m", "pytest", "-m", marks]
        if option.keyword:
            arguments += ["-k", option.keyword]
        if option.maxfail:
            arguments += ["--maxfail", str(option.maxfail)]
        for name, values in (("--ignore", option.ignore), ("--deselect", option.deselect)):
            arguments += [f"{name}={value}" for value in values or ()]
        return [*arguments, *self._config.args]

    def _reports(self, guest: Guest) -> Iterator[pytest.TestReport]:
        return (reread(self._config, line) for line in guest.reports())
