"""Complete lists of a kind: in pages, or streamed as the first part of a watch if the server supports it.

A list is delivered completely or not at all: any failure raises before the sink is called. Reads are
consistent ones (no resourceVersion), so a list never goes back in time.
"""

import random
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import msgspec

from kproxy.sources.base import ListSink
from kproxy.sources.config import KubernetesSourceConfig
from kproxy.sources.errors import ApiError, DisconnectedError, GatewayError, StalledError, StatusError
from kproxy.sources.expired_410_gone import is_gone
from kproxy.sources.stream import Stream
from kproxy.sources.transport import Transport
from kproxy.sources.wire_events import GarbledError, Page, WatchEvent, read_event, read_page
from kproxy.state.decode import decode
from kproxy.state.kinds import KINDS, Kind
from kproxy.state.problems import ObjectRejected, Problem
from kproxy.state.wire import WireObject

_UNSUPPORTED = frozenset({400, 404, 405, 422})
"""Answers of servers without streamed lists (422: the WatchList gate is off; KEP-3157)."""

_TEMPORARY = frozenset({401, 410, 429})
"""Answers after which the same request may succeed; 401: credentials are read again for each request."""

UNAVAILABLE = frozenset({403, 404})
"""Answers of servers that do not permit a kind, or do not have it."""

_BAD_REQUEST = 400

_RESTARTS = 2
"""Restarts of a paged list after an expired continue token, before it is requested in one piece."""


def mends_with_time(error: StatusError) -> bool:
    """Whether to retry a streamed list after this answer; after any other, pages are requested at once.

    As in client-go (Reflector.watchList): too many requests, an expired version, and no server behind a load
    balancer; also a Retry-After. A server whose storage lacks watch progress answers 500 each time.
    """
    return isinstance(error, GatewayError) or error.retry_after is not None or error.code in _TEMPORARY


class StoppedError(Exception):
    """The source was stopped."""


class StreamedListUnsupportedError(ApiError):
    """The server does not stream lists, or does not mark the end of one."""


class StreamedListSupport:
    """Whether the server streams lists, shared by all kinds so that not every list has to try it."""

    def __init__(self, config: KubernetesSourceConfig) -> None:
        self._config = config
        self._not_before = 0.0 if config.streamed_list else float("inf")

    def expected(self) -> bool:
        """Whether to request a streamed list."""
        return time.monotonic() >= self._not_before

    def refuse(self) -> None:
        """Record that the server does not stream lists."""
        self._not_before = time.monotonic() + self._config.streamed_list_retry_seconds


@dataclass(frozen=True, slots=True)
class Resource:
    """The objects of one kind that this node needs: their path, and the selectors the server filters by."""

    kind: Kind
    path: str
    selectors: dict[str, str]
    node: str | None
    """This node's name; None: not known, and no Node is needed."""
    simpler_selectors: tuple[dict[str, str], ...] = ()
    """What to send instead, one after the other, where the server does not know the selectors."""

    def simpler(self) -> "Resource | None":
        """The same with the next simpler selectors, by which more objects match; None: there are none."""
        if not self.simpler_selectors:
            return None
        first, *others = self.simpler_selectors
        return replace(self, selectors=first, simpler_selectors=tuple(others))

    def wants(self, key: str) -> bool:
        """Whether an object is needed; the server may send others."""
        return self.kind.wants(key, self.node)


def resources(node: str | None, kinds: Iterable[Kind] = KINDS) -> tuple[Resource, ...]:
    """The resource to request for each kind; a kind limited to this node's object needs the node's name."""
    return tuple(
        Resource(
            kind,
            kind.path,
            _selectors(kind, kind.field_selector, node),
            node,
            tuple(_selectors(kind, each, node) for each in kind.simpler_field_selectors),
        )
        for kind in kinds
        if node is not None or not kind.own_node
    )


