"""Raw requests to a Kubernetes API server; cluster.py has its address and the credentials.

A tokenFile is read at each request (as client-go does), a 401 leads to a fresh configuration, and every open
socket can be interrupted, so that a stop is instant even during a stall.
"""

import email.utils
import math
import socket
import ssl
import threading
import time
import urllib.parse
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog
import urllib3

import kproxy
from kproxy.sources.cluster import ClusterAccess, Session, load_session
from kproxy.sources.errors import (
    ApiError,
    DisconnectedError,
    GatewayError,
    StalledError,
    Status,
    StatusError,
    UnreachableError,
)
from kproxy.sources.servers import Server, peer_of, resolve
from kproxy.sources.stream import Stream, reason, shut_down

log = structlog.stdlib.get_logger(__name__)

_ERROR_BODY = 64 * 1024
_SMALL_BODY = 4 * 1024 * 1024
_SUCCESS = frozenset({200, 201})
_GATEWAY = frozenset({502, 503, 504})


@dataclass(frozen=True, slots=True)
class TransportConfig:
    """Times in seconds, sizes in bytes."""

    connect_seconds: float = 10.0
    """For the TCP and TLS handshakes."""
    keepalive_seconds: int = 10
    """Seconds without data until the kernel's first TCP keepalive probe, and between probes.

    Three probes without an answer end the connection; a server that was restarted resets it at once.
    """
    retry_after_max_seconds: float = 300.0
    """The longest Retry-After that is obeyed."""
    send_seconds: float = 10.0
    """For the whole answer to a request that is not a watch or a list."""


Observe = Callable[[str, str, str, float], None]
"""Called after each request with host, method, HTTP status (`<error>` if none, as in client-go), seconds."""


@dataclass(frozen=True, slots=True)
class _Request:
    """`read_seconds` is the longest silence; `content_type` is that of the body."""

    method: str
    target: str
    read_seconds: float
    body: bytes | None = None
    content_type: str = ""


