"""Serve many HTTP clients on one thread, so that slow clients use no threads and few descriptors.

Open connections are bounded, per listener and in total. When a bound is reached, the oldest unfinished
connection of the client with the most connections is closed in favour of the new one: slow clients cannot
block a kubelet's probe, which is answered within milliseconds. The whole request has one deadline, and the
client's reading of the answer another; arriving bytes extend neither.

An answer that takes long (a scrape) is computed on a thread of its own: see runs.py.
"""

import contextlib
import errno
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from http import HTTPStatus

import structlog

from kproxy.telemetry.http.connection import Admits, Connection, Listener, Payload, Queue, Respond, Stage
from kproxy.telemetry.http.message import Answer, BadRequest, Request, head, plain_error, read_request
from kproxy.telemetry.http.runs import Runs

log = structlog.stdlib.get_logger(__name__)

REQUEST_SECONDS = 10.0
"""The limit for a whole request, from the connection on."""
ANSWER_SECONDS = 30.0
"""The limit for the client's reading of the whole answer."""
LINGER_SECONDS = 2.0
"""The limit for a client that still sends after its answer."""
ACCEPT_AGAIN = 1.0
"""Seconds until connections are accepted again after a lack of descriptors or memory."""
UNREAD_BYTES = 32 << 20
"""Bytes of answers in memory that clients have not read; beyond that the slowest reader is closed."""

