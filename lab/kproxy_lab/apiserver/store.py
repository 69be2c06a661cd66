"""The revisioned store: objects as encoded bytes, and a bounded history per resource.

One revision counter serves all resources, as etcd's does. An object is encoded once, when it is
written; lists and watch streams only join those bytes. The history serves three readers: watches
(each holds a position in it, so a slow one costs no memory), lists at an older revision (changes
undone from the newest back), and expiry (what has been forgotten answers 410).
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import msgspec

from kproxy_lab.apiserver.errors import JSON, ApiError
from kproxy_lab.apiserver.resources import Resource
from kproxy_lab.apiserver.selection import Selection, field_value, label_values

DEFAULT_HISTORY = 32_768
"""Changes remembered per resource."""

_SNAPSHOTS = 4
_revision_of = attrgetter("revision")
_key_of = attrgetter("key")


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One stored version of an object. ``body`` is its JSON, kind and apiVersion first."""

    resource: Resource
    key: str
    namespace: str
    name: str
    revision: int
    labels: dict[str, str]
    fields: tuple[str, ...]
    body: bytes

    def field_of(self, path: str) -> str:
        """Return a selectable field's value."""
        if path == "metadata.name":
            return self.name
        if path == "metadata.namespace":
            return self.namespace
        return self.fields[self.resource.fields.index(path)]

    def matches(self, selection: Selection) -> bool:
        """Return whether the selection wants this version."""
        return selection.matches(self.namespace, self.labels, self.field_of)

    def decode(self) -> JSON:
        """Return a fresh dict of the object."""
        decoded: JSON = msgspec.json.decode(self.body)
        return decoded


class Change:
    """One write: the version before, the version after, and the revision it happened at."""

    __slots__ = ("_last", "new", "old", "revision")

    def __init__(self, revision: int, old: Entry | None, new: Entry | None) -> None:
        self.revision = revision
        self.old = old
        self.new = new
        self._last: bytes | None = None

    def seen_by(self, selection: Selection) -> tuple[str, bytes] | None:
        """Return the event type and object a watch with this selection gets, or None.

        An object that stops matching is DELETED for that watch and one that starts matching is
        ADDED, whatever happened to it in the store.
        """
        was = self.old is not None and self.old.matches(selection)
        if self.new is not None and self.new.matches(selection):
            return ("MODIFIED" if was else "ADDED"), self.new.body
        return ("DELETED", self._last_state()) if was else None

    def _last_state(self) -> bytes:
        """Return the old object with this change's revision, as DELETED events carry it."""
        if self._last is None and self.old is not None:
            obj = self.old.decode()
            if isinstance(obj.get("metadata"), dict):
                obj["metadata"]["resourceVersion"] = str(self.revision)
            self._last = msgspec.json.encode(obj)
        return self._last or b"{}"


class Table:
    """The objects of one resource and their recent history. Guarded by the store's lock."""

    def __init__(self, resource: Resource, limit: int) -> None:
        self.resource = resource
        self.entries: dict[str, Entry] = {}
        self.history: list[Change] = []
        self.first = 0
        """Sequence number of ``history[0]``; positions of watches are sequence numbers."""
        self.floor = 0
        """Revision of the newest forgotten change: reads from before it are expired."""
        self.changed = 0
        """Revision of the newest change."""
        self._limit = limit
        self._keys: list[str] | None = None
        self._snapshots: OrderedDict[int, list[Entry]] = OrderedDict()

    @property
    def end(self) -> int:
        """Return the sequence number the next change will get."""
        return self.first + len(self.history)

    def record(self, change: Change) -> None:
        """Apply one change and remember it."""
        if change.new is not None:
            if change.old is None:
                self._keys = None
            self.entries[change.new.key] = change.new
        elif change.old is not None:
            self._keys = None
            del self.entries[change.old.key]
        self.history.append(change)
        self.changed = change.revision
        if len(self.history) > self._limit + self._limit // 4:
            self.forget(len(self.history) - self._limit)

    def forget(self, count: int) -> None:
        """Drop the oldest ``count`` changes."""
        if count > 0:
            self.floor = self.history[count - 1].revision
            self.first += count
            del self.history[:count]

    def compact(self, revision: int) -> None:
        """Forget everything before ``revision``."""
        self.forget(len(self.history))
        self.floor = revision
        self._snapshots.clear()

    def position(self, revision: int) -> int:
        """Return the sequence number of the first change after ``revision``.

        Raises:
            ApiError: 410, that change may have been forgotten.
        """
        if revision < self.floor:
            raise ApiError.expired(f"too old resource version: {revision} ({self.floor})")
        return self.first + bisect_right(self.history, revision, key=_revision_of)

    def at(self, revision: int) -> list[Entry]:
        """Return all entries as of a revision, ordered by key.

        Raises:
            ApiError: 410, the history does not reach back that far.
        """
        if revision >= self.changed:
            if self._keys is None:
                self._keys = sorted(self.entries)
            return [self.entries[key] for key in self._keys]
        if revision in self._snapshots:
            return self._snapshots[revision]
        start = self.position(revision) - self.first
        past: dict[str, Entry] = dict(self.entries)
        for change in reversed(self.history[start:]):
            if change.old is not None:
                past[change.old.key] = change.old
            elif change.new is not None:
                past.pop(change.new.key, None)
        found = self._snapshots[revision] = sorted(past.values(), key=_key_of)
        while len(self._snapshots) > _SNAPSHOTS:
            self._snapshots.popitem(last=False)
        return found


