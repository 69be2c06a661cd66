"""A kproxy that was forked from the preloaded process of forkserver.py, with the interface of a Popen."""

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Protocol, Self

SOCKET: Final = "KPROXY_PRELOADED"
COMMAND: Final = (sys.executable, "-m", "kproxy")
"""The beginning of the command lines that can be forked."""


class Child(Protocol):
    """A program that was started: what a Popen of bytes and a Process have in common."""

    pid: int
    returncode: int | None

    @property
    def stdin(self) -> IO[bytes] | None:
        """The stream to its standard input, if it is a pipe."""

    @property
    def stdout(self) -> IO[bytes] | None:
        """The stream of its standard output, if it is a pipe."""

    @property
    def stderr(self) -> IO[bytes] | None:
        """The stream of its standard error, if it is a pipe."""

    def poll(self) -> int | None:
        """Return the exit status; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises subprocess.TimeoutExpired."""

    def communicate(self, input: bytes | None = None, timeout: float | None = None) -> tuple[bytes, bytes]:  # noqa: A002
        """Write input, read both outputs, wait. Raises subprocess.TimeoutExpired."""

    def send_signal(self, number: int, /) -> None:
        """Send a signal, unless it has ended."""

    def terminate(self) -> None:
        """Send SIGTERM."""

    def kill(self) -> None:
        """Send SIGKILL."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Close its pipes and wait for its end."""


def available(argv: Sequence[str]) -> bool:
    """Return whether this command line runs kproxy and there is a process to fork it from."""
    return SOCKET in os.environ and tuple(argv[: len(COMMAND)]) == COMMAND


class Process:
    """A kproxy in a network namespace, forked from the preloaded process, with the interface of Popen.

    It is not a child of this process, so the preloaded process reports its exit status. Streams are as in
    subprocess.Popen, in bytes. Raises OSError when the preloaded process is not there.
    """

    def __init__(
        self,
        argv: Sequence[str],
        namespace: Path,
        *,
        stdin: int | IO[bytes] | None = None,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
    ) -> None:
        self.args = argv
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = None
        self.stderr: IO[bytes] | None = None
        self.returncode: int | None = None
        self._lock = threading.Lock()  # held by the one thread that waits for the status
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = {
            "arguments": list(argv[len(COMMAND) :]),
            "environment": dict(env if env is not None else os.environ),
            "directory": str(cwd or Path.cwd()),
        }
        with contextlib.ExitStack() as failed, contextlib.ExitStack() as passed:
            failed.callback(self._close)
            files = [self._stream(passed, number, to) for number, to in enumerate((stdin, stdout, stderr))]
            descriptor = os.open(namespace, os.O_RDONLY)
            passed.callback(os.close, descriptor)
            self._server.connect(os.environ[SOCKET])
            socket.send_fds(self._server, [json.dumps(request).encode()], [*files, descriptor])
            reply = self._server.recv(64)
            if not reply:
                raise ConnectionError(f"{os.environ[SOCKET]}: the preloaded process is gone")
            self.pid = int(reply)
            failed.pop_all()

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while the process runs."""
        if self.returncode is None and self._lock.acquire(blocking=False):
            with contextlib.ExitStack() as locked:
                locked.callback(self._lock.release)
                self._read_status(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit status. Raises subprocess.TimeoutExpired."""
        ends = None if timeout is None else time.monotonic() + timeout
        if self.returncode is None and self._lock.acquire(timeout=-1 if timeout is None else timeout):
            with contextlib.ExitStack() as locked:
                locked.callback(self._lock.release)
                self._read_status(None if ends is None else max(0.0, ends - time.monotonic()))
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self.returncode

    def communicate(
        self,
        input: bytes | None = None,  # noqa: A002 - as in subprocess
        timeout: float | None = None,
    ) -> tuple[bytes, bytes]:
        """Write `input`, at most a pipe's capacity, read both outputs to their ends, and wait.

        Raises subprocess.TimeoutExpired.
        """
        ends = None if timeout is None else time.monotonic() + timeout
        if self.stdin is not None:
            self.stdin.write(input or b"")
            self.stdin.close()
        found = {1: bytearray(), 2: bytearray()}
        with selectors.DefaultSelector() as selector:
            for number, stream in ((1, self.stdout), (2, self.stderr)):
                if stream is not None:
                    selector.register(stream, selectors.EVENT_READ, number)
            while selector.get_map():
                left = None if ends is None else ends - time.monotonic()
                if left is not None and left <= 0:
                    raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
                for key, _ in selector.select(left):
                    data = os.read(key.fd, 65536)
                    found[key.data] += data
                    if not data:
                        selector.unregister(key.fileobj)
        self.wait(None if ends is None else max(0.0, ends - time.monotonic()))
        return bytes(found[1]), bytes(found[2])

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        self.wait()

    def _stream(self, passed: contextlib.ExitStack, number: int, to: int | IO[bytes] | None) -> int:
        """The descriptor of a standard stream to pass on; those that are opened here are closed after it."""
        if to is None:
            return number
        if to == subprocess.DEVNULL:
            descriptor = os.open(os.devnull, os.O_RDWR)
            passed.callback(os.close, descriptor)
            return descriptor
        if to != subprocess.PIPE:
            return to if isinstance(to, int) else to.fileno()
        read, write = os.pipe()
        own, others = (write, read) if number == 0 else (read, write)
        passed.callback(os.close, others)
        if number == 0:
            self.stdin = os.fdopen(own, "wb", buffering=0)
        elif number == 1:
            self.stdout = os.fdopen(own, "rb")
        else:
            self.stderr = os.fdopen(own, "rb")
        return others

    def _read_status(self, timeout: float | None) -> None:
        """Wait for the status for at most `timeout` seconds. The caller holds the lock."""
        if self.returncode is not None:
            return
        self._server.settimeout(timeout)
        try:
            reply = self._server.recv(64)
        except (BlockingIOError, TimeoutError):
            return
        self._server.close()
        if not reply:
            raise ConnectionError(f"the preloaded process is gone, and with it the status of {self.pid}")
        self.returncode = os.waitstatus_to_exitcode(int(reply))

    def _close(self) -> None:
        for stream in (self.stdin, self.stdout, self.stderr, self._server):
            if stream is not None:
                stream.close()


def run(
    argv: Sequence[str], namespace: Path, *, timeout: float, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run kproxy to its end, as `subprocess.run` does, with its output captured as text.

    Raises subprocess.TimeoutExpired after `timeout` seconds.
    """
    pipe = subprocess.PIPE
    with Process(argv, namespace, stdout=pipe, stderr=pipe, env=env) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(argv, process.wait(), stdout.decode(), stderr.decode())