_ACCEPTED_AT_ONCE = 32
_EVENTS_AT_ONCE = 256
_RECEIVED_AT_ONCE = 1 << 16
_LARGE = 1 << 14
"""Bodies of more bytes are not copied for each connection, and count as unread."""
_LINE_SHOWN = 200
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER that discards unsent data (socket(7))."""


class HttpLoop:
    """Serves listeners; each `turn` handles the pending events. `limit` bounds all open connections.

    `name` is for the log. All methods except `call` must run on the thread that calls `turn`. The constructor
    may raise OSError.
    """

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._epoll = select.epoll()
        try:
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError:
            self._epoll.close()
            raise
        self._epoll.register(self._wake, select.EPOLLIN)
        self._calls: deque[Callable[[], None]] = deque()
        self._closing = threading.Lock()
        self._listeners: dict[int, Listener] = {}
        self._connections: dict[int, Connection] = {}
        self._queue = Queue(limit)
        self._paused: dict[Listener, float] = {}
        self._runs = Runs(name, self.call, self._answer)
        self._unread = 0
        self._now = time.monotonic()

    def call(self, function: Callable[[], None]) -> None:
        """Call `function` on the loop's thread; may be called from any thread, and after the end."""
        self._calls.append(function)
        with self._closing:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def listen(
        self, sock: socket.socket, respond: Respond, limit: int, admits: Admits | None = None
    ) -> Listener:
        """Serve a listening socket and take over its ownership. Raises OSError."""
        sock.settimeout(0)
        listener = Listener(sock, respond, limit, admits)
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        self._listeners[sock.fileno()] = listener
        return listener

    def close(self, listener: Listener) -> None:
        """Stop listening; its connections are served to their end."""
        self._paused.pop(listener, None)
        if self._listeners.pop(listener.socket.fileno(), None) is not None:
            self._close(listener.socket)

    def turn(self, longest_wait: float | None) -> None:
        """Wait for events for at most `longest_wait` seconds (None: no limit), and handle them."""
        timeout = self._timeout(longest_wait)
        events = self._epoll.poll(timeout, _EVENTS_AT_ONCE)
        self._now = time.monotonic()
        accepting: list[Listener] = []
        for number, event in events:  # answer complete requests before accepting new clients
            if number == self._wake:
                os.eventfd_read(self._wake)
            elif (listener := self._listeners.get(number)) is not None:
                accepting.append(listener)
            elif (connection := self._connections.get(number)) is not None:
                self._advance(connection, event)
        while self._calls:
            self._calls.popleft()()
        self._expire()
        for listener in accepting:
            if listener.socket.fileno() >= 0:
                self._accept(listener)

    def end(self) -> None:
        """Close everything."""
        for connection in self._queue.all():
            self._drop(connection)
        for listener in list(self._listeners.values()):
            self.close(listener)
        with self._closing:
            self._epoll.close()
            os.close(self._wake)
            self._wake = -1

    # -- time

    def _timeout(self, longest_wait: float | None) -> float | None:
        now = time.monotonic()
        waits = [] if longest_wait is None else [longest_wait]
        waits += [until - now for until in self._paused.values()]
        for stage, seconds in _seconds():
            if (first := self._queue.first(stage)) is not None:
                waits.append(first.entered + seconds - now)
        return None if not waits else max(0.0, min(waits))

    def _expire(self) -> None:
        for stage, seconds in _seconds():
            while (first := self._queue.first(stage)) is not None and self._now >= first.entered + seconds:
                self._drop(first)
        for listener in [each for each, until in self._paused.items() if self._now >= until]:
            del self._paused[listener]
            with contextlib.suppress(OSError):
                self._epoll.modify(listener.socket.fileno(), select.EPOLLIN)

    # -- accepting

    def _accept(self, listener: Listener) -> None:
        gave_way = False
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                sock, address = listener.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    continue  # the client is gone already, or a firewall does not let it in (accept(2))
                victim = None if gave_way else self._queue.victim()
                if victim is None:
                    self._pause(listener, error)
                    return
                gave_way = True
                self._drop(victim)
                continue
            if listener.admits is not None and not listener.admits(sock):
                sock.close()
                continue
            self._admit(listener, sock, str(address[0]) if address else "local")

    def _admit(self, listener: Listener, sock: socket.socket, client: str) -> None:
        for queue in (listener.connections, self._queue):
            if queue.full and (victim := queue.victim()) is not None:
                self._drop(victim)
        try:
            sock.settimeout(0)
            self._epoll.register(sock.fileno(), select.EPOLLIN)
        except OSError:
            sock.close()
            return
        connection = Connection(sock, client, listener, self._queue, self._now)
        self._connections[sock.fileno()] = connection
        self._read(connection)

    def _pause(self, listener: Listener, error: OSError) -> None:
        """Stop accepting for a while, because an immediate retry would fail again."""
        if not self._paused:
            log.warning("accept_failed", server=self._name, reason=error.strerror, retry_seconds=ACCEPT_AGAIN)
        self._paused[listener] = self._now + ACCEPT_AGAIN
        self._epoll.modify(listener.socket.fileno(), 0)

    # -- one connection

    def _advance(self, connection: Connection, event: int) -> None:
        if connection.stage is Stage.READING:
            self._read(connection)
        elif connection.stage is Stage.LINGERING:
            self._discard(connection)
        elif event & (select.EPOLLHUP | select.EPOLLERR):
            self._drop(connection)
        else:
            self._write(connection)

    def _read(self, connection: Connection) -> None:
        try:
            data = connection.socket.recv(_RECEIVED_AT_ONCE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(connection)
            return
        connection.data += data
        try:
            found = read_request(connection.data)
        except BadRequest as error:
            connection.more = True
            self._answer(connection, error.answer)
            return
        if found is None:
            return
        request, size = found
        connection.request = request
        connection.more = request.has_body or len(connection.data) > size
        connection.data.clear()
        self._respond(connection, request)

    def _respond(self, connection: Connection, request: Request) -> None:
        try:
            made = connection.listener.respond(request)
        except Exception:
            log.exception("http_answer_failed", server=self._name, path=request.path)
            made = plain_error(HTTPStatus.INTERNAL_SERVER_ERROR)
        if isinstance(made, Answer):
            self._answer(connection, made)
            return
        connection.enter(Stage.WORKING, self._now)
        if not self._watch(connection, 0):  # a client that closes the connection is still noticed
            return
        self._runs.ask(made, connection)

    # -- answers

    def _answer(self, connection: Connection, answer: Answer, payload: Payload | None = None) -> None:
        request = connection.request
        line = "" if request is None else request.line[:_LINE_SHOWN]
        log.debug(
            "http_request", server=self._name, client=connection.client, line=line, status=int(answer.status)
        )
        body = b"" if request is not None and request.method == "HEAD" else answer.body
        if len(body) > _LARGE:
            connection.parts = [memoryview(head(answer)), memoryview(body)]
            connection.payload = payload = payload or Payload(body)
            self._unread += 0 if payload.readers else len(body)
            payload.readers += 1
        else:
            connection.parts = [memoryview(head(answer) + body)]
        connection.enter(Stage.WRITING, self._now)
        self._write(connection)
        if connection.stage is Stage.WRITING and not connection.closed:
            self._watch(connection, select.EPOLLOUT)
        while self._unread > UNREAD_BYTES:
            slowest = self._queue.first(Stage.WRITING)
            if slowest is None or slowest is connection or slowest.payload is payload:
                break
            self._drop(slowest)

    def _write(self, connection: Connection) -> None:
        try:
            if not connection.send():
                return
        except OSError:
            self._drop(connection)
            return
        self._release(connection)
        if not connection.more:
            self._drop(connection)
            return
        try:
            connection.socket.shutdown(socket.SHUT_WR)
        except OSError:
            self._drop(connection)
            return
        connection.enter(Stage.LINGERING, self._now)
        if self._watch(connection, select.EPOLLIN):
            self._discard(connection)

    def _discard(self, connection: Connection) -> None:
        try:
            if connection.socket.recv(_RECEIVED_AT_ONCE):
                return
        except BlockingIOError:
            return
        except OSError as error:
            log.debug("client_gone", server=self._name, client=connection.client, reason=error.strerror)
        self._drop(connection)

    # -- the end of a connection

    def _drop(self, connection: Connection) -> None:
        """Close a connection and remove it. Unread data is discarded, in the kernel too."""
        if connection.closed:
            return
        connection.leave()
        self._release(connection)
        del self._connections[connection.socket.fileno()]
        if connection.parts:
            with contextlib.suppress(OSError):
                connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            connection.parts.clear()
        self._close(connection.socket)

    def _release(self, connection: Connection) -> None:
        payload, connection.payload = connection.payload, None
        if payload is not None:
            payload.readers -= 1
            self._unread -= 0 if payload.readers else len(payload.body)

    def _watch(self, connection: Connection, events: int) -> bool:
        """Wait for other events of a connection; return False if it had to be dropped."""
        try:
            self._epoll.modify(connection.socket.fileno(), events)
        except OSError:
            self._drop(connection)
            return False
        return True

    def _close(self, sock: socket.socket) -> None:
        """Close a socket; a child between fork and exec may have a copy, which must not cause events."""
        with contextlib.suppress(OSError):
            self._epoll.unregister(sock.fileno())
        sock.close()


def _seconds() -> tuple[tuple[Stage, float], ...]:
    return (
        (Stage.LINGERING, LINGER_SECONDS),
        (Stage.READING, REQUEST_SECONDS),
        (Stage.WRITING, ANSWER_SECONDS),
    )
