"""Run a program until it exits, or kill it: it never outlives the caller, a time limit or a stop.

Input and output are memory files, so neither side waits for the other to drain a pipe, and poll(2) waits for
both the program's exit and a stop. A program is killed with its process group, by SIGKILL, and reaped: it
commits nothing afterwards.

The kernel also kills the program if this process dies (PR_SET_PDEATHSIG). The child has to set that between
fork and exec, and Python code there would need a full fork: 8 ms with 150 MB of memory, and unsafe beside
other threads. `setpriv` of util-linux sets it and executes the program: 0.8 ms. If it is not installed,
programs run without it. The signal depends on the thread that started the program, which here waits for it.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import io
import os
import select
import shutil
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Sequence
from typing import NamedTuple

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Search path for programs, independent of the caller's PATH."""

TIMEOUT = 300.0
"""Time limit of a program in seconds; kube-proxy allows an iptables command five minutes."""

GRACE = 1.0
"""Seconds that a program may continue after a stop, so that one that is about to exit can do so."""

_REAP_SECONDS = 1.0
_SLICE = 0.25  # seconds between checks for a stop if the kernel has no pidfd_open (before 5.3)
_GUARD = "setpriv"
_EXEC_STATUS = (126, 127)  # util-linux: EX_EXEC_FAILED, EX_EXEC_ENOENT
_UNUSABLE = frozenset(
    {
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
        *(errno.EACCES, errno.EPERM, errno.ENOEXEC),
    }
)


class FailureReason(enum.Enum):
    """Why a program did not run until its exit."""

    ABSENT = enum.auto()
    """It is not installed or not executable: nothing was done, and a retry is useless."""
    NOT_STARTED = enum.auto()
    """It could not be started now, e.g. for lack of descriptors or memory: nothing was done."""
    UNFINISHED = enum.auto()
    """It was killed before its exit: the outcome is unknown."""


class ProcessError(Exception):
    """A program did not run until its exit; the message names the program and the reason."""

    def __init__(self, reason: FailureReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Ended(NamedTuple):
    """Result of a program: `status` is the exit status, or the negative number of the ending signal."""

    status: int
    stdout: bytes
    stderr: bytes


class StopEvent(threading.Event):
    """An event that poll(2) can wait for. Once it is set, it stays set. The constructor may raise OSError."""

    def __init__(self) -> None:
        super().__init__()
        self._descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        weakref.finalize(self, os.close, self._descriptor)

    def set(self) -> None:
        """Set the event; the descriptor becomes readable."""
        super().set()
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self._descriptor, 1)

    def clear(self) -> None:
        """Raise NotImplementedError: a stop is final."""
        raise NotImplementedError

    def fileno(self) -> int:
        """The descriptor; it is readable once the event is set."""
        return self._descriptor


