"""Runner: a program ends by itself, or with a stop, a time limit or its starter, and no OSError gets out."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kproxy.addresses import Family
from kproxy.kernel import processes
from kproxy.kernel.processes import FailureReason, ProcessError, Runner, StopEvent
from kproxy.kernel.xtables.detect import find_tools
from kproxy.kernel.xtables.lock import lock_file_in_use
from kproxy.kernel.xtables.programs import SubprocessXtables, XtablesTools
from kproxy.kernel.xtables.types import FailureKind, RestoreError, Variant, XtablesUnavailable
from tests.kernel.namespace import fresh_network

PATIENCE = 60.0
"""Seconds after which something will not happen any more."""

NO_DESCRIPTORS = [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN]


def program(directory: Path, body: str) -> str:
    """A program that is a shell script."""
    path = directory / "program"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


class Hung:
    """A program that never ends, with a child in its group, and would leave a file if it went on."""

    def __init__(self, directory: Path) -> None:
        self._pids = directory / "pids"
        os.mkfifo(self._pids)
        self.later = directory / "later"
        self.path = program(
            directory,
            f"trap '' TERM INT HUP\nsleep 600 &\necho $$ $! > {self._pids}\n"
            f"wait\nsleep 600\ntouch {self.later}",
        )

    def pidfds(self) -> list[int]:
        """Wait until it runs; descriptors of its processes, which are readable once they have ended."""
        return [os.pidfd_open(int(pid)) for pid in self._pids.read_text().split()]


def ended(pidfd: int) -> bool:
    """Wait for the end of a process; False if it does not come."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    try:
        return bool(poller.poll(PATIENCE * 1000))
    finally:
        os.close(pidfd)


