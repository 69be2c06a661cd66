"""inotify(7) through ctypes: the standard library has no notification of file changes.

Only the system interface is here: a file descriptor for poll(2) and its records as tuples. The caller
interprets the events.
"""

import ctypes
import enum
import os
import struct
from pathlib import Path
from typing import NamedTuple, Self

_EVENT = struct.Struct("iIII")
_BUFFER = 64 * 1024
"""Bytes read at once; one record is at most 16 + NAME_MAX + 1."""


class Mask(enum.IntFlag):
    """Bits of `struct inotify_event.mask` and of inotify_add_watch (linux/inotify.h)."""

    MODIFY = 0x2
    ATTRIB = 0x4
    CLOSE_WRITE = 0x8
    MOVED_FROM = 0x40
    MOVED_TO = 0x80
    CREATE = 0x100
    DELETE = 0x200
    DELETE_SELF = 0x400
    MOVE_SELF = 0x800
    UNMOUNT = 0x2000
    Q_OVERFLOW = 0x4000
    IGNORED = 0x8000
    ONLYDIR = 0x1000000
    ISDIR = 0x40000000


class InotifyEvent(NamedTuple):
    """One record: its watch, what happened, and the name within the watched directory ("": itself)."""

    watch: int
    mask: Mask
    name: str


class Inotify:
    """An inotify instance. Not thread-safe; `fileno()` is readable when there are events."""

    def __init__(self) -> None:
        """Open it; raises OSError (EMFILE: fs.inotify.max_user_instances is used up)."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = int(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        if self._fd < 0:
            raise _errno("inotify_init1")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """The descriptor, for poll or select."""
        return self._fd

    def add(self, path: Path, mask: Mask) -> int:
        """Watch a path and return the number of the watch; raises OSError (ENOENT, ENOSPC, ...)."""
        watch = int(self._libc.inotify_add_watch(self._fd, os.fsencode(path), ctypes.c_uint32(mask)))
        if watch < 0:
            raise _errno(str(path))
        return watch

    def remove(self, watch: int) -> None:
        """Stop watching; a watch that the kernel dropped already is no error."""
        self._libc.inotify_rm_watch(self._fd, watch)

    def read(self) -> list[InotifyEvent]:
        """Return all pending events; never blocks."""
        events: list[InotifyEvent] = []
        while True:
            try:
                data = os.read(self._fd, _BUFFER)
            except BlockingIOError:
                return events
            position = 0
            while position < len(data):
                watch, mask, _cookie, length = _EVENT.unpack_from(data, position)
                position += _EVENT.size
                name = data[position : position + length].rstrip(b"\0")
                position += length
                events.append(InotifyEvent(watch, Mask(mask), os.fsdecode(name)))

    def close(self) -> None:
        """Close the descriptor; all watches end. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _errno(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what)
