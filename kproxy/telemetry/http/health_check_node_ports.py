"""Health checks of Local services: load balancers query each node for local endpoints.

One port per service (`healthCheckNodePort`) and family, with the answers and headers that cloud load
balancers rely on (pkg/proxy/healthcheck/service_health.go). One thread serves all ports; an idle port is a
listening socket and nothing else. Tenants create such services, so the number of ports is limited by the
descriptors available to this process; a port beyond the limit is reported and opened as soon as another one
is closed.
"""

import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping

import msgspec
import structlog

from kproxy.addresses import Family
from kproxy.node.descriptors import DescriptorShares
from kproxy.plan.model import ServicePlan
from kproxy.state.problems import Problem
from kproxy.telemetry.http.connection import Listener
from kproxy.telemetry.http.loop import HttpLoop
from kproxy.telemetry.http.message import Answer

log = structlog.stdlib.get_logger(__name__)

EVERYWHERE = {Family.IPV4: "0.0.0.0", Family.IPV6: "::"}  # noqa: S104 - load balancers come from outside

_LISTEN_AGAIN = 5.0
"""Seconds until a port that could not be bound is tried again."""
_CONNECTIONS = 64
"""The maximum number of open connections of one port."""
_AT_ONCE = 50
"""The number of ports opened or closed before clients are served again."""
_BACKLOG = 128
_AF = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}

Key = tuple[Family, str]
"""(family, service)"""


class Check(msgspec.Struct, frozen=True):
    """The health check of one service: port, addresses, and number of ready endpoints."""

    port: int
    addresses: tuple[str, ...]
    endpoints: int

    @property
    def place(self) -> tuple[int, tuple[str, ...]]:
        """The port and the addresses."""
        return self.port, self.addresses


def body(service: str, endpoints: int, *, proxy_healthy: bool) -> bytes:
    """The answer, byte for byte as from kube-proxy."""
    namespace, _, name = service.partition("/")
    healthy = "true" if proxy_healthy else "false"
    return (
        "{\n"
        '\t"service": {\n'
        f'\t\t"namespace": "{namespace}",\n'
        f'\t\t"name": "{name}"\n'
        "\t},\n"
        f'\t"localEndpoints": {endpoints},\n'
        f'\t"serviceProxyHealthy": {healthy}\n'
        "}"
    ).encode()


