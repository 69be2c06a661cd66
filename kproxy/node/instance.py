"""One kproxy per network namespace: an abstract unix socket is the lock and identifies its holder.

Rules belong to a network namespace, and so do the names of abstract sockets (unix(7)): a pod on the host's
network, a `kubectl exec` into it and a command on the host find each other, though they share neither files
nor process ids. The kernel frees the name when its process ends, however it ends.
"""

import contextlib
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Self

import msgspec
import structlog

from kproxy.node.holder import NAME, Connection, Holder, Report, connection
from kproxy.node.local_socket import is_trusted

log = structlog.stdlib.get_logger(__name__)

WAIT = 5.0
"""Seconds for which a start waits for a running kproxy: the signal to end it may be on its way."""
WAIT_STOPPING = 90.0
"""Seconds for which a start waits for a stopping kproxy: it may have to remove all of its rules."""

CLEAN_UP_ON_EXIT = signal.SIGUSR1
"""Asks a kproxy to remove its rules when it ends."""
CLEAN_UP_NOW = signal.SIGUSR2
"""Asks a kproxy to remove its rules and end."""

_IDENTIFY = 1.0
"""Seconds after which a socket that accepts no connection does not count as a kproxy's."""
_ACCEPT_AGAIN = 1.0
"""Seconds until the next accept after one failed, as without a free descriptor."""
_WATCHERS = 64
"""The number of connections kept open, for clients that wait for the end of this process."""

_is_trusted = is_trusted


class InstanceRunning(Exception):
    """Another kproxy holds the lock; the message names it."""

    def __init__(self, holder: Holder) -> None:
        super().__init__(f"another kproxy runs in this network namespace ({holder})")
        self.holder = holder


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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
