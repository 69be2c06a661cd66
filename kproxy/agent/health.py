"""/healthz and /livez, as load balancers and kubelets know them from kube-proxy.

A proxy is healthy as long as no change has waited for the kernel longer than two sync periods, per family.
/healthz is also about the node: one that is being deleted should get no new traffic, although its proxy works
(KEP-3836); /livez leaves that out, so that a dying node's proxy is not restarted.
"""

import http.server
import json
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec
import structlog

from kproxy.addresses import Family
from kproxy.state.wire import Node

log = structlog.stdlib.get_logger(__name__)

AUTOSCALER_TAINT = "ToBeDeletedByClusterAutoscaler"


class FamilyHealth(msgspec.Struct, frozen=True):
    """Whether one family's changes reach the kernel in time, and when it was last updated."""

    last_updated: datetime
    healthy: bool


class Health(msgspec.Struct, frozen=True):
    """One answer."""

    families: dict[Family, FamilyHealth]
    node_eligible: bool


class HealthState:
    """Collects what the run loop knows; `now` and `clock` give wall and monotonic time."""

    def __init__(
        self, sync_period: float, clock: Callable[[], float], pending_since: Callable[[], float | None]
    ) -> None:
        self._patience = 2 * sync_period
        self._clock = clock
        self._pending_since = pending_since
        self._lock = threading.Lock()
        self._updated: dict[Family, datetime] = {}
        self._behind: dict[Family, float | None] = {}
        self._eligible = True

    def set_sync_period(self, sync_period: float) -> None:
        """Take another period; changes may wait for two of it."""
        with self._lock:
            self._patience = 2 * sync_period

    def add_family(self, family: Family) -> None:
        """Begin to report on a family; it counts as healthy before its first sync."""
        with self._lock:
            self._updated[family] = datetime.now(UTC)
            self._behind[family] = None

    def updated(self, family: Family) -> None:
        """A sync of the family has succeeded."""
        with self._lock:
            self._updated[family] = datetime.now(UTC)
            self._behind[family] = None

    def failed(self, family: Family) -> None:
        """A sync of the family has failed: it is behind since its oldest waiting change."""
        with self._lock:
            if self._behind[family] is None:
                since = self._pending_since()
                self._behind[family] = self._clock() if since is None else since

    def see_node(self, node: Node | None, *, known: bool) -> None:
        """Judge the node; before its first list has arrived (`known` False) it counts as eligible."""
        eligible = not known or (
            node is not None
            and node.metadata.deletion_timestamp is None
            and not any(t.key == AUTOSCALER_TAINT for t in (node.spec.taints if node.spec else None) or ())
        )
        with self._lock:
            self._eligible = eligible

    def report(self) -> Health:
        """The state now."""
        now = self._clock()
        waiting = self._pending_since()
        with self._lock:
            families = {}
            for family, updated in self._updated.items():
                behind = [t for t in (self._behind[family], waiting) if t is not None]
                families[family] = FamilyHealth(updated, all(now - t <= self._patience for t in behind))
            return Health(families, self._eligible)

    def proxy_healthy(self) -> bool:
        """Whether every family keeps up with its changes."""
        return all(family.healthy for family in self.report().families.values())


def answer(health: Health, *, include_node: bool) -> tuple[int, bytes]:
    """HTTP status and body, in kube-proxy's form (pkg/proxy/healthcheck/proxy_health.go)."""
    now = datetime.now(UTC)
    proxy_healthy = all(f.healthy for f in health.families.values())
    healthy = proxy_healthy and (health.node_eligible or not include_node)
    oldest = min((f.last_updated for f in health.families.values()), default=now)
    body: dict[str, object] = {
        "lastUpdated": _text(now if healthy else oldest),
        "currentTime": _text(now),
    }
    if include_node:
        body["nodeEligible"] = health.node_eligible
    body["healthy"] = proxy_healthy
    body["status"] = {
        family.value: {"lastUpdated": _text(f.last_updated), "healthy": f.healthy}
        for family, f in health.families.items()
    }
    return (200 if healthy else 503), json.dumps(body).encode()


def _text(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def split_host_port(address: str) -> tuple[str, int]:
    """`0.0.0.0:10256` or `[::]:10256`. Raises ValueError."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{address!r} is not host:port")
    return host, int(port)


class HealthServer:
    """Serves the two paths on a thread of its own."""

    def __init__(self, address: str, state: HealthState) -> None:
        host, port = split_host_port(address)
        handler = _handler(state)
        server_class = _Server6 if ":" in host else http.server.ThreadingHTTPServer
        self._server = server_class((host, port), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server6(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6


def _handler(state: HealthState) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        server_version = "kproxy"
        sys_version = ""
        timeout = 10

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path not in {"/healthz", "/livez"}:
                self.send_error(404)
                return
            status, body = answer(state.report(), include_node=path == "/healthz")
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            log.debug("health_request", client=self.client_address[0], line=format % args)

    return Handler