class ServiceHealth:
    """The servers of all services. `proxy_healthy` returns whether this proxy applies changes in time.

    `refused` is called with service, port and reason if a port cannot be opened. `shares` bounds open
    connections (`checks`) and listening sockets (`ports`). Raises OSError if it cannot be made.
    """

    def __init__(
        self,
        proxy_healthy: Callable[[], bool],
        refused: Callable[[str, int, str], None] = lambda *_: None,
        shares: DescriptorShares | None = None,
    ) -> None:
        self._proxy_healthy = proxy_healthy
        self._report_refused = refused
        self._shares = shares or DescriptorShares()
        self._loop = HttpLoop("service-health", self._shares.checks)
        self._lock = threading.Lock()
        self._news: dict[Key, Check | None] = {}
        self._checks: dict[Key, Check] = {}
        self._listeners: dict[Key, tuple[Listener, ...]] = {}
        self._listening = 0
        self._closing: deque[Listener] = deque()
        self._opening: dict[Key, None] = {}
        self._refused: dict[Key, str] = {}
        self._next_try = 0.0

    def update(
        self, plans: Iterable[ServicePlan], addresses: Mapping[Family, tuple[str, ...] | None]
    ) -> None:
        """Use the plans that are applied now; `addresses` are those that accept node ports, None for all.

        Returns at once; may be called from any thread.
        """
        changes: dict[Key, Check | None] = {}
        for plan in plans:
            port = next((p.health_check_node_port for p in plan.ports if p.health_check_node_port), 0)
            hosts = addresses.get(plan.family)
            where = hosts if hosts is not None else (EVERYWHERE[plan.family],)
            changes[plan.family, plan.key] = Check(port, where, plan.local_ready) if port else None
        with self._lock:
            for key, check in changes.items():
                if key in self._news or self._checks.get(key) != check:
                    self._news[key] = check
            new = bool(self._news)
        if new:
            self.wake()

    def problems(self) -> list[Problem]:
        """The ports that could not be opened; may be called from any thread."""
        found = []
        for (family, service), reason in sorted(dict(self._refused).items()):
            check = self._checks.get((family, service))
            if check is not None:
                field, value = "spec.healthCheckNodePort", str(check.port)
                why = f"not opened for {family.value}: {reason}"
                found.append(Problem(f"Service {service}", field, value, why, refused=True))
        return found

    def run(self, stop: threading.Event) -> None:
        """Serve until `stop` is set and `wake` called."""
        try:
            while not stop.is_set():
                self._loop.turn(self._work())
        finally:
            self._loop.end()

    def wake(self) -> None:
        """Wake `run`, so that it checks for new plans and for the stop."""
        self._loop.call(lambda: None)

    def _work(self) -> float | None:
        """Open and close some of the waiting ports; return seconds until more is due, or None.

        All closings come first, because a port may move from one service to another.
        """
        with self._lock:
            news, self._news = self._news, {}
            for key, check in news.items():
                self._take(key, check)
        now = time.monotonic()
        if self._refused and now >= self._next_try:
            self._next_try = now + _LISTEN_AGAIN
            self._opening |= dict.fromkeys(self._refused)
        for _ in range(_AT_ONCE):
            if self._closing:
                self._loop.close(self._closing.popleft())
                self._listening -= 1
                self._next_try = now  # a socket is free now
            elif self._opening:
                key = next(iter(self._opening))
                del self._opening[key]
                self._open(key)
        if self._closing or self._opening:
            return 0.0
        return max(0.0, self._next_try - now) if self._refused else None

    def _take(self, key: Key, check: Check | None) -> None:
        before = self._checks.pop(key, None)
        if check is not None:
            self._checks[key] = check
        moved = check is None or before is None or before.place != check.place
        if moved:
            self._refused.pop(key, None)
            self._closing.extend(self._listeners.pop(key, ()))
        if check is None:
            self._opening.pop(key, None)
        elif moved:
            self._opening[key] = None

    def _open(self, key: Key) -> None:
        check = self._checks.get(key)
        if check is None or key in self._listeners:
            return
        family, service = key
        opened: list[Listener] = []
        try:
            if self._listening + len(check.addresses) > self._shares.ports:
                raise _NoRoomError(self._shares.ports)
            for address in check.addresses:
                opened.append(self._listen(key, address, check.port))  # noqa: PERF401 - closed if one fails
        except (OSError, _NoRoomError) as error:
            for listener in opened:
                self._loop.close(listener)
            reason = getattr(error, "strerror", None) or str(error)
            if not self._refused:
                self._next_try = time.monotonic() + _LISTEN_AGAIN
            if self._refused.get(key) != reason:
                self._refused[key] = reason
                self._report_refused(service, check.port, reason)
                log.error(
                    "health_check_port_failed",
                    service=service,
                    port=check.port,
                    family=family.value,
                    reason=reason,
                )
            return
        self._refused.pop(key, None)
        self._listeners[key] = tuple(opened)
        self._listening += len(opened)
        log.info("health_check_port_open", service=service, port=check.port, family=family.value)

    def _listen(self, key: Key, address: str, port: int) -> Listener:
        sock = socket.socket(_AF[key[0]])
        with contextlib.ExitStack() as failed:
            failed.callback(sock.close)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if key[0] is Family.IPV6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address, port))
            sock.listen(_BACKLOG)
            listener = self._loop.listen(sock, lambda _: self._answer(key), _CONNECTIONS)
            failed.pop_all()
        return listener

    def _answer(self, key: Key) -> Answer:
        """The same answer for every path and method, as in kube-proxy: HAProxy uses OPTIONS."""
        check = self._checks.get(key)
        endpoints = check.endpoints if check is not None else 0
        healthy = self._proxy_healthy()
        return Answer(
            body(key[1], endpoints, proxy_healthy=healthy),
            "application/json",
            200 if endpoints and healthy else 503,
            (("X-Load-Balancing-Endpoint-Weight", str(endpoints)),),
        )


class _NoRoomError(Exception):
    """All listening sockets available to health checks are in use."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"all {limit} sockets for health-check ports are in use; the limit of open files "
            "(RLIMIT_NOFILE, LimitNOFILE= of the container runtime) sets their number"
        )
