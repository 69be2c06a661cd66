"""Merge files into one set of objects: the first file by name wins an object; the next one replaces it.

All changes of one scan of the directory are merged before any is reported, so that an object that moves from
one file to another, or a replacement of all files, causes no delete in between.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kproxy.sources.manifest_files import ManifestFile, ObjectKey, Rejection
from kproxy.state.problems import Problem, show
from kproxy.state.wire import WireObject


@dataclass(slots=True)
class Changes:
    """The changes of a merge."""

    upserts: list[tuple[ObjectKey, WireObject]] = field(default_factory=list)
    deletes: list[ObjectKey] = field(default_factory=list)
    conflicts: list[Rejection] = field(default_factory=list)
    """Objects that are now in more than one file."""


class ManifestSet:
    """The objects of all files. Not thread-safe."""

    def __init__(self) -> None:
        self._files: dict[str, dict[ObjectKey, WireObject]] = {}
        self._holders: dict[ObjectKey, set[str]] = {}

    @property
    def objects(self) -> dict[ObjectKey, WireObject]:
        """Every object in force, each from the file that wins it."""
        return {key: self._files[min(holders)][key] for key, holders in self._holders.items()}

    @property
    def conflicts(self) -> list[Rejection]:
        """One report for each object that is in more than one file."""
        return self._conflicts(key for key, holders in self._holders.items() if len(holders) > 1)

    def merge(self, files: Mapping[str, ManifestFile | None]) -> Changes:
        """Merge the new content of some files (None: the file is gone) and return the changes.

        A file that is not `intact` keeps its former objects, and so does an object that does not decode.
        """
        contents = {name: self._kept(name, content) for name, content in files.items()}
        touched: set[ObjectKey] = set()
        for name, content in contents.items():
            touched |= self._files.get(name, {}).keys() | content.keys()
        before = {key: self._in_force(key) for key in touched}
        gained: list[tuple[ObjectKey, str]] = []
        for name, content in contents.items():
            gained.extend((key, name) for key in self._store(name, content))
        changes = Changes()
        for key in sorted(touched):
            now = self._in_force(key)
            if now is None:
                changes.deletes.append(key)
            elif now != before[key]:
                changes.upserts.append((key, now))
        changes.deletes = [key for key in changes.deletes if before[key] is not None]
        changes.conflicts = self._conflicts({key for key, _ in gained if len(self._holders.get(key, ())) > 1})
        return changes

    def _kept(self, name: str, content: ManifestFile | None) -> dict[ObjectKey, WireObject]:
        """The objects of a file now: those it names, and former ones that it may still hold."""
        if content is None:
            return {}
        held = self._files.get(name, {})
        if not content.intact:
            return held | content.objects
        kept = {key: held[key] for key in content.unreadable if key in held}
        return kept | content.objects

    def _in_force(self, key: ObjectKey) -> WireObject | None:
        holders = self._holders.get(key)
        return self._files[min(holders)][key] if holders else None

    def _store(self, name: str, content: dict[ObjectKey, WireObject]) -> set[ObjectKey]:
        """Store `content` as that of the file; return the keys that are new in it."""
        held = self._files.get(name, {}).keys()
        for key in held - content.keys():
            holders = self._holders[key]
            holders.discard(name)
            if not holders:
                del self._holders[key]
        gained = content.keys() - held
        for key in gained:
            self._holders.setdefault(key, set()).add(name)
        if content:
            self._files[name] = content
        else:
            self._files.pop(name, None)
        return gained

    def _conflicts(self, contested: Iterable[ObjectKey]) -> list[Rejection]:
        found: list[Rejection] = []
        for key in sorted(contested):
            winner, *losers = sorted(self._holders[key])
            reason = f"is in file {winner} too, which comes first by name and is in force"
            problem = Problem(f"{key.kind} {key.key}", "file", show(", ".join(losers)), reason)
            found.append(Rejection(key.kind, None, problem))
        return found