class Transport:
    """Opens requests from any thread; reloads credentials; can be closed from outside at any moment."""

    def __init__(
        self,
        access: ClusterAccess,
        config: TransportConfig | None = None,
        observe: Observe = lambda *_: None,
        moved: Callable[[], None] = lambda: None,
    ) -> None:
        """`moved` is called, from any thread, when the set of `servers` has changed."""
        self._access = access
        self._config = config or TransportConfig()
        self._observe = observe
        self._moved = moved
        self._servers: frozenset[Server] = frozenset()
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._stale = False
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._closed = False

    @property
    def servers(self) -> frozenset[Server]:
        """The addresses and ports of API servers, or of proxies in front of them, that must stay reachable.

        These are all addresses that the name of the server had at the last connect, and those of all open
        connections. Empty before the first. May be read from any thread.
        """
        return self._servers

    def load(self) -> None:
        """Read the configuration now; raises ClusterAccessError."""
        with self._lock:
            self._current()

    def open(self, path: str, query: Mapping[str, str], read_seconds: float) -> Stream:
        """GET a path of the API; `read_seconds` is the longest silence.

        Raises StatusError for any answer except success, DisconnectedError, StalledError (no answer) and
        ClusterAccessError.
        """
        return self._exchange(_Request("GET", f"{path}?{urllib.parse.urlencode(query)}", read_seconds))

    def send(
        self, method: str, path: str, body: bytes | None, content_type: str = "application/json"
    ) -> bytes:
        """Send one request and return its small answer; raises the errors of `open`."""
        seconds = self._config.send_seconds
        stream = self._exchange(_Request(method, path, seconds, body, content_type))
        try:
            return stream.read_all(_SMALL_BODY, seconds)
        finally:
            stream.close()

    def _exchange(self, request: _Request) -> Stream:
        session = self._prepare()
        response = self._observed(session, request)
        if response.status == 401:
            response.close()
            log.debug("credentials_refused", server=session.host)
            session = self._reload(session)
            response = self._observed(session, request)
        if response.status in _SUCCESS:
            return Stream(response)
        if response.status in (401, 403):
            self._stale = True
        raise self._status_error(response)

    def close(self) -> None:
        """Interrupt every request in every thread, and refuse new ones."""
        with self._lock:
            self._closed = True
            sockets = list(self._sockets)
        for each in sockets:
            shut_down(each)

    def _prepare(self) -> Session:
        with self._lock:
            if self._stale and self._session is not None:
                self._stale = False
                self._replace(self._session)
            return self._current()

    def _reload(self, refused: Session) -> Session:
        """Return a newer session than `refused`; another thread may have loaded it already."""
        with self._lock:
            if self._session is refused:
                self._replace(refused)
            return self._current()

    def _replace(self, old: Session) -> None:
        """Load the configuration again; if it is broken, keep the old one."""
        self._session = self._load()
        old.pool.clear()

    def _current(self) -> Session:
        if self._session is None:
            self._session = self._load()
        return self._session

    def _load(self) -> Session:
        session = load_session(self._access)
        schemes: dict[str, Any] = session.pool.pool_classes_by_scheme
        session.pool.pool_classes_by_scheme = {
            scheme: self._tracked(pool_class) for scheme, pool_class in schemes.items()
        }
        return session

    def _tracked(self, pool_class: Any) -> Any:
        """A connection pool whose sockets are recorded, so that `close` can shut them down."""
        connection_class: Any = pool_class.ConnectionCls

        def connect(connection: Any) -> None:
            connection_class.connect(connection)
            connection.kproxy_socket = connection.sock
            self._keep_alive(connection.sock)
            self._track(connection.sock)
            self._note_servers(connection)

        tracked = type(f"Tracked{connection_class.__name__}", (connection_class,), {"connect": connect})
        return type(f"Tracked{pool_class.__name__}", (pool_class,), {"ConnectionCls": tracked})

    def _keep_alive(self, sock: Any) -> None:
        """Enable TCP keepalive, because a watch never sends and would not notice a lost peer."""
        seconds = self._config.keepalive_seconds
        if isinstance(sock, socket.socket) and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, seconds)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, seconds)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)

    def _track(self, sock: Any) -> None:
        if isinstance(sock, socket.socket):
            with self._lock:
                self._sockets.add(sock)
                closed = self._closed
            if closed:
                shut_down(sock)

    def _note_servers(self, connection: Any) -> None:
        """Record the server of a new connection, and the other addresses of its name."""
        found = set(resolve(str(connection.host), int(connection.port)))
        with self._lock:
            found.update(peer for sock in self._sockets if (peer := peer_of(sock)) is not None)
            before, self._servers = self._servers, frozenset(found)
        if before != self._servers:
            self._moved()

    def _observed(self, session: Session, request: _Request) -> Any:
        began = time.monotonic()
        code = "<error>"
        try:
            response = self._try(session, request)
            code = str(response.status)
        finally:
            host = urllib.parse.urlsplit(session.host).netloc
            self._observe(host, request.method, code, time.monotonic() - began)
        return response

    def _try(self, session: Session, request: _Request) -> Any:
        if self._closed:
            raise DisconnectedError("closed")
        with self._lock:
            headers = session.headers()
        headers |= {"accept": "application/json", "user-agent": f"kproxy/{kproxy.__version__}"}
        if request.body is not None:
            headers["content-type"] = request.content_type
        timeout = urllib3.Timeout(connect=self._config.connect_seconds, read=request.read_seconds)
        try:
            return session.pool.request(
                request.method,
                f"{session.host}{request.target}",
                body=request.body,
                headers=headers,
                timeout=timeout,
                retries=False,
                redirect=False,
                preload_content=False,
            )
        except urllib3.exceptions.ReadTimeoutError as error:
            raise StalledError("the server does not answer") from error
        except (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError) as error:
            raise UnreachableError(f"no connection to {session.host}: {reason(error)}") from error
        except (urllib3.exceptions.HTTPError, OSError, ValueError, AttributeError) as error:
            # Certificates may have been renewed, or their temporary files deleted.
            self._stale = self._stale or isinstance(error, urllib3.exceptions.SSLError | FileNotFoundError)
            kind = UnreachableError if _is_closed(error) else DisconnectedError
            raise kind(f"no connection to {session.host}: {reason(error)}") from error

    def _status_error(self, response: Any) -> StatusError:
        retry_after = _retry_after(response.headers.get("retry-after"), self._config.retry_after_max_seconds)
        stream = Stream(response)
        try:
            status = msgspec.json.decode(stream.read_all(_ERROR_BODY, 10), type=Status)
        except (ApiError, ValueError, RecursionError):
            status = None
        finally:
            stream.close()
        code = int(response.status)
        if status is None or not status.code:
            message = str(response.reason or "")
            kind = GatewayError if code in _GATEWAY else StatusError
            return kind(code, Status(message=message).text, retry_after)
        return StatusError(code, status.text, retry_after)


def _retry_after(text: str | None, longest: float) -> float | None:
    """Seconds of a Retry-After header, which is a number or a date (RFC 9110, 10.2.3)."""
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return None if math.isnan(seconds) else min(max(seconds, 0.0), longest)


def _is_closed(error: BaseException) -> bool:
    """Whether a connection that was accepted ended before a byte of an answer, in TLS or in HTTP."""
    if isinstance(error, urllib3.exceptions.SSLError):
        return any(isinstance(each, ssl.SSLEOFError | ssl.SSLZeroReturnError) for each in error.args)
    return isinstance(error, urllib3.exceptions.ProtocolError) and any(
        isinstance(each, ConnectionError) for each in error.args
    )
