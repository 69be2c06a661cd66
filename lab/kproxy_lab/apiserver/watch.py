"""Watch streams: positions in the shared history, bookmarks, streamed initial lists.

A stream holds no queue of its own. It remembers how far in the resource's history it has read, so
any number of slow watchers cost the same memory, and one that is too far behind is cut off: its
client has to list again, as with a real server whose watch cache has moved on.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable

import msgspec
from aiohttp import web

from kproxy_lab.apiserver.body import BodyWriter, CutError, Wakers, abort, error_line
from kproxy_lab.apiserver.errors import JSON, ApiError
from kproxy_lab.apiserver.faults import Armed, FaultBook
from kproxy_lab.apiserver.listing import ListOptions, watch_seconds
from kproxy_lab.apiserver.resources import Resource
from kproxy_lab.apiserver.store import Entry, Store

INITIAL_EVENTS_END = "k8s.io/initial-events-end"
"""Annotation of the bookmark that ends a streamed list (KEP-3157)."""

_BATCH = 256
_HEAD = {kind: f'{{"type":"{kind}","object":'.encode() for kind in ("ADDED", "MODIFIED", "DELETED")}
_TAIL = b"}\n"


class Hub:
    """The running watches. Everything but :meth:`wait` belongs to the event loop's thread."""

    def __init__(self, store: Store, *, buffer: int) -> None:
        self.store = store
        self.wakers = Wakers()
        self._buffer = buffer
        self._streams: set[WatchStream] = set()
        self._changed = threading.Condition()

    def add(self, stream: WatchStream) -> None:
        """Register a stream."""
        with self._changed:
            self._streams.add(stream)
            self._changed.notify_all()

    def discard(self, stream: WatchStream) -> None:
        """Unregister a stream."""
        with self._changed:
            self._streams.discard(stream)
            self._changed.notify_all()

    def wake(self) -> None:
        """Wake every stream to read new changes, and end those that are too far behind."""
        for stream in tuple(self._streams):
            if self.store.tables[stream.resource].end - stream.position > self._buffer:
                stream.cut()
            stream.wake.set()
        self.wakers.wake()

    def running(self, resource: str | None = None) -> int:
        """Return how many watches run, of one resource (plural) or of all."""
        return sum(1 for one in tuple(self._streams) if resource in (None, one.resource.plural))

    def drop(self, resource: str | None = None) -> None:
        """Drop the connections of running watches."""
        for stream in tuple(self._streams):
            if resource in (None, stream.resource.plural):
                stream.cut()

    def wait(self, count: int, resource: str | None, timeout: float) -> bool:
        """Block until exactly ``count`` watches run; False after ``timeout`` seconds. Any thread."""
        with self._changed:
            return self._changed.wait_for(lambda: self.running(resource) == count, timeout)


class WatchStream:
    """One watch request, from its first event to its end."""

    def __init__(
        self, hub: Hub, faults: FaultBook, request: web.BaseRequest, resource: Resource,
        options: ListOptions, bookmark_interval: float,
    ) -> None:  # fmt: skip
        self.resource = resource
        self.position = 0
        self.wake = asyncio.Event()
        self._hub = hub
        self._faults = faults
        self._request = request
        self._options = options
        self._bookmark_interval = bookmark_interval

    def cut(self) -> None:
        """Drop the connection."""
        abort(self._request)

    async def run(self, armed: Armed | None) -> web.StreamResponse:
        """Answer the request until its time is up, the client leaves or a fault ends it."""
        store = self._hub.store
        failure: ApiError | None = None
        initial: list[Entry] = []
        with store.transaction():
            try:
                initial = self._begin(store)
            except ApiError as error:
                failure = error
            revision = store.revision
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(self._request)
        body = BodyWriter(self._request, response, self._hub.wakers.listening)
        self._hub.add(self)
        try:
            if armed is not None:
                await body.strike(armed)
            if failure is not None:
                await body.send(error_line(failure))
            else:
                await self._send_initial(body, initial, revision)
                initial.clear()
                await self._follow(body, revision)
        except CutError as cut:
            if not cut.clean:
                return response
            response.force_close()
        except ConnectionError:
            return response
        finally:
            self._hub.discard(self)
        await response.write_eof()
        return response

    def _begin(self, store: Store) -> list[Entry]:
        """Take up a position and return the entries to send as synthetic ADDED events first."""
        options, table = self._options, store.tables[self.resource]
        if options.initial_events is True or (options.initial_events is None and not options.revision):
            self.position = table.end
            return [entry for entry in table.at(store.revision) if entry.matches(options.selection)]
        self.position = table.position(options.revision) if options.revision else table.end
        return []

    async def _send_initial(self, body: BodyWriter, entries: list[Entry], revision: int) -> None:
        for start in range(0, len(entries), _BATCH):
            batch = entries[start : start + _BATCH]
            await body.send(_lines(("ADDED", entry.body) for entry in batch))
            await asyncio.sleep(0)
        if self._options.initial_events is True and self._options.bookmarks:
            await body.send(bookmark(self.resource, revision, initial_events_end=True))

    async def _follow(self, body: BodyWriter, revision: int) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + watch_seconds(self._options)
        next_bookmark = loop.time() + self._bookmark_interval
        agent = self._request.headers.get("User-Agent", "")
        while loop.time() < deadline:
            self.wake.clear()
            armed = self._faults.take(self.resource.plural, "watch", agent, running=True)
            if armed is not None:
                await body.strike(armed)
            try:
                changes, now = self._hub.store.changes(self.resource, self.position, _BATCH)
            except ApiError as error:
                await body.send(error_line(error))
                return
            if changes:
                self.position += len(changes)
                seen = (change.seen_by(self._options.selection) for change in changes)
                if data := _lines(event for event in seen if event is not None):
                    await body.send(data)
                await asyncio.sleep(0)
                continue
            revision = now
            if self._options.bookmarks and loop.time() >= next_bookmark:
                next_bookmark = loop.time() + self._bookmark_interval
                await body.send(bookmark(self.resource, revision))
            until = min(deadline, next_bookmark) if self._options.bookmarks else deadline
            await self._wait(until - loop.time())
        if self._options.bookmarks:
            await body.send(bookmark(self.resource, revision))

    async def _wait(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self.wake.wait(), max(seconds, 0))
        except TimeoutError:
            return


def bookmark(resource: Resource, revision: int, *, initial_events_end: bool = False) -> bytes:
    """Return a BOOKMARK line: an otherwise empty object with a resourceVersion."""
    metadata: JSON = {"resourceVersion": str(revision), "creationTimestamp": None}
    if initial_events_end:
        metadata["annotations"] = {INITIAL_EVENTS_END: "true"}
    head = {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata}
    return msgspec.json.encode({"type": "BOOKMARK", "object": {**head, **resource.zero}}) + b"\n"


def _lines(events: Iterable[tuple[str, bytes]]) -> bytes:
    return b"".join(part for kind, body in events for part in (_HEAD[kind], body, _TAIL))
