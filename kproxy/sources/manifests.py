"""Objects from a directory of manifests; they stay in force while files change, break and are fixed.

This is for nodes without a cluster, for demonstrations and for `kproxy render`. A missing directory is an
outage, not an empty list: nothing is listed before it exists, and nothing is removed when it disappears. To
remove objects, delete their files or delete them from the files.
"""

import threading
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import structlog

from kproxy.sources.base import ForgettingSink, ProblemSink, Sink
from kproxy.sources.directory_watch import DirectoryWatch
from kproxy.sources.manifest_directory import (
    LoadedManifests,
    ManifestSourceConfig,
    Signature,
    load_manifests,
    read_file,
    signature_of,
    signatures_in,
)
from kproxy.sources.manifest_files import ManifestFile, ObjectKey, Rejection
from kproxy.sources.manifest_set import Changes, ManifestSet
from kproxy.state.kinds import KINDS, Kind
from kproxy.state.problems import Problem
from kproxy.state.wire import WireObject

__all__ = ["LoadedManifests", "ManifestSource", "ManifestSourceConfig", "MissingDirectory", "load_manifests"]

log = structlog.stdlib.get_logger(__name__)

_LOGGED = 10
"""Problems of one file that are logged one by one; the rest is counted. All of them reach the sink."""


_STALE = Signature(-1, -1, -1, -1, -1)
"""The signature of a file that has to be read again, whether it changes or not."""

_LAST = (Kind.SERVICE, Kind.ENDPOINT_SLICE)
"""Kinds that are listed after all others, which they depend on."""


class MissingDirectory(NamedTuple):
    """The time (seconds since the epoch) since which a directory cannot be listed, and the reason."""

    since: float
    reason: str


