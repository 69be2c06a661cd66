"""A small HTTP server on a thread of its own, for operators, kubelets and Prometheus.

A port in use must not stop the proxy: binding is retried every few seconds, as in kube-proxy, unless
bindAddressHardFail is set.
"""

import functools
import socket
import threading
import time
from collections.abc import Callable, Mapping

import structlog

from kproxy.addresses import split_host_port
from kproxy.node.descriptors import DescriptorShares
from kproxy.telemetry.http.connection import Admits, Work
from kproxy.telemetry.http.loop import HttpLoop
from kproxy.telemetry.http.message import Answer, Request

__all__ = ["METHODS", "NOT_FOUND", "Answer", "HttpServer", "Queries", "Routes"]

log = structlog.stdlib.get_logger(__name__)

BIND_AGAIN = 5.0
"""Seconds between attempts to bind (cmd/kube-proxy/app/server.go)."""

NOT_FOUND = Answer(b"404 page not found\n", status=404)
"""The answer for all other paths, with the text of Go's net/http, as from kube-proxy."""

METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
"""Every method is answered like GET, as in kube-proxy; HAProxy uses OPTIONS by default."""
_NO_METHOD = Answer(b"Not Implemented\n", status=501)

_BACKLOG = 512

Routes = Mapping[str, Callable[[], Answer]]
"""The handler of each path."""

Queries = Mapping[str, Callable[[str], Answer]]
"""The handlers of paths whose answer depends on the query of the URL."""


class HttpServer:
    """Serves `routes` at an address; `name` is for the log. `listening` is set once the socket is bound.

    At most `limit` connections are open. Routes run on threads of their own, each once at a time; clients
    that request one while it runs share its next run, as do those with the same query of one of `queries`.
    `quick` routes answer at once, on the server's thread.
    """

    def __init__(
        self,
        name: str,
        address: str,
        routes: Routes,
        *,
        limit: int = DescriptorShares().metrics,
        quick: bool = False,
        queries: Queries | None = None,
    ) -> None:
        self.listening = threading.Event()
        self._name = name
        self._address = address
        self._host, self._port = split_host_port(address)
        self._routes = routes
        self._limit = limit
        self._quick = quick
        self._queries = queries or {}
        self._admits: Admits | None = None
        self._stopping = False
        self._loop: HttpLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port it listens on, or will listen on once the port is free."""
        return self._port

    def start(self, *, hard_fail: bool = True) -> None:
        """Start serving. With `hard_fail`, raises OSError if the address cannot be bound."""
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
        """Stop serving and release the port."""
        self._stopping = True
        if self._loop is not None and self._thread is not None:
            self._loop.call(lambda: None)
            self._thread.join()

    def _run(self, loop: HttpLoop) -> None:
        """Serve until the end; an idle server does not wake up."""
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
        sock = self._listener()
        try:
            loop.listen(sock, self._respond, self._limit, self._admits)
        except OSError:
            sock.close()
            raise
        self.listening.set()
        log.debug("listening", server=self._name, address=self._address)

    def _listener(self) -> socket.socket:
        """A socket that listens at the address. Raises OSError."""
        sock = socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((self._host, self._port))
            sock.listen(_BACKLOG)
            self._port = int(sock.getsockname()[1])
        except OSError:
            sock.close()
            raise
        return sock

    def _respond(self, request: Request) -> Answer | Work:
        if request.method not in METHODS:
            return _NO_METHOD
        query = self._queries.get(request.path)
        if query is not None:
            return Work(f"{request.path}?{request.query}", functools.partial(query, request.query))
        route = self._routes.get(request.path)
        if route is None:
            return NOT_FOUND
        return route() if self._quick else Work(request.path, route)

    def _log_failure(self, error: OSError) -> None:
        log.error("bind_failed", server=self._name, address=self._address, reason=error.strerror)
