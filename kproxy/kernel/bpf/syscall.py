"""bpf(2): one system call with a command and its attributes, and what its errors mean for the caller.

The C library has no function for it. Attributes are packed as union bpf_attr of include/uapi/linux/bpf.h has
them; the kernel takes a shorter union and reads the rest as zeros.
"""

import ctypes
import enum
import errno
import functools
import os
import platform
import re
import struct

from kproxy.kernel.bpf.types import BpfError, BpfFailure

_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280}
"""__NR_bpf by machine; all are little-endian, as connect.o is."""

OLDEST_KERNEL = (5, 8)
"""The first release with getpeername hooks, pinned links of cgroups and CAP_BPF."""


class Command(enum.IntEnum):
    """enum bpf_cmd."""

    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_GET_FD_BY_ID = 13
    OBJ_GET_INFO_BY_FD = 15
    PROG_QUERY = 16
    BTF_LOAD = 18
    MAP_LOOKUP_BATCH = 24
    MAP_UPDATE_BATCH = 26
    LINK_CREATE = 28
    LINK_UPDATE = 29
    LINK_DETACH = 34


NOT_SUPPORTED = 524
"""ENOTSUPP of include/linux/errno.h, which the kernel returns for an operation that a kind of map has not."""

_KINDS = {
    errno.EPERM: BpfFailure.MISSING,
    errno.EACCES: BpfFailure.MISSING,
    errno.ENOSYS: BpfFailure.MISSING,
    errno.EOPNOTSUPP: BpfFailure.MISSING,
    NOT_SUPPORTED: BpfFailure.MISSING,
    errno.EROFS: BpfFailure.MISSING,
    errno.E2BIG: BpfFailure.FULL,
}
_TRANSIENT = (errno.ENOMEM, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ENOENT, errno.ENOLINK)
_TRANSIENT_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EEXIST)
_INTERRUPTIONS = frozenset((*_TRANSIENT, *_TRANSIENT_FILES))
_HINTS = {
    errno.EPERM: "needs CAP_BPF and CAP_NET_ADMIN, and a seccomp profile with bpf(2)",
    errno.ENOSYS: "needs a kernel with CONFIG_BPF_SYSCALL",
    errno.EROFS: "the file system is mounted read-only",
}


def failure(code: int, what: str) -> BpfError:
    """The error for an errno; `what` names the request."""
    kind = _KINDS.get(code, BpfFailure.INTERRUPTED if code in _INTERRUPTIONS else BpfFailure.REFUSED)
    if kind is BpfFailure.REFUSED and kernel_release() < OLDEST_KERNEL:
        wanted = ".".join(map(str, OLDEST_KERNEL))
        hint = f"Linux {platform.release()} is too old, {wanted} is needed"
        return BpfError(BpfFailure.MISSING, f"{what}: {hint}", code)
    reason = "operation not supported" if code == NOT_SUPPORTED else os.strerror(code)
    hint = f" ({_HINTS[code]})" if code in _HINTS else ""
    return BpfError(kind, f"{what}: {reason}{hint}", code)


def kernel_release() -> tuple[int, int]:
    """The first two numbers of the running kernel's release; (0, 0) if it has none."""
    found = re.match(r"(\d+)\.(\d+)", platform.release())
    return (int(found[1]), int(found[2])) if found else (0, 0)


class Buffer:
    """Memory that attributes point to; it lives as long as the object."""

    def __init__(self, content: bytes | int) -> None:
        """With `content`, or of that many zero bytes."""
        size = content if isinstance(content, int) else len(content)
        self._buffer = ctypes.create_string_buffer(max(1, size))
        self._size = size
        self.address = ctypes.addressof(self._buffer)
        if not isinstance(content, int):
            self.write(content)

    @property
    def content(self) -> bytes:
        """All its bytes."""
        return self._buffer.raw[: self._size]

    def write(self, content: bytes) -> None:
        """Replace the first bytes."""
        ctypes.memmove(self.address, content, len(content))


def call(command: Command, attributes: Buffer, size: int) -> int:
    """Make the call with attributes of that size, which the kernel may change.

    Returns the result, often a descriptor, or the errno as a negative number. Raises BpfError where the
    number of the system call is not known.
    """
    number = _NUMBERS.get(platform.machine())
    if number is None:
        raise BpfError(BpfFailure.MISSING, f"no bpf(2) is known for {platform.machine()}")
    result = int(_function()(number, command, attributes.address, size))
    return result if result >= 0 else -ctypes.get_errno()


def bpf(command: Command, attributes: bytes, what: str) -> int:
    """Make the call; return its result. Raises BpfError, which names `what`."""
    result = call(command, Buffer(attributes), len(attributes))
    if result < 0:
        raise failure(-result, what)
    return result


@functools.cache
def _function() -> "ctypes._NamedFuncPointer":
    function = ctypes.CDLL(None, use_errno=True).syscall
    function.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_ulong)
    function.restype = ctypes.c_long
    return function


def information(descriptor: int, request: bytes, what: str) -> bytes:
    """What the kernel knows of an object: struct bpf_map_info, bpf_prog_info or bpf_link_info.

    `request` has the size of the answer, and the fields that the kernel reads. Raises BpfError.
    """
    buffer = Buffer(request)
    attributes = struct.pack("=IIQ", descriptor, len(request), buffer.address)
    bpf(Command.OBJ_GET_INFO_BY_FD, attributes, what)
    return buffer.content
