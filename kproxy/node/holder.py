"""The holder of a network namespace's lock, as other processes see it: who it is, its reports, signals to it.

See instance.py for the lock. The socket only gives information. A command that ends a kproxy sends it a
signal, which the kernel permits or denies.
"""

import contextlib
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator

import msgspec

NAME = "\0kproxy.io/instance"

_ANSWER = 2.0
"""Seconds within which a holder identifies itself."""
_LINE = 4096
CREDENTIALS = struct.Struct("3i")
"""struct ucred of SO_PEERCRED: pid, uid, gid (socket(7))."""


class Report(msgspec.Struct, frozen=True):
    """The report of a holder, sent as one line of JSON at each change; `since` is RFC 3339.

    `pid` is the one in the holder's own PID namespace. `command` is how it was started; `stopping`: it is
    about to end; `cleanup_on_exit`: it removes its rules then.
    """

    pid: int
    since: str
    version: str
    command: str = "run"
    mode: str = ""
    stopping: bool = False
    cleanup_on_exit: bool = False


class Holder(msgspec.Struct, frozen=True):
    """The holder of the lock: `pid` and `uid` from the kernel, None if they cannot be seen here.

    `report` is None if it does not answer.
    """

    pid: int | None
    uid: int | None
    report: Report | None

    def __str__(self) -> str:
        if self.pid is not None:
            who = f"pid {self.pid}"
        elif self.report is not None:
            who = f"pid {self.report.pid} of another PID namespace, as in a container"
        else:
            who = "a process of another PID namespace"
        if self.report is None:
            return f"{who}, which does not answer"
        mode = f", mode {self.report.mode}" if self.report.mode else ""
        ending = ", stopping" if self.report.stopping else ""
        return f"{who}: kproxy {self.report.command}{mode}, since {self.report.since}{ending}"


class Connection:
    """A connection to the holder, which lasts as long as it holds the lock."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._rest = b""
        pid, uid, _ = CREDENTIALS.unpack(
            stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
        )
        self._pid = pid or None
        self._uid = uid

    def holder(self) -> Holder:
        """The holder; waits for its first report."""
        return Holder(self._pid, self._uid, self.next(_ANSWER))

    def next(self, timeout: float) -> Report | None:
        """Wait for the next report; None after the timeout. Raises EOFError when the holder has ended."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self._rest:
            self._stream.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self._stream.recv(_LINE)
            except TimeoutError:
                return None
            except OSError as error:
                raise EOFError from error
            if not data:
                raise EOFError
            self._rest += data
            if len(self._rest) > _LINE:
                return None
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            return msgspec.json.decode(line, type=Report)
        except msgspec.DecodeError:
            return None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the holder and to no other process. Raises EOFError, or OSError on failure."""
        if self._pid is None:
            raise ProcessLookupError("its process cannot be seen from here")
        descriptor = os.pidfd_open(self._pid)
        try:
            # Without an EOF the holder lives, so the descriptor is its own and not that of a successor.
            self._drain()
            signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)

    def _drain(self) -> None:
        """Read the data that has arrived. Raises EOFError when the holder has ended."""
        self._stream.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while len(self._rest) <= _LINE:
                data = self._stream.recv(_LINE)
                if not data:
                    raise EOFError
                self._rest += data

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()


@contextlib.contextmanager
def connection() -> Iterator[Connection | None]:
    """A connection to the kproxy of this network namespace; None if none runs or it accepts none."""
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stream.settimeout(_ANSWER)
    try:
        stream.connect(NAME)
    except OSError:
        stream.close()
        yield None
        return
    found = Connection(stream)
    try:
        yield found
    finally:
        found.close()
