"""Read a directory of manifests once: which files it has, and what is in them."""

import os
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import structlog

from kproxy.sources.manifest_files import SUFFIXES, ManifestFile, read_manifest, unreadable_file
from kproxy.sources.manifest_set import ManifestSet
from kproxy.state.kinds import KINDS, Kind
from kproxy.state.problems import Problem
from kproxy.state.wire import WireObject

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ManifestSourceConfig:
    """Limits (bytes) and times (seconds) of a ManifestSource."""

    max_file_bytes: int = 64 * 1024 * 1024
    """A larger file is reported and not read."""
    rescan_seconds: float = 10.0
    """Seconds between scans of the directory without events."""
    rescan_without_events_seconds: float = 1.0
    """The same if inotify is not available or the directory does not exist."""
    settle_seconds: float = 0.05
    """How long the directory must be quiet before a change is read."""
    settle_max_seconds: float = 0.5
    """The longest wait for quiet."""
    hold_seconds: float = 10.0
    """The longest wait for a file that is open for writing."""


@dataclass(frozen=True, slots=True)
class LoadedManifests:
    """The result of one scan of a directory: the objects in force by kind, ordered by key, and all defects.

    `api_servers` are the (address, port) of the API servers, if the objects came from some instead, and
    `addresses` those of the node's interfaces, if they came from a recording.
    """

    objects: Mapping[Kind, tuple[WireObject, ...]]
    problems: tuple[Problem, ...]
    api_servers: frozenset[tuple[str, int]] = frozenset()
    addresses: tuple[str, ...] | None = None


class Signature(NamedTuple):
    """The properties of a file by which a change is detected, following symbolic links."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int


def load_manifests(
    directory: Path, config: ManifestSourceConfig | None = None, kinds: Collection[Kind] = KINDS
) -> LoadedManifests:
    """Read a directory once. Raises OSError if it cannot be listed; defects of files are in `problems`."""
    config = config or ManifestSourceConfig()
    files = {name: read_file(directory / name, config, kinds) for name in sorted(signatures_in(directory))}
    manifests = ManifestSet()
    conflicts = manifests.merge(files).conflicts
    objects: dict[Kind, list[WireObject]] = {kind: [] for kind in kinds}
    for key, obj in sorted(manifests.objects.items(), key=lambda item: item[0]):
        objects[key.kind].append(obj)
    rejections = [each for content in files.values() for each in content.rejections] + conflicts
    problems = [each.problem for each in rejections]
    problems += [
        problem for kind, found in objects.items() for obj in found for problem in kind.problems_of(obj)
    ]
    return LoadedManifests({kind: tuple(found) for kind, found in objects.items()}, tuple(problems))


def signatures_in(directory: Path) -> dict[str, Signature]:
    """The manifest files of a directory (not of its subdirectories); raises OSError."""
    found: dict[str, Signature] = {}
    for path in directory.iterdir():
        if path.name.startswith(".") or path.suffix not in SUFFIXES:
            continue
        try:
            status = path.stat()
        except OSError as error:
            log.debug("manifest_vanished", file=path.name, error=str(error))
            continue
        if stat.S_ISREG(status.st_mode):
            found[path.name] = _signature(status)
    return found


def _signature(status: os.stat_result) -> Signature:
    return Signature(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def read_file(path: Path, config: ManifestSourceConfig, kinds: Collection[Kind] = KINDS) -> ManifestFile:
    """Read one file; a defect, also one of the file system, is in its rejections."""
    limit = config.max_file_bytes
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        return unreadable_file(path.name, f"cannot be read: {error.strerror}", read=False)
    if len(data) > limit:
        return unreadable_file(path.name, f"is larger than {limit} bytes")
    return read_manifest(path.name, data, kinds)


def signature_of(path: Path) -> Signature | None:
    """The signature of one file, or None if it is gone."""
    try:
        return _signature(path.stat())
    except OSError:
        return None
