"""The file of `kproxy record`: what a node saw, one JSON entry a line, for a replay elsewhere.

The first line is the header. Settings and facts of the node follow, then the events in the order in which
they came, numbered from 1, then reports of the agent. Objects have only the fields that kproxy uses, so no
file holds a Secret, a token or the contents of a kubeconfig. A name that ends in .gz is compressed.
"""

import gzip
import os
import threading
import time
import zlib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from kproxy.sources.base import Sink
from kproxy.state.compact_endpoints import CompactEndpoints
from kproxy.state.decode import decode
from kproxy.state.kinds import KINDS, Kind
from kproxy.state.problems import ObjectRejected, Problem
from kproxy.state.wire import WireObject

FORMAT = 1
MAX_BYTES = 256 * 1024 * 1024
"""The most bytes of entries that a recorder keeps, and the most that are read from a file."""

_GZIP = b"\x1f\x8b"


class _Entry(msgspec.Struct, frozen=True, tag_field="entry", rename="camel", omit_defaults=True):
    """A line."""


class Header(_Entry, frozen=True, tag="recording"):
    """The first line. `created` is the time in UTC, `node` the name of the node."""

    format: int
    node: str
    version: str = ""
    created: str = ""
    anonymized: bool = False


class RecordedSettings(_Entry, frozen=True, tag="settings"):
    """The documents of the configuration file, without paths of this machine."""

    documents: tuple[dict[str, Any], ...]


class RecordedNode(_Entry, frozen=True, tag="node"):
    """Facts that no object has: addresses of interfaces, and (address, port) of the API servers.

    `addresses` is None if the recording was made on another machine; then those of the Node count.
    """

    addresses: tuple[str, ...] | None = None
    api_servers: tuple[tuple[str, int], ...] = ()
    kernel: str = ""


class Listed(_Entry, frozen=True, tag="listed"):
    """An object of the list that the next `list_complete` of its kind ends."""

    kind: str
    object: msgspec.Raw


class ListComplete(_Entry, frozen=True, tag="list_complete"):
    """Event: a complete list. `unreadable` are keys of objects that could not be decoded."""

    event: int
    kind: str
    seconds: float = 0.0
    unreadable: tuple[str, ...] = ()


class Upserted(_Entry, frozen=True, tag="upsert"):
    """Event: an object was added or changed; `seconds` since the start of the recording."""

    event: int
    kind: str
    object: msgspec.Raw
    seconds: float = 0.0
    version: str = ""


class Deleted(_Entry, frozen=True, tag="delete"):
    """Event: an object is gone."""

    event: int
    kind: str
    key: str
    seconds: float = 0.0


class Rejected(_Entry, frozen=True, tag="reject"):
    """Event: an object that could not be used."""

    event: int
    kind: str
    problem: Problem
    key: str | None = None
    seconds: float = 0.0


class AgentReport(_Entry, frozen=True, tag="report"):
    """The answer of the running agent to a path: its status with the last syncs, its last changes."""

    path: str
    answer: msgspec.Raw


Event = ListComplete | Upserted | Deleted | Rejected
Entry = Header | RecordedSettings | RecordedNode | Listed | Event | AgentReport
_ENTRY: msgspec.json.Decoder[Entry] = msgspec.json.Decoder(Entry)