class Store:
    """All tables under one lock and one revision counter. Safe to use from any thread."""

    def __init__(self, resources: Iterable[Resource], *, history: int = DEFAULT_HISTORY) -> None:
        self.tables = {resource: Table(resource, history) for resource in resources}
        self.history = history
        self.revision = 1
        self._lock = threading.RLock()
        self._depth = 0
        self._dirty = False
        self._listeners: list[Callable[[], None]] = []

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Lock the store; listeners are called once, when the outermost block ends."""
        notify = False
        try:
            with self._lock:
                self._depth += 1
                try:
                    yield
                finally:
                    self._depth -= 1
                    notify = self._dirty and not self._depth
                    if notify:
                        self._dirty = False
        finally:
            if notify:
                for listener in self._listeners:
                    listener()

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call ``listener()`` after every transaction that changed something, from the writer's thread."""
        self._listeners.append(listener)

    def get(self, resource: Resource, key: str) -> Entry | None:
        """Return the current version, or None."""
        with self._lock:
            return self.tables[resource].entries.get(key)

    def put(self, resource: Resource, namespace: str, name: str, obj: JSON) -> Entry:
        """Write an object and return its new version. Sets ``obj``'s metadata.resourceVersion."""
        with self.transaction():
            self.revision += 1
            entry = make_entry(resource, namespace, name, obj, self.revision)
            old = self.tables[resource].entries.get(entry.key)
            self.tables[resource].record(Change(self.revision, old, entry))
            self._dirty = True
            return entry

    def remove(self, entry: Entry) -> Change:
        """Delete the current version of an object."""
        with self.transaction():
            self.revision += 1
            change = Change(self.revision, entry, None)
            self.tables[entry.resource].record(change)
            self._dirty = True
            return change

    def compact(self) -> None:
        """Forget all history; reads and watches from before the current revision are expired."""
        with self.transaction():
            for table in self.tables.values():
                table.compact(self.revision)

    def reset(self) -> None:
        """Forget every object and all history, keeping the revision counter rising."""
        with self.transaction():
            self.tables = {resource: Table(resource, self.history) for resource in self.tables}
            self.compact()

    def entries(self, resource: Resource) -> list[Entry]:
        """Return the current entries, ordered by key."""
        with self._lock:
            return self.tables[resource].at(self.revision)

    def changes(self, resource: Resource, position: int, limit: int) -> tuple[list[Change], int]:
        """Return up to ``limit`` changes from a position, and the store's revision.

        When fewer than ``limit`` come back, the reader has seen everything up to that revision.

        Raises:
            ApiError: 410, the position has fallen out of the history.
        """
        with self._lock:
            table = self.tables[resource]
            if position < table.first:
                raise ApiError.expired(f"too old resource version: reader fell behind ({table.floor})")
            start = position - table.first
            return table.history[start : start + limit], self.revision


def make_entry(resource: Resource, namespace: str, name: str, obj: JSON, revision: int) -> Entry:
    """Encode an object as a version; a malformed one is stored as it is.

    metadata.resourceVersion is set unless the object carries something there that no server would
    have written (kept so that clients can be tested against it).
    """
    metadata = obj.get("metadata")
    if isinstance(metadata, dict):
        given: Any = metadata.get("resourceVersion")
        if given is None or (isinstance(given, str) and (given == "" or given.isdecimal())):
            metadata["resourceVersion"] = str(revision)
    head = {k: obj[k] for k in ("kind", "apiVersion", "metadata") if k in obj}
    return Entry(
        resource=resource,
        key=resource.key(namespace, name),
        namespace=namespace,
        name=name,
        revision=revision,
        labels=label_values(obj),
        fields=tuple(
            field_value(obj, path) or resource.field_defaults.get(path, "") for path in resource.fields
        ),
        body=msgspec.json.encode({**head, **obj}),
    )