@pytest.fixture(params=["guarded", "not guarded", "without pidfd_open"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With setpriv, where it is not installed, and on a kernel before 5.3."""
    if request.param == "not guarded":
        monkeypatch.setattr(processes, "_GUARD", "no-such-program")
    elif request.param == "without pidfd_open":

        def refuse(pid: int) -> int:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        monkeypatch.setattr(os, "pidfd_open", refuse)
    return str(request.param)


@pytest.mark.usefixtures("kind")
def test_input_output_and_status_are_the_programs(tmp_path: Path) -> None:
    text = b"x" * 3_000_000
    found = Runner().run([program(tmp_path, "cat; echo trouble >&2; exit 3")], text)
    assert (found.status, found.stdout == text, found.stderr) == (3, True, b"trouble\n")
    assert Runner().run([program(tmp_path, "kill -9 $$")]).status == -9


def test_a_program_that_closes_its_streams_or_leaves_a_child_behind_is_waited_for(tmp_path: Path) -> None:
    path = program(tmp_path, "sleep 600 & echo $!; exec >&- 2>&-; exit 7")
    found = Runner().run([path], timeout=PATIENCE)
    assert found.status == 7
    os.kill(int(found.stdout), signal.SIGKILL)


def test_a_stop_ends_a_hung_program_with_its_group(tmp_path: Path, kind: str) -> None:
    if kind == "without pidfd_open":
        pytest.skip("the test itself needs pidfd_open")
    hung, stop = Hung(tmp_path), StopEvent()
    caught: list[ProcessError] = []

    def run() -> None:
        try:
            Runner(stop).run([hung.path])
        except ProcessError as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    pidfds = hung.pidfds()
    stop.set()
    thread.join(PATIENCE)
    assert [error.reason for error in caught] == [FailureReason.UNFINISHED]
    assert "kproxy is stopping" in caught[0].message
    assert all(map(ended, pidfds))
    assert not hung.later.exists()


@pytest.mark.usefixtures("kind")
def test_a_stop_lets_a_program_end_that_is_about_to(tmp_path: Path) -> None:
    stop = StopEvent()
    threading.Timer(0.05, stop.set).start()
    assert Runner(stop).run([program(tmp_path, "sleep 0.4; exit 5")]).status == 5
    assert stop.is_set()


def test_after_a_stop_no_program_is_started(tmp_path: Path) -> None:
    stop = StopEvent()
    stop.set()
    with pytest.raises(ProcessError, match="was not started") as caught:
        Runner(stop).run([program(tmp_path, f"touch {tmp_path}/started")])
    assert caught.value.reason is FailureReason.NOT_STARTED
    assert not (tmp_path / "started").exists()


def test_a_time_limit_ends_a_program_with_its_group(tmp_path: Path) -> None:
    hung = Hung(tmp_path)
    reader: list[list[int]] = []
    thread = threading.Thread(target=lambda: reader.append(hung.pidfds()))
    thread.start()
    with pytest.raises(ProcessError, match="did not finish in 1 s") as caught:
        Runner().run([hung.path], timeout=1)
    thread.join(PATIENCE)
    assert caught.value.reason is FailureReason.UNFINISHED
    assert all(map(ended, reader[0]))


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv (util-linux) is not installed")
@pytest.mark.parametrize("stopped", [False, True])
def test_a_program_dies_with_its_starter(tmp_path: Path, stopped: bool) -> None:
    hung = Hung(tmp_path)
    code = f"from kproxy.kernel.processes import Runner; Runner().run([{hung.path!r}])"
    with subprocess.Popen([sys.executable, "-c", code]) as starter:
        pidfd, child = hung.pidfds()
        if stopped:
            signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
        starter.kill()
    assert ended(pidfd)
    assert not hung.later.exists()
    signal.pidfd_send_signal(child, signal.SIGKILL)
    os.close(child)


def test_a_guard_without_the_option_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    busybox = Path(program(tmp_path / "bin", "echo 'unrecognized option' >&2; exit 1"))
    busybox.rename(tmp_path / "bin" / "setpriv")
    monkeypatch.setattr(processes, "PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    assert Runner().run([program(tmp_path, "echo here")]).stdout == b"here\n"


# What cannot be run ----------------------------------------------------------------------------------


def not_executable(directory: Path) -> str:
    path = program(directory, "")
    Path(path).chmod(0o644)
    return path


def no_interpreter(directory: Path) -> str:
    path = Path(program(directory, ""))
    path.write_text("#!/no/such/shell\n")
    return str(path)


@pytest.mark.parametrize(
    "make",
    [lambda d: f"{d}/gone", not_executable, no_interpreter, str],
    ids=["missing", "not executable", "no interpreter", "a directory"],
)
@pytest.mark.usefixtures("kind")
def test_what_is_no_program_is_absent(tmp_path: Path, make: Callable[[Path], str]) -> None:
    path = make(tmp_path)
    with pytest.raises(ProcessError, match=f"cannot run {path}: ") as caught:
        Runner().run([path])
    assert caught.value.reason is FailureReason.ABSENT


@pytest.mark.usefixtures("kind")
def test_a_program_that_is_being_written_can_be_started_later(tmp_path: Path) -> None:
    path = tmp_path / "program"
    shutil.copy("/bin/true", path)
    runner = Runner()
    with path.open("r+b"), pytest.raises(ProcessError, match="Text file busy") as caught:
        runner.run([str(path)])
    assert caught.value.reason is FailureReason.NOT_STARTED
    assert runner.run([str(path)]).status == 0


@pytest.mark.parametrize("number", NO_DESCRIPTORS)
@pytest.mark.parametrize("call", ["memfd_create", "Popen", "pidfd_open"])
def test_no_error_of_the_system_gets_out(monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    def fail(*_: object, **__: object) -> object:
        raise OSError(number, os.strerror(number))

    runner = Runner()
    runner.run(["/bin/true"])
    with monkeypatch.context() as patch:
        patch.setattr(subprocess if call == "Popen" else os, call, fail)
        with pytest.raises(ProcessError) as caught:
            runner.run(["/bin/true"])
    # Once a program was started, it may have done what it was to do.
    expected = FailureReason.UNFINISHED if call == "pidfd_open" else FailureReason.NOT_STARTED
    assert caught.value.reason is expected
    assert runner.run(["/bin/true"]).status == 0


def open_descriptors() -> list[int]:
    return [int(each.name) for each in Path("/proc/self/fd").iterdir()]


@contextlib.contextmanager
def few_descriptors(free: int) -> Iterator[None]:
    """Leave so many descriptors free."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(open_descriptors())
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 20, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        for _ in range(free):
            os.close(taken.pop())
        yield
    finally:
        for each in taken:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_with_any_number_of_free_descriptors_it_works_or_fails_and_leaks_none(tmp_path: Path) -> None:
    path, runner = program(tmp_path, "echo here"), Runner()
    outcomes: list[bool] = []
    before = len(open_descriptors())
    for free in range(12):
        with few_descriptors(free):
            try:
                outcomes.append(runner.run([path]).stdout == b"here\n")
            except ProcessError:
                outcomes.append(False)
        assert len(open_descriptors()) == before
    assert outcomes == sorted(outcomes)
    assert (outcomes[0], outcomes[-1]) == (False, True)


# What becomes of it above ----------------------------------------------------------------------------


@pytest.mark.parametrize("number", NO_DESCRIPTORS)
def test_a_program_that_could_not_be_started_is_a_failed_write(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object, **__: object) -> object:
        raise OSError(number, os.strerror(number))

    xtables = SubprocessXtables(
        Family.IPV4, XtablesTools("/bin/true", "/bin/true", Variant.LEGACY, (1, 8, 9)), runner=Runner()
    )
    monkeypatch.setattr(subprocess, "Popen", fail)
    with pytest.raises(RestoreError, match=os.strerror(number)) as caught:
        xtables.restore(b"")
    assert caught.value.kind is FailureKind.OTHER
    with pytest.raises(RestoreError):
        xtables.save()


def test_a_stop_interrupts_a_hung_program(tmp_path: Path) -> None:
    stop = StopEvent()
    path = program(tmp_path, "exec sleep 600")
    tools = XtablesTools(path, path, Variant.LEGACY, (1, 8, 9))
    xtables = SubprocessXtables(Family.IPV4, tools, runner=Runner(stop))
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(RestoreError) as caught:
        xtables.restore(b"")
    assert caught.value.kind is FailureKind.INTERRUPTED


@fresh_network
def test_a_stop_ends_the_wait_for_the_xtables_lock() -> None:
    try:
        tools = find_tools(Family.IPV4, Variant.LEGACY, probe=False)
    except XtablesUnavailable as error:
        pytest.skip(error.reason)
    stop = StopEvent()
    xtables = SubprocessXtables(Family.IPV4, tools, lock_wait=600, runner=Runner(stop))
    lock_file = lock_file_in_use()
    lock_file.touch()
    with lock_file.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        threading.Timer(0.2, stop.set).start()
        began = time.monotonic()
        with pytest.raises(RestoreError, match="kproxy is stopping"):
            xtables.restore(b"*filter\n:LATER - [0:0]\nCOMMIT\n")
        assert time.monotonic() - began < PATIENCE
    assert b"LATER" not in SubprocessXtables(Family.IPV4, tools).save()
