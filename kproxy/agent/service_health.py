"""Health checks of Local services: load balancers ask each node whether it has an endpoint of its own.

One port per service (`healthCheckNodePort`) and family, with the answers and headers that cloud load
balancers rely on (pkg/proxy/healthcheck/service_health.go). All ports are served by one event loop on one
thread: idle ports cost nothing.
"""

import asyncio
import contextlib
import re
import threading
from collections.abc import Callable, Iterable, Mapping

import msgspec
import structlog

from kproxy.addresses import Family
from kproxy.plan.model import ServicePlan

log = structlog.stdlib.get_logger(__name__)

EVERYWHERE = {Family.IPV4: "0.0.0.0", Family.IPV6: "::"}  # noqa: S104 - load balancers come from outside

_LISTEN_AGAIN = 5.0
"""Seconds until a port that could not be bound is tried again."""
_PATIENCE = 10.0
_LONGEST_REQUEST = 16384
_REQUEST = re.compile(rb"([A-Z]+) \S+ HTTP/1\.[01]\r\n")
"""Every method is answered alike, as by kube-proxy: HAProxy asks with OPTIONS."""
_REASONS = {200: "OK", 400: "Bad Request", 503: "Service Unavailable"}

Key = tuple[Family, str]
"""(family, service)"""


class Check(msgspec.Struct, frozen=True):
    """What is answered for one service: on which port and addresses, and how many ready endpoints it has."""

    port: int
    addresses: tuple[str, ...]
    endpoints: int


def body(service: str, endpoints: int, *, proxy_healthy: bool) -> bytes:
    """The answer, byte for byte as kube-proxy gives it."""
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
    """The servers of all services. `proxy_healthy` tells whether this proxy keeps up.

    `refused` is told service, port and reason where a port cannot be opened.
    """

    def __init__(
        self, proxy_healthy: Callable[[], bool], refused: Callable[[str, int, str], None] = lambda *_: None
    ) -> None:
        self._proxy_healthy = proxy_healthy
        self._tell_refused = refused
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started = threading.Event()
        self._checks: dict[Key, Check] = {}
        self._servers: dict[Key, asyncio.Server] = {}
        self._refused: dict[Key, str] = {}

    def update(
        self, plans: Iterable[ServicePlan], addresses: Mapping[Family, tuple[str, ...] | None]
    ) -> None:
        """Take the plans that are applied now; `addresses` are those that accept node ports, None for all."""
        changes: dict[Key, Check | None] = {}
        for plan in plans:
            port = next((p.health_check_node_port for p in plan.ports if p.health_check_node_port), 0)
            hosts = addresses.get(plan.family)
            where = hosts if hosts is not None else (EVERYWHERE[plan.family],)
            changes[plan.family, plan.key] = Check(port, where, plan.local_ready) if port else None
        self._started.wait(_PATIENCE)
        loop = self._loop
        if loop is not None and any(check or key in self._checks for key, check in changes.items()):
            with contextlib.suppress(RuntimeError):  # the loop has just been closed
                asyncio.run_coroutine_threadsafe(self._apply(changes), loop)

    def run(self, stop: threading.Event) -> None:
        """Serve until `stop` is set and `wake` called."""
        asyncio.run(self._serve(stop))

    def wake(self) -> None:
        """Let `run` see that it shall stop."""
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._news.set)

    async def _serve(self, stop: threading.Event) -> None:
        self._loop, self._news = asyncio.get_running_loop(), asyncio.Event()
        self._turn = asyncio.Lock()
        self._started.set()
        try:
            while not stop.is_set():
                self._news.clear()
                patience = _LISTEN_AGAIN if self._refused else None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(patience):
                        await self._news.wait()
                async with self._turn:
                    for key in tuple(self._refused):
                        await self._listen(key)
        finally:
            self._loop = None
            for server in self._servers.values():
                server.close()

    async def _apply(self, changes: Mapping[Key, Check | None]) -> None:
        """Take changes in the order in which they came: opening a port takes more than a turn of the loop."""
        async with self._turn:
            await self._take(changes)
        self._news.set()

    async def _take(self, changes: Mapping[Key, Check | None]) -> None:
        for key, check in changes.items():
            before = self._checks.get(key)
            if check is None:
                self._checks.pop(key, None)
            else:
                self._checks[key] = check
            if before is not None and (
                check is None or (before.port, before.addresses) != (check.port, check.addresses)
            ):
                self._refused.pop(key, None)
                if (server := self._servers.pop(key, None)) is not None:
                    server.close()  # not waited for: since Python 3.12 that waits for clients
        for key in changes:
            if key in self._checks and key not in self._servers:
                await self._listen(key)

    async def _listen(self, key: Key) -> None:
        check = self._checks.get(key)
        if check is None or key in self._servers:
            self._refused.pop(key, None)
            return

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._answer(key, reader, writer)

        try:
            self._servers[key] = await asyncio.start_server(
                answer, check.addresses, check.port, limit=_LONGEST_REQUEST
            )
        except OSError as error:
            reason = error.strerror or str(error)
            if self._refused.get(key) != reason:
                self._refused[key] = reason
                self._tell_refused(key[1], check.port, reason)
                log.error(
                    "health_check_port_failed",
                    service=key[1],
                    port=check.port,
                    family=key[0].value,
                    reason=reason,
                )
            return
        self._refused.pop(key, None)
        log.info("health_check_port_open", service=key[1], port=check.port, family=key[0].value)

    async def _answer(self, key: Key, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(
            OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError
        ):
            async with asyncio.timeout(_PATIENCE):
                request = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._response(key, request))
                await writer.drain()
        writer.close()

    def _response(self, key: Key, request: bytes) -> bytes:
        check = self._checks.get(key)
        line = _REQUEST.match(request)
        if line is None:
            return _http(400, (), b"")
        endpoints = check.endpoints if check is not None else 0
        healthy = self._proxy_healthy()
        content = body(key[1], endpoints, proxy_healthy=healthy)
        headers = (
            ("Content-Type", "application/json"),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Load-Balancing-Endpoint-Weight", str(endpoints)),
            ("Content-Length", str(len(content))),
        )
        return _http(200 if endpoints and healthy else 503, headers, b"" if line[1] == b"HEAD" else content)


def _http(status: int, headers: Iterable[tuple[str, str]], content: bytes) -> bytes:
    lines = [f"HTTP/1.1 {status} {_REASONS[status]}", *(f"{n}: {v}" for n, v in headers), "Connection: close"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content
