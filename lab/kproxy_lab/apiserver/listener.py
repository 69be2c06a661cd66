"""The event loop's side of the server: a thread, a socket, and connections that can be dropped.

Handlers run on one event loop in a background thread. The port stays the same across closing and
opening again, which is what a restart of a real server looks like to its clients.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from aiohttp import web

from kproxy_lab.apiserver.access import TlsFiles

T = TypeVar("T")
Handle = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
SocketFactory = Callable[[str, int], socket.socket]

_MAX_BODY = 64 << 20
_KEEPALIVE_SECONDS = 600.0
"""Idle connections stay open longer than clients keep them, so that no request meets a closing one."""


def bind(host: str, port: int) -> socket.socket:
    """Return a bound TCP socket for an IPv4 or IPv6 address (the default :data:`SocketFactory`).

    Raises:
        OSError: the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except OSError:
        made.close()
        raise
    return made


class Listener:
    """Serves a handler from a background thread. Its methods are called from other threads."""

    def __init__(
        self, handle: Handle, *, host: str, port: int, tls: TlsFiles | None, sockets: SocketFactory
    ) -> None:
        self.host = host
        self.port = port
        self._handle = handle
        self._tls = tls
        self._sockets = sockets
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._runner: web.AppRunner | None = None
        self._site: web.SockSite | None = None

    def start(self) -> None:
        """Start the thread and listen.

        Raises:
            OSError: the address cannot be bound.
        """
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="apiserver", daemon=True)
        self._thread.start()
        try:
            self.run(self._open_runner())
            self.open()
        except OSError:
            self.stop()
            raise

    def stop(self) -> None:
        """Drop everything and end the thread."""
        if self._thread is None or self._loop is None:
            return
        self.close()
        self.run(self._close_runner())
        loop, self._loop = self._loop, None
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join()
        self._thread = None
        loop.close()

    def open(self) -> None:
        """Listen, on the port of last time if there was one. Does nothing when listening already."""
        self.run(self._open_site())

    def close(self) -> None:
        """Stop listening and drop every connection."""
        self.run(self._close_site())

    def drop_connections(self) -> None:
        """Drop every connection and go on listening."""
        self.run(self._abort_all())

    def post(self, callback: Callable[[], None]) -> None:
        """Run a callback on the event loop soon; dropped when the loop is gone."""
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # closed by another thread just now
                loop.call_soon_threadsafe(callback)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the event loop and return its result.

        Raises:
            RuntimeError: the server is not started.
        """
        if self._loop is None:
            work.close()
            raise RuntimeError("the server is not started")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _open_runner(self) -> None:
        app = web.Application(client_max_size=_MAX_BODY)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handler_cancellation=True,
            keepalive_timeout=_KEEPALIVE_SECONDS,
            shutdown_timeout=0.1,
        )
        await self._runner.setup()

    async def _close_runner(self) -> None:
        if self._runner is not None:
            await self._abort_all()
            await self._runner.cleanup()
            self._runner = None
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _open_site(self) -> None:
        if self._site is not None or self._runner is None:
            return
        made = self._sockets(self.host, self.port)
        self.port = made.getsockname()[1]
        context = self._tls.context() if self._tls is not None else None
        self._site = web.SockSite(self._runner, made, ssl_context=context, backlog=256)
        await self._site.start()

    async def _close_site(self) -> None:
        if self._site is not None:
            site, self._site = self._site, None
            await self._abort_all()
            await site.stop()
        await self._abort_all()

    async def _abort_all(self) -> None:
        server = self._runner.server if self._runner is not None else None
        for connection in list(server.connections) if server is not None else ():
            if connection.transport is not None:
                connection.transport.abort()