def after_refusal(resource: Resource, error: Exception | None) -> Resource | None:
    """The resource to request instead after this error, if the server may not know the selectors (400)."""
    return resource.simpler() if isinstance(error, StatusError) and error.code == _BAD_REQUEST else None


def _selectors(kind: Kind, field_selector: str, node: str | None) -> dict[str, str]:
    name = f"metadata.name={node}" if kind.own_node else ""
    field = ",".join(filter(None, (field_selector, name)))
    both = {"labelSelector": kind.label_selector, "fieldSelector": field}
    return {key: value for key, value in both.items() if value}


class Snapshot:
    """A list that is being read."""

    def __init__(self, resource: Resource) -> None:
        self._resource = resource
        self._objects: dict[str, WireObject] = {}
        self._problems: dict[str, Problem] = {}
        self._nameless: list[Problem] = []

    def __len__(self) -> int:
        return len(self._objects)

    @property
    def unreadable(self) -> int:
        """The number of objects that exist but could not be decoded."""
        return len(self._problems) + len(self._nameless)

    def add(self, raw: msgspec.Raw, key: str = "") -> None:
        """Add one object; `key` is used if it cannot be decoded and its own key cannot be read."""
        try:
            decoded = decode(self._resource.kind, raw)
        except ObjectRejected as rejected:
            self._reject(rejected.key or key, rejected.problem)
            return
        if self._resource.wants(decoded.key):
            self._objects[decoded.key] = decoded
            self._problems.pop(decoded.key, None)

    def remove(self, key: str) -> None:
        """Remove one object."""
        self._objects.pop(key, None)
        self._problems.pop(key, None)

    def deliver(self, sink: ListSink) -> None:
        """Pass the list to the sink: problems first, then all objects at once."""
        kind = self._resource.kind
        for key, problem in self._problems.items():
            sink.reject(kind, key, problem)
        for problem in self._nameless:
            sink.reject(kind, None, problem)
        sink.replace(kind, list(self._objects.values()), set(self._problems))

    def _reject(self, key: str, problem: Problem) -> None:
        if not key:
            self._nameless.append(problem)
        elif self._resource.wants(key):
            self._objects.pop(key, None)
            self._problems[key] = problem


def list_paged(
    transport: Transport, resource: Resource, config: KubernetesSourceConfig, stop: threading.Event
) -> tuple[Snapshot, str]:
    """Read a list page by page; return the list and the resourceVersion to watch from.

    A continue token that expired (410) starts the list again. Raises ApiError.
    """
    for restart in range(_RESTARTS + 1):
        limit = config.page_size if restart < _RESTARTS else None
        try:
            return _read_pages(transport, resource, config, limit, stop)
        except StatusError as error:
            if not is_gone(error) or limit is None:
                raise
    raise AssertionError


def _read_pages(
    transport: Transport,
    resource: Resource,
    config: KubernetesSourceConfig,
    limit: int | None,
    stop: threading.Event,
) -> tuple[Snapshot, str]:
    snapshot = Snapshot(resource)
    query = dict(resource.selectors)
    if limit is not None:
        query["limit"] = str(limit)
    version = ""
    while True:
        page = _get_page(transport, resource, query, config)
        version = version or page.metadata.resource_version
        for raw in page.items or ():
            snapshot.add(raw)
        if not page.metadata.continue_:
            return snapshot, version
        query["continue"] = page.metadata.continue_
        if stop.is_set():
            raise StoppedError


def _get_page(
    transport: Transport, resource: Resource, query: dict[str, str], config: KubernetesSourceConfig
) -> Page:
    stream = transport.open(resource.path, query, config.inactivity_seconds)
    try:
        body = stream.read_all(config.page_bytes, config.page_seconds)
    finally:
        stream.close()
    return read_page(body, resource.kind)


def current_version(transport: Transport, resource: Resource, config: KubernetesSourceConfig) -> str:
    """Read the server's current resourceVersion by a list of at most one object."""
    page = _get_page(transport, resource, {**resource.selectors, "limit": "1"}, config)
    return page.metadata.resource_version


