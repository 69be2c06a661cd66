"""A small HTTP server on a thread of its own, for the paths that operators, kubelets and Prometheus ask.

A port that is taken must not take the proxy down: it is tried again every few seconds, as in kube-proxy,
unless the operator wants it otherwise (bindAddressHardFail).
"""

import http.server
import selectors
import socket
import threading
from collections.abc import Callable, Mapping

import msgspec
import structlog

log = structlog.stdlib.get_logger(__name__)

BIND_AGAIN = 5.0
"""Seconds between tries to bind (cmd/kube-proxy/app/server.go)."""


class Answer(msgspec.Struct, frozen=True):
    """What is answered to one request."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = 200


NOT_FOUND = Answer(b"404 page not found\n", status=404)
"""For all other paths, in the words of Go's net/http, as from kube-proxy."""

Routes = Mapping[str, Callable[[], Answer]]
"""What answers for each path."""


def split_host_port(address: str) -> tuple[str, int]:
    """`0.0.0.0:10256` or `[::]:10256`. Raises ValueError."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{address!r} is not host:port")
    return host, int(port)


class HttpServer:
    """Serves `routes` at an address; `name` is what the log calls it. `listening` is set once it is bound."""

    def __init__(self, name: str, address: str, routes: Routes) -> None:
        self.listening = threading.Event()
        self._name = name
        self._address = address
        self._host, self._port = split_host_port(address)
        self._routes = routes
        self._server: http.server.ThreadingHTTPServer | None = None
        self._woken, self._wake = socket.socketpair()
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port it listens on, or shall listen on as soon as it is free."""
        return int(self._server.server_address[1]) if self._server is not None else self._port

    def start(self, *, hard_fail: bool = True) -> None:
        """Begin to answer. Raises OSError if the address cannot be bound, unless not `hard_fail`."""
        try:
            self._bind()
        except OSError as error:
            if hard_fail:
                reason = f"{self._name}: cannot bind {self._address}: {error.strerror}"
                raise OSError(error.errno, reason) from error
            self._tell(error)
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop answering and free the port."""
        self._wake.close()
        if self._thread is not None:
            self._thread.join()
        if self._server is not None:
            self._server.server_close()
        self._woken.close()

    def _run(self) -> None:
        """Wait for clients and for the end at once: an idle server does not wake to look."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            while self._server is None:
                if selector.select(BIND_AGAIN):
                    return
                try:
                    self._bind()
                except OSError as error:
                    self._tell(error)
            selector.register(self._server, selectors.EVENT_READ)
            while not any(key.fileobj is self._woken for key, _ in selector.select()):
                self._server.handle_request()

    def _bind(self) -> None:
        kind = _Server6 if ":" in self._host else http.server.ThreadingHTTPServer
        server = kind((self._host, self._port), _handler(self._name, self._routes))
        server.daemon_threads = True
        self._server = server
        self.listening.set()
        log.debug("listening", server=self._name, address=self._address)

    def _tell(self, error: OSError) -> None:
        log.error("bind_failed", server=self._name, address=self._address, reason=error.strerror)


class _Server6(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6


def _handler(name: str, routes: Routes) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        server_version = "kproxy"
        sys_version = ""
        timeout = 10

        def do_GET(self) -> None:
            self._answer(with_body=True)

        # As with kube-proxy, every method asks; OPTIONS is how HAProxy does by default.
        do_OPTIONS = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def _answer(self, *, with_body: bool) -> None:
            route = routes.get(self.path.partition("?")[0])
            answer = route() if route is not None else NOT_FOUND
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Content-Length", str(len(answer.body)))
            self.send_header("Connection", "close")
            self.end_headers()
            if with_body:
                self.wfile.write(answer.body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            log.debug("http_request", server=name, client=self.client_address[0], line=format % args)

    return Handler