class Runner:
    """Runs programs until the optional `stop` is set; may be used by several threads."""

    def __init__(self, stop: StopEvent | None = None) -> None:
        self._stop = stop
        self._guard: tuple[str, ...] | None = None

    def run(self, argv: Sequence[str], stdin: bytes = b"", timeout: float = TIMEOUT) -> Ended:
        """Run a program, an absolute path and its arguments, for at most `timeout` seconds.

        Raises ProcessError, never OSError.
        """
        if self._guard is None:
            self._guard = self._find_guard()
        ended = self._run([*self._guard, *argv], stdin, timeout, argv[0])
        if self._guard and ended.status in _EXEC_STATUS:
            self._raise_if_not_executed(ended, argv[0])
        return ended

    def _find_guard(self) -> tuple[str, ...]:
        """The command prefix that sets PR_SET_PDEATHSIG; empty if setpriv is missing or lacks the option."""
        path = shutil.which(_GUARD, path=PATH)
        if path is None:
            return ()
        guard = (path, "--pdeathsig", "KILL", "--")
        # Busybox has a program of this name without the option.
        try:
            ended = self._run([*guard, path, "--version"], b"", TIMEOUT, path)
        except ProcessError as error:
            if error.reason is not FailureReason.ABSENT:
                raise
            return ()
        return guard if ended.status == 0 else ()

    def _run(self, argv: Sequence[str], stdin: bytes, timeout: float, name: str) -> Ended:
        if self._stop is not None and self._stop.is_set():
            raise ProcessError(FailureReason.NOT_STARTED, f"{name} was not started: kproxy is stopping")
        with contextlib.ExitStack() as files:
            try:
                standard_input = files.enter_context(_memory_file("stdin", stdin))
                output = files.enter_context(_memory_file("stdout"))
                errors = files.enter_context(_memory_file("stderr"))
                process = subprocess.Popen(
                    argv,
                    stdin=standard_input,
                    stdout=output,
                    stderr=errors,
                    env=_environment(),
                    process_group=0,
                )
            except OSError as error:
                raise _not_started(name, error) from error
            try:
                status = self._wait(process, timeout, name)
                return Ended(status, _content(output), _content(errors))
            except OSError as error:
                raise ProcessError(FailureReason.UNFINISHED, f"{name}: {error.strerror or error}") from error
            finally:
                if process.returncode is None:
                    _end(process)

    def _wait(self, process: subprocess.Popen[bytes], timeout: float, name: str) -> int:
        deadline = time.monotonic() + timeout
        reason = f"did not finish in {timeout:g} s"
        stopping = False
        with contextlib.ExitStack() as opened:
            poller, ending = select.poll(), _end_descriptor(process.pid)
            if ending is not None:
                opened.callback(os.close, ending)
                poller.register(ending, select.POLLIN)
            if self._stop is not None:
                poller.register(self._stop, select.POLLIN)
            while (left := deadline - time.monotonic()) > 0:
                ready = [number for number, _ in poller.poll((left if ending is not None else 0) * 1000)]
                if ending in ready:
                    return process.wait()
                if ending is None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        return process.wait(min(left, _SLICE))
                if self._stop is not None and not stopping and self._stop.is_set():
                    stopping = True
                    poller.unregister(self._stop)
                    sooner = time.monotonic() + GRACE
                    if sooner < deadline:
                        deadline, reason = sooner, "was ended: kproxy is stopping"
        raise ProcessError(FailureReason.UNFINISHED, f"{name} {reason}")

    @staticmethod
    def _raise_if_not_executed(ended: Ended, name: str) -> None:
        text = ended.stderr.decode("utf-8", "replace").strip()
        start = f"{_GUARD}: failed to execute {name}: "
        if text.startswith(start):
            reason = text.removeprefix(start)
            code = next((code for code in errno.errorcode if os.strerror(code) == reason), errno.EIO)
            raise _not_started(name, OSError(code, reason))


def _not_started(name: str, error: OSError) -> ProcessError:
    kind = FailureReason.ABSENT if error.errno in _UNUSABLE else FailureReason.NOT_STARTED
    return ProcessError(kind, f"cannot run {name}: {error.strerror or error}")


def _end_descriptor(pid: int) -> int | None:
    """Return a descriptor that is readable once the process has exited; None if the kernel has no pidfd."""
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in {errno.ENOSYS, errno.EPERM}:
            return None
        raise


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a running program with its process group, and reap it.

    One that does not exit in time, e.g. in an uninterruptible system call, is reaped by a later start of a
    program (subprocess keeps a list).
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_REAP_SECONDS)


def _memory_file(name: str, content: bytes = b"") -> io.FileIO:
    file = io.FileIO(os.memfd_create(name, os.MFD_CLOEXEC), "r+")
    try:
        left = memoryview(content)
        while left:
            left = left[file.write(left) or 0 :]
        file.seek(0)
    except OSError:
        file.close()
        raise
    return file


def _content(file: io.FileIO) -> bytes:
    file.seek(0)
    return file.read()


def _environment() -> dict[str, str]:
    # XTABLES_LOCKFILE and XTABLES_LIBDIR must be the same for every iptables program on the node.
    passed = {name: value for name, value in os.environ.items() if name.startswith("XTABLES_")}
    return {**passed, "LC_ALL": "C", "PATH": PATH}
