"""Detect when a directory of files has to be read again, and which files are being written.

inotify reports changes at once; a slow rescan finds those without events (network file systems and targets of
symbolic links). A file that is open for writing is not read until it is closed, so that no partial file is
read. The update of a mounted ConfigMap (`..data` is replaced) is an ordinary event of the directory.
"""

import contextlib
import os
import select
import threading
import time
import weakref
from pathlib import Path
from typing import Self

import structlog

from kproxy.kernel.inotify import Inotify, InotifyEvent, Mask

log = structlog.stdlib.get_logger(__name__)

_CONTENT = Mask.MODIFY | Mask.CREATE | Mask.CLOSE_WRITE | Mask.MOVED_FROM | Mask.MOVED_TO | Mask.DELETE
_SELF = Mask.DELETE_SELF | Mask.MOVE_SELF
_ENTRIES = Mask.CREATE | Mask.MOVED_FROM | Mask.MOVED_TO | Mask.DELETE
_GONE = Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.UNMOUNT | Mask.IGNORED


class DirectoryWatch:
    """Waits for changes of a directory, which need not exist yet. A context manager, for one thread."""

    def __init__(
        self, directory: Path, stop: threading.Event, *, settle: float, settle_max: float, hold: float
    ) -> None:
        """Times in seconds: quiet time before a change is reported, longest wait for it, longest hold."""
        self._directory = directory
        self._stop = stop
        self._settle = settle
        self._settle_max = settle_max
        self._hold = hold
        self._held: dict[str, float] = {}
        self._changed = False
        self._inotify: Inotify | None = None
        self._watch: int | None = None
        self._parent_watch: int | None = None
        self._parent: Path | None = None
        self._poll = select.poll()
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        weakref.finalize(self, os.close, self._wake_fd)
        self._waker = threading.Thread(target=self._wake_on_stop, name="directory-stop", daemon=True)

    def __enter__(self) -> Self:
        self._poll.register(self._stop_fd, select.POLLIN)
        self._poll.register(self._wake_fd, select.POLLIN)
        self._waker.start()
        try:
            self._inotify = Inotify()
        except OSError as error:
            log.warning(
                "file_events_unavailable", directory=str(self._directory), error=str(error), fallback="rescan"
            )
        else:
            self._poll.register(self._inotify.fileno(), select.POLLIN)
        self.refresh()
        return self

    def __exit__(self, *_: object) -> None:
        if self._inotify is not None:
            self._inotify.close()
        if self._stop.is_set():
            self._waker.join()
            os.close(self._stop_fd)

    @property
    def has_events(self) -> bool:
        """Whether inotify watches the directory itself; otherwise only rescans find changes."""
        return self._watch is not None

    def held(self) -> frozenset[str]:
        """The names of the files being written, according to events.

        A change noticed here is kept: the next `wait` returns for it.
        """
        self._drain()
        now = time.monotonic()
        self._held = {name: until for name, until in self._held.items() if until > now}
        return frozenset(self._held)

    def refresh(self) -> None:
        """Watch the directory, and its nearest existing ancestor for its creation and deletion."""
        if self._inotify is None:
            return
        ancestor = self._directory.parent
        while not ancestor.is_dir() and ancestor != ancestor.parent:
            ancestor = ancestor.parent
        try:
            parent_watch = self._inotify.add(ancestor, _ENTRIES | _SELF | Mask.ONLYDIR)
        except OSError as error:
            log.debug("file_watch_failed", path=str(ancestor), error=str(error))
        else:
            if self._parent_watch not in (None, parent_watch):
                self._inotify.remove(self._parent_watch)
            self._parent_watch, self._parent = parent_watch, ancestor
        try:
            watch = self._inotify.add(self._directory, _CONTENT | Mask.ATTRIB | _SELF | Mask.ONLYDIR)
        except OSError as error:
            log.debug("file_watch_failed", path=str(self._directory), error=str(error))
            if self._watch is not None:
                self._inotify.remove(self._watch)
            self._watch = None
            return
        if self._watch not in (None, watch):
            self._inotify.remove(self._watch)
        self._watch = watch

    def wake(self) -> None:
        """End a `wait` as a change does; may be called from any thread."""
        os.eventfd_write(self._wake_fd, 1)

    def wait(self, timeout: float) -> None:
        """Return after a change has settled, after `timeout` seconds, when a hold runs out, or on stop.

        Changes since the last return count, also those during the caller's reading of files.
        """
        deadline = time.monotonic() + timeout
        while not self._stop.is_set() and not self._changed:
            now = time.monotonic()
            until = min([deadline, *self._held.values()])
            if until <= now:
                return
            self._poll.poll((until - now) * 1000)
            self._drain()
        quiet_by = time.monotonic() + self._settle_max
        while not self._stop.is_set() and time.monotonic() < quiet_by:
            if not self._poll.poll(self._settle * 1000):
                break
            self._drain()
        self._changed = False

    def _drain(self) -> None:
        """Read inotify's events, and note whether a file may have to be read.

        `wait` is not the only caller, so the note is kept: inotify returns each event only once.
        """
        with contextlib.suppress(BlockingIOError):
            self._changed |= bool(os.eventfd_read(self._wake_fd))
        if self._inotify is None:
            return
        changed = moved = False
        for event in self._inotify.read():
            if event.watch == self._watch and event.name:
                changed |= self._note(event)
            elif event.mask & Mask.Q_OVERFLOW:
                self._held.clear()
                changed = True
            elif event.watch in (self._watch, self._parent_watch) and (
                event.mask & _GONE or self._on_path(event.name)
            ):
                changed = moved = True
        self._changed |= changed
        if moved:
            self.refresh()

    def _on_path(self, name: str) -> bool:
        """Whether a name in the watched ancestor is the next step towards the directory."""
        if self._parent is None:
            return False
        steps = self._directory.relative_to(self._parent).parts
        return bool(steps) and steps[0] == name

    def _note(self, event: InotifyEvent) -> bool:
        being_written = bool(event.mask & Mask.MODIFY)
        if event.mask & Mask.CREATE:
            being_written = self._is_new_file(event.name)
        if being_written:
            self._held.setdefault(event.name, time.monotonic() + self._hold)
            return False
        if not event.mask & Mask.ATTRIB:
            self._held.pop(event.name, None)
        return True

    def _is_new_file(self, name: str) -> bool:
        """Whether a created name is a new file that will be written: neither a symbolic nor a hard link."""
        path = self._directory / name
        try:
            status = path.lstat()
        except OSError:
            return False
        return path.is_file() and not path.is_symlink() and status.st_nlink == 1

    def _wake_on_stop(self) -> None:
        self._stop.wait()
        os.eventfd_write(self._stop_fd, 1)
