"""One kproxy per network namespace: an abstract unix socket is the lock and identifies its holder.

Rules belong to a network namespace, and so do the names of abstract sockets (unix(7)): a pod on the host's
network, a `kubectl exec` into it and a command on the host find each other, though they share neither files
nor process ids. The kernel frees the name when its process ends, however it ends.

The socket only gives information. A command that ends a kproxy sends it a signal, which the kernel permits or
denies.
"""

import contextlib
import os
import selectors
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Self

import msgspec
import structlog

log = structlog.stdlib.get_logger(__name__)

NAME = "\0kproxy.io/instance"

WAIT = 5.0
"""Seconds for which a start waits for a running kproxy: the signal to end it may be on its way."""
WAIT_STOPPING = 90.0
"""Seconds for which a start waits for a stopping kproxy: it may have to remove all of its rules."""

CLEAN_UP_ON_EXIT = signal.SIGUSR1
"""Asks a kproxy to remove its rules when it ends."""
CLEAN_UP_NOW = signal.SIGUSR2
"""Asks a kproxy to remove its rules and end."""

_ANSWER = 2.0
"""Seconds within which a holder identifies itself."""
_IDENTIFY = 1.0
"""Seconds after which a socket that accepts no connection does not count as a kproxy's."""
_ACCEPT_AGAIN = 1.0
"""Seconds until the next accept after one failed, as without a free descriptor."""
_WATCHERS = 64
"""The number of connections kept open, for clients that wait for the end of this process."""
_LINE = 4096
_CREDENTIALS = struct.Struct("3i")


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


class InstanceRunning(Exception):
    """Another kproxy holds the lock; the message names it."""

    def __init__(self, holder: Holder) -> None:
        super().__init__(f"another kproxy runs in this network namespace ({holder})")
        self.holder = holder


class Connection:
    """A connection to the holder, which lasts as long as it holds the lock."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._rest = b""
        pid, uid, _ = _CREDENTIALS.unpack(
            stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
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


class Instance:
    """The lock of this network namespace, held from `acquire` until the end of the block.

    Any thread may change `report`; connected clients receive each change.
    """

    def __init__(
        self, command: str, version: str, mode: Callable[[], str] = str, *, stopping: bool = False
    ) -> None:
        self._mode = mode
        self._report = Report(os.getpid(), _now(), version, command, stopping=stopping)
        self._listener: socket.socket | None = None
        self._wake, self._woken = socket.socketpair()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._wake.close()
        if self._thread is not None:
            self._thread.join()
        self._woken.close()
        if self._listener is not None:
            self._listener.close()

    def acquire(self, *, wait: float = WAIT, wait_stopping: float = WAIT_STOPPING) -> None:
        """Take the lock; wait some seconds for another kproxy to end. Raises InstanceRunning.

        Another user's process that holds the name is ignored: it must not leave a node without a proxy.
        """
        began = time.monotonic()
        logged = False
        while not self._bind():
            with connection() as found:
                holder = _holder(found)
                if holder is None:
                    # The holder is gone already, or is about to listen on the socket that it has bound.
                    if time.monotonic() - began < max(wait, _IDENTIFY):
                        time.sleep(0.01)
                        continue
                    log.warning("instance_lock_unusable", effect="a second kproxy would not be noticed")
                    return
                if holder.uid not in {0, os.geteuid()}:
                    log.warning(
                        "instance_lock_unusable",
                        pid=holder.pid,
                        uid=holder.uid,
                        reason="a process of another user holds its name",
                        effect="a second kproxy would not be noticed",
                    )
                    return
                if not logged and wait > 0:
                    logged = True
                    log.info("waiting_for_other_kproxy", holder=str(holder), seconds=wait)
                _wait_for_end(found, holder, began, wait, wait_stopping)
        if logged:
            log.info("other_kproxy_ended", seconds=round(time.monotonic() - began, 3))

    def follow(self, mode: Callable[[], str]) -> None:
        """Call `mode` for the mode from now on; any thread may call this."""
        self._mode = mode

    def update(self, *, stopping: bool | None = None, cleanup_on_exit: bool | None = None) -> None:
        """Change the report; may be called from any thread."""
        report = self._report
        self._report = msgspec.structs.replace(
            report,
            stopping=report.stopping if stopping is None else stopping,
            cleanup_on_exit=report.cleanup_on_exit if cleanup_on_exit is None else cleanup_on_exit,
        )
        with contextlib.suppress(OSError):
            self._wake.send(b"x")

    def _bind(self) -> bool:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(NAME)
            listener.listen(_WATCHERS)
        except OSError:
            listener.close()
            return False
        listener.settimeout(0)
        self._listener = listener
        self._thread = threading.Thread(target=self._serve, args=(listener,), name="instance", daemon=True)
        self._thread.start()
        return True

    def _serve(self, listener: socket.socket) -> None:
        """Send the report to each client that connects; input from clients is not read."""
        watchers: set[socket.socket] = set()
        paused = False
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            selector.register(listener, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select(_ACCEPT_AGAIN if paused else None)}
                if paused:
                    paused = False
                    selector.register(listener, selectors.EVENT_READ)
                if self._woken in ready:
                    if not self._woken.recv(1):
                        break
                    for watcher in [each for each in watchers if not self._send_report(each)]:
                        self._drop(selector, watchers, watcher)
                for watcher in watchers & ready:
                    self._drop(selector, watchers, watcher)
                if listener in ready:
                    try:
                        watcher, _ = listener.accept()
                    except OSError as error:
                        log.warning("instance_accept_failed", reason=error.strerror)
                        selector.unregister(listener)
                        paused = True
                        continue
                    watcher.settimeout(0)
                    if self._send_report(watcher) and _is_trusted(watcher) and len(watchers) < _WATCHERS:
                        watchers.add(watcher)
                        selector.register(watcher, selectors.EVENT_READ)
                    else:
                        watcher.close()
        for watcher in watchers:
            watcher.close()

    def _send_report(self, watcher: socket.socket) -> bool:
        report = msgspec.structs.replace(self._report, mode=self._mode())
        try:
            watcher.send(msgspec.json.encode(report) + b"\n")
        except OSError:
            return False
        return True

    @staticmethod
    def _drop(selector: selectors.BaseSelector, watchers: set[socket.socket], watcher: socket.socket) -> None:
        selector.unregister(watcher)
        watchers.discard(watcher)
        watcher.close()


def _holder(found: Connection | None) -> Holder | None:
    if found is None:
        return None
    try:
        return found.holder()
    except EOFError:
        return None


def _wait_for_end(
    found: Connection | None, holder: Holder, began: float, wait: float, wait_stopping: float
) -> None:
    """Return when the holder has ended. Raises InstanceRunning after the timeout."""
    assert found is not None  # noqa: S101 - there is a holder
    report = holder.report
    while True:
        stopping = report is not None and report.stopping
        left = began + (wait_stopping if stopping else wait) - time.monotonic()
        if left <= 0:
            raise InstanceRunning(msgspec.structs.replace(holder, report=report))
        try:
            report = found.next(left) or report
        except EOFError:
            return


def _is_trusted(stream: socket.socket) -> bool:
    """Whether a connection is root's or this user's: those of other users are answered and closed."""
    _, uid, _ = _CREDENTIALS.unpack(
        stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    return uid in {0, os.geteuid()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
