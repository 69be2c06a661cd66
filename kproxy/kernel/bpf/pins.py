"""Pins: names of maps and links on a bpffs, by which they survive the process.

The file system knows directories and a rename that replaces, but no dots in names. Only this module writes
there.
"""

import contextlib
import ctypes
import errno
import os
import stat
import struct
from pathlib import Path

from kproxy.kernel.bpf.syscall import Buffer, Command, bpf, failure
from kproxy.kernel.bpf.types import BpfError, BpfFailure

BPFFS = 0xCAFE4A11
CGROUP2 = 0x63677270
"""BPF_FS_MAGIC and CGROUP2_SUPER_MAGIC of include/uapi/linux/magic.h."""

TEMPORARY = "-new"
"""End of the name of a pin that is to replace another."""

_READ_ONLY = 8  # BPF_F_RDONLY
_STATFS_BYTES = 256
_MODE = 0o700


def file_system(path: Path) -> int:
    """The magic number of the file system of a path. Raises OSError."""
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(os.fsencode(path), buffer):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path))
    # f_type is a long; magic numbers have 32 bits.
    return int(struct.unpack_from("=l", buffer.raw)[0]) & 0xFFFFFFFF


def require_bpffs(directory: Path) -> None:
    """Raise BpfError, MISSING, unless the directory, or the nearest one above that exists, is on a bpffs."""
    existing = next((each for each in (directory, *directory.parents) if identity(each)), Path("/"))
    try:
        magic = file_system(existing)
    except OSError as error:
        raise failed(directory, error) from error
    if magic != BPFFS:
        reason = f"{existing} is on no bpffs; mount one: mount -t bpf bpf /sys/fs/bpf"
        raise BpfError(BpfFailure.MISSING, f"{directory}: {reason}")


def mount_bpffs(directory: Path) -> None:
    """Mount a bpffs at a directory; nothing if one is there. Raises BpfError.

    It needs CAP_SYS_ADMIN, so that no part of a running proxy calls it.
    """
    try:
        if file_system(directory) == BPFFS:
            return
    except OSError as error:
        raise failed(directory, error) from error
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"bpf", os.fsencode(directory), b"bpf", 0, b"mode=0700"):
        code = ctypes.get_errno()
        raise BpfError(BpfFailure.MISSING, f"mounting a bpffs at {directory}: {os.strerror(code)}", code)


def make_directory(directory: Path) -> None:
    """Make a directory with those above it, for its owner only. Raises BpfError."""
    try:
        for each in (*reversed(directory.parents), directory):
            if identity(each) is None:
                each.mkdir(_MODE)
    except OSError as error:
        raise failed(directory, error) from error


def temporary(path: Path) -> Path:
    """Where a pin is until it replaces what is at its path."""
    return path.with_name(path.name + TEMPORARY)


def pin(descriptor: int, path: Path) -> None:
    """Pin a map or a link to a path; replaces what is pinned there in one step. Raises BpfError."""
    first = temporary(path)
    unpin(first)
    name = Buffer(os.fsencode(first) + b"\0")
    bpf(Command.OBJ_PIN, struct.pack("=QII", name.address, descriptor, 0), f"pinning {path}")
    try:
        first.rename(path)
    except OSError as error:
        with contextlib.suppress(BpfError):
            unpin(first)
        raise failed(path, error) from error


def open_pin(path: Path, *, read_only: bool = False) -> int:
    """A descriptor of what is pinned at a path; `read_only` is for maps.

    Raises BpfError, INTERRUPTED if nothing is.
    """
    name = Buffer(os.fsencode(path) + b"\0")
    flags = _READ_ONLY if read_only else 0
    return bpf(Command.OBJ_GET, struct.pack("=QII", name.address, 0, flags), f"pin {path}")


def unpin(path: Path) -> None:
    """Remove one pin; nothing if there is none. Raises BpfError."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise failed(path, error) from error


def unpin_all(path: Path) -> None:
    """Remove a pin, or a directory with all pins in it and below; nothing if there is none. Raises BpfError.

    Pins go before directories, so that links, which are above maps, end first.
    """
    if not _is_directory(path):
        unpin(path)
        return
    try:
        for each in sorted(path.iterdir(), key=_is_directory):
            unpin_all(each)
        path.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        raise failed(path, error) from error


def identity(path: Path) -> tuple[int, int] | None:
    """What a path is known by: another object at the same path has another. None if none is to be seen."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def failed(path: Path, error: OSError) -> BpfError:
    """The error for a path of a bpffs."""
    return failure(error.errno or errno.EIO, str(path))


def _is_directory(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False
