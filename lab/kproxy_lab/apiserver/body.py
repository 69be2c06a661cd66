"""Writes the body of an answer and injects faults into it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import msgspec
from aiohttp import web

from kproxy_lab.apiserver.errors import ApiError
from kproxy_lab.apiserver.faults import Action, Armed, Fault

GARBAGE = b"<html>upstream connect error</html>\n"
"""A body that is not JSON, as a broken proxy in front of the server sends it."""


class CutError(Exception):
    """A fault ends the answer here. ``clean``: end the HTTP message properly."""

    def __init__(self, *, clean: bool) -> None:
        super().__init__("answer cut by a fault")
        self.clean = clean


class Wakers:
    """Events to set when something changed that a sleeping handler may wait for. Event loop only."""

    def __init__(self) -> None:
        self._events: set[asyncio.Event] = set()

    @contextmanager
    def listening(self) -> Iterator[asyncio.Event]:
        """Register an event for the length of a with-block."""
        event = asyncio.Event()
        self._events.add(event)
        try:
            yield event
        finally:
            self._events.discard(event)

    def wake(self) -> None:
        """Set every registered event."""
        for event in self._events:
            event.set()


Listening = Callable[[], AbstractContextManager[asyncio.Event]]


class BodyWriter:
    """Sends the bytes of one prepared answer with the faults that apply."""

    def __init__(self, request: web.BaseRequest, response: web.StreamResponse, listening: Listening) -> None:
        self._request = request
        self._response = response
        self._listening = listening
        self._armed: Armed | None = None
        self._budget = 0

    async def strike(self, armed: Armed) -> None:
        """Let a fault take effect on what is sent from now on.

        Raises:
            CutError: the fault ends the answer at once.
        """
        fault = armed.fault
        if fault.action is Action.GARBAGE:
            await self._response.write(GARBAGE)
        elif fault.action is Action.WATCH_ERROR:
            await self._response.write(error_line(error_of(fault)))
            raise CutError(clean=True)
        else:
            self._armed, self._budget = armed, fault.after_bytes
            if fault.action is not Action.SLOW and not self._budget:
                await self._act(armed)

    async def send(self, data: bytes) -> None:
        """Send bytes, as far as a fault lets them through.

        Raises:
            CutError: a fault ended the answer.
            ConnectionError: the client is gone.
        """
        armed = self._armed
        if armed is None or armed.removed:
            await self._response.write(data)
        elif armed.fault.action is Action.SLOW:
            await self._send_slowly(data, armed)
        else:
            allowed, rest = data[: self._budget], data[self._budget :]
            self._budget -= len(allowed)
            if allowed:
                await self._response.write(allowed)
            if not self._budget:
                await self._act(armed)
                self._armed = None
                await self._response.write(rest)

    async def _send_slowly(self, data: bytes, armed: Armed) -> None:
        step = max(armed.fault.chunk_bytes, 1)
        for start in range(0, len(data), step):
            if armed.removed:
                await self._response.write(data[start:])
                return
            await self._response.write(data[start : start + step])
            await asyncio.sleep(armed.fault.interval)

    async def _act(self, armed: Armed) -> None:
        if armed.fault.action is Action.STALL:
            await stall(armed, self._listening)
            self._armed = None
            return
        if armed.fault.action is Action.CLOSE:
            abort(self._request)
        raise CutError(clean=armed.fault.action is Action.TRUNCATE)


async def stall(armed: Armed, listening: Listening) -> None:
    """Wait until a fault is removed."""
    with listening() as changed:
        while not armed.removed:
            changed.clear()
            await changed.wait()


def abort(request: web.BaseRequest) -> None:
    """Drop a request's TCP connection."""
    if request.transport is not None:
        request.transport.abort()


def error_of(fault: Fault) -> ApiError:
    """Return the refusal that a status or watch-error fault stands for."""
    messages = {
        410: "too old resource version: 1 (2)",
        429: "the server has received too many requests and has asked us to try again later",
    }
    return ApiError(fault.code, messages.get(fault.code, "injected fault"), retry_after=fault.retry_after)


def error_line(error: ApiError) -> bytes:
    """Return a refusal as the ERROR event of a watch stream."""
    return msgspec.json.encode({"type": "ERROR", "object": error.status()}) + b"\n"