class RecordingError(ValueError):
    """A file that is no recording. `reason` names the line and the field; the message also the file."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason


class Recording(msgspec.Struct, frozen=True):
    """The entries of a file, in order."""

    header: Header
    entries: tuple[Entry, ...]

    @property
    def documents(self) -> tuple[dict[str, Any], ...]:
        """The documents of the settings."""
        return next((each.documents for each in self.entries if isinstance(each, RecordedSettings)), ())

    @property
    def node(self) -> RecordedNode | None:
        """The facts of the node, if they were recorded."""
        return next((each for each in self.entries if isinstance(each, RecordedNode)), None)

    @property
    def events(self) -> int:
        """The number of the last event."""
        return max((each.event for each in self.entries if isinstance(each, Event)), default=0)

    def until(self, last: int) -> "Recording":
        """The recording up to this event; 0: all of it."""
        if not last:
            return self
        kept: list[Entry] = []
        for entry in self.entries:
            if isinstance(entry, Event) and entry.event > last:
                break
            kept.append(entry)
        while kept and isinstance(kept[-1], Listed):
            kept.pop()
        return Recording(self.header, tuple(kept))

    def play(self, sink: Sink, until: int = 0, kinds: Iterable[Kind] = KINDS) -> None:
        """Pass the events up to this number (0: all) to a sink, those of other kinds excepted."""
        known = {kind.name: kind for kind in kinds}
        listed: dict[Kind, list[WireObject]] = {kind: [] for kind in known.values()}
        for entry in self.entries:
            if isinstance(entry, Event) and until and entry.event > until:
                return
            kind = known.get(getattr(entry, "kind", ""))
            if kind is None:
                continue
            match entry:
                case Listed():
                    listed[kind].append(decode(kind, entry.object))
                case ListComplete():
                    sink.replace(kind, listed[kind], entry.unreadable)
                    listed[kind] = []
                case Upserted():
                    sink.upsert(kind, decode(kind, entry.object))
                case Deleted():
                    sink.delete(kind, entry.key)
                case Rejected():
                    sink.reject(kind, entry.key, entry.problem)


def encode_object(obj: WireObject) -> msgspec.Raw:
    """An object as JSON, with the fields that kproxy uses."""
    return msgspec.Raw(msgspec.json.encode(obj, enc_hook=_plain))


def _plain(value: object) -> object:
    if isinstance(value, CompactEndpoints):
        return tuple(value)
    raise NotImplementedError(type(value).__name__)


def read_recording(path: Path) -> Recording:
    """Read a file, check every line of it. Raises RecordingError, OSError."""
    lines = _content(path).splitlines()
    entries: list[Entry] = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(_checked(line, entries))
        except ObjectRejected as error:
            raise RecordingError(path, f"line {number}: object: {error}") from error
        except (ValueError, RecursionError) as error:
            raise RecordingError(path, f"line {number}: {error}") from error
    if not entries or not isinstance(header := entries[0], Header):
        raise RecordingError(path, "line 1: entry: the file is empty, not a recording")
    return Recording(header, tuple(entries[1:]))


def _checked(line: bytes, before: Sequence[Entry]) -> Entry:
    """Decode a line that follows these. Raises ValueError, ObjectRejected."""
    entry = _ENTRY.decode(line)
    if isinstance(entry, Header) != (not before):
        raise ValueError('entry: the first line, and no other, is {"entry": "recording", ...}')
    if isinstance(entry, Header) and entry.format != FORMAT:
        raise ValueError(f"format: {entry.format} is not {FORMAT}, which this kproxy reads")
    if isinstance(entry, Event | Listed):
        kind = next((each for each in KINDS if each.name == entry.kind), None)
        if kind is None:
            raise ValueError(f"kind: {entry.kind!r} is none of {', '.join(map(str, KINDS))}")
        if isinstance(entry, Listed | Upserted):
            decode(kind, entry.object)
    if isinstance(entry, Event):
        last = next((each.event for each in reversed(before) if isinstance(each, Event)), 0)
        if entry.event != last + 1:
            raise ValueError(f"event: {entry.event} follows {last}")
    return entry


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        is_zipped = file.read(len(_GZIP)) == _GZIP
    try:
        with gzip.open(path) if is_zipped else path.open("rb") as stream:
            data: bytes = stream.read(MAX_BYTES + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise RecordingError(path, f"is not complete: {error}") from error
    if len(data) > MAX_BYTES:
        raise RecordingError(path, f"has more than {MAX_BYTES} bytes")
    return data


def write_recording(path: Path, recording: Recording) -> None:
    """Write a file that only its owner may read. Raises OSError."""
    lines = b"".join(msgspec.json.encode(each) + b"\n" for each in (recording.header, *recording.entries))
    data = gzip.compress(lines, mtime=0) if path.suffix == ".gz" else lines
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o600)
        file.truncate()
        file.write(data)


class Recorder:
    """Keeps what a source reports, up to a number of bytes, and passes it on (implements Sink).

    Events of one kind come from one thread each; their order is that in which they came.
    """

    def __init__(
        self, needed: Collection[Kind] = (), sink: Sink | None = None, max_bytes: int = MAX_BYTES
    ) -> None:
        """`needed`: the kinds whose first lists set `complete`."""
        self._lock = threading.Lock()
        self._needed = frozenset(needed)
        self._sink = sink
        self._left = max_bytes
        self._began = time.monotonic()
        self._events = 0
        self.entries: list[Entry] = []
        self.synced: set[Kind] = set()
        self.complete = threading.Event()
        self._closed = False
        self.full = False
        """Whether an event did not fit; it and all later ones are left out."""

    def close(self) -> None:
        """Keep nothing that comes later."""
        with self._lock:
            self._closed = True

    def replace(self, kind: Kind, objects: Sequence[WireObject], unreadable: Collection[str]) -> None:
        """Keep a complete list."""
        listed = [Listed(kind.name, encode_object(each)) for each in objects]
        with self._lock:
            self._keep(
                *listed, ListComplete(self._next(), kind.name, self._seconds(), tuple(sorted(unreadable)))
            )
            if not self._closed:
                self.synced.add(kind)
            if self._needed <= self.synced:
                self.complete.set()
            if self._sink is not None:
                self._sink.replace(kind, objects, unreadable)

    def upsert(self, kind: Kind, obj: WireObject) -> None:
        """Keep a changed object."""
        self.upsert_version(kind, obj, "")

    def upsert_version(self, kind: Kind, obj: WireObject, version: str) -> None:
        """Keep a changed object of this resourceVersion."""
        raw = encode_object(obj)
        with self._lock:
            self._keep(Upserted(self._next(), kind.name, raw, self._seconds(), version))
            if self._sink is not None:
                self._sink.upsert(kind, obj)

    def delete(self, kind: Kind, key: str) -> None:
        """Keep a removal."""
        with self._lock:
            self._keep(Deleted(self._next(), kind.name, key, self._seconds()))
            if self._sink is not None:
                self._sink.delete(kind, key)

    def reject(self, kind: Kind, key: str | None, problem: Problem) -> None:
        """Keep a defect."""
        with self._lock:
            self._keep(Rejected(self._next(), kind.name, problem, key, self._seconds()))
            if self._sink is not None:
                self._sink.reject(kind, key, problem)

    def _next(self) -> int:
        return self._events + 1

    def _seconds(self) -> float:
        return round(time.monotonic() - self._began, 3)

    def _keep(self, *entries: Entry) -> None:
        """Keep the entries of one event, all or none."""
        if self._closed:
            return
        self._left -= sum(len(msgspec.json.encode(each)) + 1 for each in entries)
        self.full = self.full or self._left < 0
        if not self.full:
            self._events += 1
            self.entries += entries
