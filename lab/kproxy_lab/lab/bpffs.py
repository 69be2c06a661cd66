"""A bpffs that no mount table shows: `kproxy cleanup` looks for pins there, and leaves those of labs alone.

It is a mount without a place in the tree of mounts (fsmount(2)), which this process holds by a descriptor. It
has a path through /proc, and ends with its last user, so that nothing is left of a killed process.
"""

import contextlib
import ctypes
import os
import struct
from pathlib import Path
from typing import Final

_FSOPEN, _FSCONFIG, _FSMOUNT, _MOUNT_SETATTR = 430, 431, 432, 442
"""Numbers of system calls, the same on every architecture since Linux 5.2 (asm-generic/unistd.h)."""
_CLOSE_ON_EXEC: Final = 1
_SET_STRING, _CREATE = 1, 6
"""FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE (linux/mount.h)."""
_EMPTY_PATH: Final = 0x1000  # linux/fcntl.h
_ATTRIBUTES: Final = struct.Struct("=QQQQ")  # struct mount_attr: set, clear, propagation, user namespace
_READ_ONLY: Final = 1


class Bpffs:
    """An empty bpffs. Raises OSError where the kernel or a capability lacks it."""

    def __init__(self) -> None:
        with contextlib.ExitStack() as made:
            context = _call(_FSOPEN, b"bpf", _CLOSE_ON_EXEC)
            made.callback(os.close, context)
            _call(_FSCONFIG, context, _SET_STRING, b"mode", b"0700", 0)
            _call(_FSCONFIG, context, _CREATE, None, None, 0)
            self._mount = _call(_FSMOUNT, context, _CLOSE_ON_EXEC, 0)
        self.path = Path(f"/proc/{os.getpid()}/fd/{self._mount}")

    def set_read_only(self, *, on: bool) -> None:
        """Refuse writes, or allow them again. Raises OSError."""
        attributes = _ATTRIBUTES.pack(_READ_ONLY if on else 0, 0 if on else _READ_ONLY, 0, 0)
        _call(_MOUNT_SETATTR, self._mount, b"", _EMPTY_PATH, attributes, len(attributes))

    def close(self) -> None:
        """Let it go; pins end with the last process that uses it."""
        if self._mount >= 0:
            os.close(self._mount)
            self._mount = -1


def _call(number: int, *arguments: int | bytes | None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    given = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result = int(libc.syscall(ctypes.c_long(number), *given))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"system call {number} for a bpffs: {os.strerror(code)}")
    return result