class ManifestSource:
    """Feeds a Sink from a directory of *.yaml, *.yml and *.json files (implements Source).

    Every object of `kinds` is fed; of Nodes only the one named `node`.
    """

    def __init__(
        self,
        directory: Path,
        node: str | None = None,
        config: ManifestSourceConfig | None = None,
        kinds: Collection[Kind] = KINDS,
    ) -> None:
        self._kinds = self._next_kinds = tuple(kinds)
        self._watch: DirectoryWatch | None = None
        self._directory = directory.absolute()
        self._node = node
        self._config = config or ManifestSourceConfig()
        self._manifests = ManifestSet()
        self._known: dict[str, Signature] = {}
        self._fresh: dict[str, Signature] = {}
        self._rejections: dict[str, list[Rejection]] = {}
        self._listed: set[Kind] = set()
        self._deferred = False
        self._unsettled = False
        self._problems: tuple[Problem, ...] = ()
        self._list_by = 0.0
        self._missing: MissingDirectory | None = None
        self._found_at: float | None = None

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All current defects of the files; may be read from any thread."""
        return self._problems

    @property
    def listed(self) -> bool:
        """Whether the first complete list was delivered to the sink; may be read from any thread."""
        return bool(self._listed)

    @property
    def found_at(self) -> float | None:
        """The time (seconds since the epoch) since which the directory exists; None if it does not."""
        return self._found_at

    @property
    def missing(self) -> MissingDirectory | None:
        """The time and reason if the directory cannot be listed, else None; may be read from any thread."""
        return self._missing

    def run(self, sink: Sink, stop: threading.Event) -> None:
        """Feed `sink` until `stop` is set."""
        config = self._config
        self._list_by = time.monotonic() + config.hold_seconds
        watch = DirectoryWatch(
            self._directory,
            stop,
            settle=config.settle_seconds,
            settle_max=config.settle_max_seconds,
            hold=config.hold_seconds,
        )
        self._watch = watch
        with watch:
            while not stop.is_set():
                self._scan(sink, watch)
                if watch.has_events:
                    watch.wait(config.settle_max_seconds if self._unsettled else config.rescan_seconds)
                else:
                    watch.wait(config.rescan_without_events_seconds)
                    watch.refresh()

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds that are read, from the next scan on; may be read from any thread."""
        return self._next_kinds

    def read_kinds(self, kinds: Collection[Kind]) -> None:
        """Feed objects of these kinds, and no others, from now on; may be called from any thread."""
        self._next_kinds = tuple(kinds)
        watch = self._watch
        if watch is not None:
            watch.wake()

    def _take_kinds(self, sink: Sink) -> None:
        """If the kinds changed, let the sink forget those that are gone, and read every file again."""
        kinds = self._next_kinds
        if kinds == self._kinds:
            return
        for kind in self._kinds:
            if kind not in kinds:
                self._listed.discard(kind)
                if isinstance(sink, ForgettingSink):
                    sink.forget(kind)
        self._kinds = kinds
        self._known = dict.fromkeys(self._known, _STALE)
        self._list_by = time.monotonic() + self._config.hold_seconds

    def _scan(self, sink: Sink, watch: DirectoryWatch) -> None:
        """Check every file's signature, read changed files, and pass the changes to the sink."""
        started = time.monotonic()
        self._take_kinds(sink)
        try:
            seen = signatures_in(self._directory)
        except OSError as error:
            self._found_at = None
            if self._missing is None:
                log.warning("manifest_directory_missing", path=str(self._directory), error=error.strerror)
                reason = f"{self._directory}: {error.strerror}"
                self._missing = MissingDirectory(time.time(), reason)
            return
        if self._missing is not None:
            log.info("manifest_directory_found", path=str(self._directory))
            self._missing = None
        self._found_at = self._found_at or time.time()
        files = self._changed(seen, watch)
        changes = self._manifests.merge(files)
        broken = {name: self._rejections.pop(name, []) for name in files}
        for name, content in files.items():
            if content is not None and content.rejections:
                self._rejections[name] = content.rejections
        if files:
            self._problems = tuple(self._defects())
        for name, content in sorted(files.items()):
            self._report(sink, name, content, broken[name])
        for each in changes.conflicts:
            log.warning("manifest_conflict", problem=str(each.problem))
            sink.reject(each.kind, each.key, each.problem)
        self._publish(sink, changes, files, started)
        if files and isinstance(sink, ProblemSink):
            sink.set_problems(self._problems)

    def _publish(
        self, sink: Sink, changes: Changes, files: Mapping[str, ManifestFile | None], started: float
    ) -> None:
        """Pass the first list of each kind to the sink, and later changes of it."""
        first = not self._listed
        if len(self._listed) < len(self._kinds) and not (self._deferred and time.monotonic() < self._list_by):
            self._replace(sink, round((time.monotonic() - started) * 1000))
        if first:
            return
        for key, obj in changes.upserts:
            if self._wanted(key):
                sink.upsert(key.kind, obj)
        for key in changes.deletes:
            if self._wanted(key):
                sink.delete(key.kind, key.key)
        if files:
            log.info(
                "manifests_read", files=len(files), upserts=len(changes.upserts), deletes=len(changes.deletes)
            )

    def _changed(self, seen: dict[str, Signature], watch: DirectoryWatch) -> dict[str, ManifestFile | None]:
        """The new content of changed files; a file that changes while it is read is left to the next scan."""
        gone = (self._known.keys() | self._rejections.keys()) - seen.keys()
        files: dict[str, ManifestFile | None] = dict.fromkeys(gone)
        for name in files:
            self._known.pop(name, None)
        held = watch.held()
        candidates = {
            name: signature
            for name, signature in seen.items()
            if signature != self._known.get(name) and name not in held
        }
        if not watch.has_events and self._listed:
            settled = {n: s for n, s in candidates.items() if self._fresh.get(n) == s}
            self._fresh, candidates = candidates, settled
        self._deferred = not held.isdisjoint(seen)
        self._unsettled = False
        for name, signature in sorted(candidates.items()):
            content = read_file(self._directory / name, self._config, self._kinds)
            if name in watch.held():
                self._deferred = True
                continue
            if signature_of(self._directory / name) != signature:
                self._deferred = self._unsettled = True
                continue
            if not content.read:
                if content.rejections == self._rejections.get(name):
                    continue
            else:
                self._known[name] = signature
            files[name] = content
        return files

    def _report(self, sink: Sink, name: str, content: ManifestFile | None, before: list[Rejection]) -> None:
        """Log the defects of a file that was just read, and the defects fixed since the last read."""
        found = content.rejections if content is not None else []
        if before and not found:
            log.info("manifest_valid_again" if content is not None else "manifest_deleted", file=name)
        elif content is not None:
            fixed = {ObjectKey(each.kind, each.key) for each in before if each.key is not None}
            for key in sorted(fixed & content.objects.keys()):
                log.info("object_valid_again", object=f"{key.kind} {key.key}", file=name)
        for each in found[:_LOGGED]:
            log.warning("manifest_problem", file=name, problem=str(each.problem))
        if len(found) > _LOGGED:
            log.warning("manifest_problems", file=name, count=len(found))
        for each in found:
            sink.reject(each.kind, each.key, each.problem)

    def _defects(self) -> Iterator[Problem]:
        for found in self._rejections.values():
            yield from (each.problem for each in found)
        yield from (each.problem for each in self._manifests.conflicts)
        for key, obj in self._manifests.objects.items():
            yield from key.kind.problems_of(obj)

    def _replace(self, sink: Sink, milliseconds: int) -> None:
        """Pass a complete list of each kind that was not listed yet."""
        kinds = sorted((kind for kind in self._kinds if kind not in self._listed), key=_LAST.__contains__)
        self._listed.update(kinds)
        objects: dict[Kind, list[WireObject]] = {kind: [] for kind in kinds}
        unreadable: dict[Kind, list[str]] = {kind: [] for kind in kinds}
        for key, obj in self._manifests.objects.items():
            if key.kind in objects and self._wanted(key):
                objects[key.kind].append(obj)
        for found in self._rejections.values():
            for each in found:
                if each.key is not None and each.kind in unreadable:
                    unreadable[each.kind].append(each.key)
        for kind in kinds:
            sink.replace(kind, objects[kind], unreadable[kind])
            log.info("list_complete", kind=kind.name, objects=len(objects[kind]), ms=milliseconds)

    def _wanted(self, key: ObjectKey) -> bool:
        return key.kind in self._listed and key.kind.wants(key.key, self._node)
