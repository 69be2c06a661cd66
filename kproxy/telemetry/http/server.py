"""A small HTTP server on a thread of its own, for the paths that operators, kubelets and Prometheus ask.

A port that is taken must not take the proxy down: it is tried again every few seconds, as in kube-proxy,
unless the operator wants it otherwise (bindAddressHardFail).
"""

import socket
import threading
import time
from collections.abc import Callable, Mapping

import structlog

from kproxy.addresses import split_host_port
from kproxy.node.descriptors import DescriptorShares
from kproxy.telemetry.http.connection import Work
from kproxy.telemetry.http.loop import HttpLoop
from kproxy.telemetry.http.message import Answer, Request

__all__ = ["METHODS", "NOT_FOUND", "Answer", "HttpServer", "Routes"]

log = structlog.stdlib.get_logger(__name__)

BIND_AGAIN = 5.0
"""Seconds between tries to bind (cmd/kube-proxy/app/server.go)."""

NOT_FOUND = Answer(b"404 page not found\n", status=404)
"""For all other paths, in the words of Go's net/http, as from kube-proxy."""

METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
"""As with kube-proxy, every method asks; OPTIONS is how HAProxy does by default."""
_NO_METHOD = Answer(b"Not Implemented\n", status=501)

_BACKLOG = 512

Routes = Mapping[str, Callable[[], Answer]]
"""What answers for each path."""


class HttpServer:
    """Serves `routes` at an address; `name` is what the log calls it. `listening` is set once it is bound.

    At most `limit` connections are open. Routes run on threads of their own, each once at a time; clients
    that ask for one while it runs share its next run. `quick` routes answer at once, on the server's thread.
    """

    def __init__(
        self,
        name: str,
        address: str,
        routes: Routes,
        *,
        limit: int = DescriptorShares().metrics,
        quick: bool = False,
    ) -> None:
        self.listening = threading.Event()
        self._name = name
        self._address = address
        self._host, self._port = split_host_port(address)
        self._routes = routes
        self._limit = limit
        self._quick = quick
        self._stopping = False
        self._loop: HttpLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port it listens on, or is going to listen on as soon as it is free."""
        return self._port

    def start(self, *, hard_fail: bool = True) -> None:
        """Begin to answer. Raises OSError if the address cannot be bound, unless not `hard_fail`."""
        loop = HttpLoop(self._name, self._limit)
        try:
            self._bind(loop)
        except OSError as error:
            if hard_fail:
                loop.end()
                reason = f"{self._name}: cannot bind {self._address}: {error.strerror}"
                raise OSError(error.errno, reason) from error
            self._log_failure(error)
        self._loop = loop
        self._thread = threading.Thread(target=self._run, args=(loop,), name=self._name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop answering and free the port."""
        self._stopping = True
        if self._loop is not None and self._thread is not None:
            self._loop.call(lambda: None)
            self._thread.join()

    def _run(self, loop: HttpLoop) -> None:
        """Serve until the end; an idle server does not wake to look."""
        next_try = time.monotonic() + BIND_AGAIN
        try:
            while not self._stopping:
                if self.listening.is_set():
                    loop.turn(None)
                    continue
                loop.turn(max(0.0, next_try - time.monotonic()))
                if time.monotonic() >= next_try:
                    next_try = time.monotonic() + BIND_AGAIN
                    try:
                        self._bind(loop)
                    except OSError as error:
                        self._log_failure(error)
        finally:
            loop.end()

    def _bind(self, loop: HttpLoop) -> None:
        sock = socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((self._host, self._port))
            sock.listen(_BACKLOG)
            self._port = int(sock.getsockname()[1])
            loop.listen(sock, self._respond, self._limit)
        except OSError:
            sock.close()
            raise
        self.listening.set()
        log.debug("listening", server=self._name, address=self._address)

    def _respond(self, request: Request) -> Answer | Work:
        if request.method not in METHODS:
            return _NO_METHOD
        route = self._routes.get(request.path)
        if route is None:
            return NOT_FOUND
        return route() if self._quick else Work(request.path, route)

    def _log_failure(self, error: OSError) -> None:
        log.error("bind_failed", server=self._name, address=self._address, reason=error.strerror)