def open_watch(
    transport: Transport, resource: Resource, config: KubernetesSourceConfig, version: str
) -> Stream:
    """Open a watch of what changes after a resourceVersion."""
    query = {
        **resource.selectors,
        "watch": "true",
        "allowWatchBookmarks": "true",
        "resourceVersion": version,
        "timeoutSeconds": _watch_seconds(config),
    }
    return transport.open(resource.path, query, config.inactivity_seconds)


def _watch_seconds(config: KubernetesSourceConfig) -> str:
    """How long a watch may last; different for each, so that not all end at once."""
    return str(random.randint(config.watch_min_seconds, config.watch_max_seconds))  # noqa: S311


def open_streamed_list(transport: Transport, resource: Resource, config: KubernetesSourceConfig) -> Stream:
    """Open a watch that begins with all objects; raises StreamedListUnsupportedError if refused."""
    query = {
        **resource.selectors,
        "watch": "true",
        "sendInitialEvents": "true",
        "resourceVersionMatch": "NotOlderThan",
        "allowWatchBookmarks": "true",
        "timeoutSeconds": _watch_seconds(config),
    }
    try:
        return transport.open(resource.path, query, config.inactivity_seconds)
    except StatusError as error:
        if error.code in _UNSUPPORTED:
            raise StreamedListUnsupportedError(str(error)) from error
        raise


def read_streamed_list(
    events: Iterator[WatchEvent], stream: Stream, resource: Resource, config: KubernetesSourceConfig
) -> tuple[Snapshot, str]:
    """Read the first part of a streamed list, up to the bookmark that ends it.

    A server that ignores the parameters sends objects too, but never marks the end of the list. It is
    detected by an ordinary bookmark, by silence, or by the time limit: StreamedListUnsupportedError.
    """
    snapshot = Snapshot(resource)
    deadline = time.monotonic() + config.streamed_list_seconds
    stream.set_timeout(config.streamed_list_idle_seconds)
    try:
        for event in events:
            if event.type in ("ADDED", "MODIFIED"):
                snapshot.add(event.raw, event.key)
            elif event.type == "DELETED":
                if not event.key:
                    raise GarbledError("a DELETED event without a name")
                snapshot.remove(event.key)
            elif event.ends_list and event.version:
                stream.set_timeout(config.inactivity_seconds)
                return snapshot, event.version
            else:
                raise StreamedListUnsupportedError("a bookmark came before the end of the list")
            if time.monotonic() > deadline:
                raise StreamedListUnsupportedError("the end of the list did not come in time")
    except StalledError as error:
        raise StreamedListUnsupportedError("no bookmark ended the list") from error
    raise DisconnectedError("the server closed the connection before the end of the list")


class EventReader:
    """The events of a watch, line by line. `silent` until the first one has arrived."""

    def __init__(self, stream: Stream, kind: Kind, config: KubernetesSourceConfig) -> None:
        self._stream = stream
        self._kind = kind
        self._config = config
        self.silent = True

    def __iter__(self) -> Iterator[WatchEvent]:
        """Yield events until the server ends the watch properly.

        Raises StalledError, DisconnectedError, StatusError and GarbledError (for half a line too).
        """
        parts: list[bytes] = []
        size = 0
        last = time.monotonic()
        while data := self._stream.read():
            now = time.monotonic()
            if b"\n" not in data:
                parts.append(data)
                size += len(data)
                if size > self._config.event_bytes:
                    raise GarbledError(f"an event larger than {self._config.event_bytes} bytes")
                if now - last > self._config.inactivity_seconds:
                    raise StalledError("no complete event any more")
                continue
            *lines, rest = b"".join([*parts, data]).split(b"\n")
            parts, size, last = [rest], len(rest), now
            for line in lines:
                if line.strip():
                    event = read_event(line, self._kind)
                    self.silent = False
                    yield event
        if b"".join(parts).strip():
            raise GarbledError("the last event is cut short")
