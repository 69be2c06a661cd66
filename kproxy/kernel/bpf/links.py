"""Links: what holds a program on a hook of a cgroup.

A link lives as long as a pin or a descriptor refers to it, so that pinned programs serve on without a
process. An update replaces its program without a moment in which none is there.
"""

import errno
import os
import struct
from pathlib import Path

import msgspec

from kproxy.kernel.bpf.syscall import NOT_SUPPORTED, Buffer, Command, bpf, call, failure, information
from kproxy.kernel.bpf.types import BpfError, BpfFailure

_ALLOW_MULTI = 2
"""BPF_F_ALLOW_MULTI: other programs may be on the hook too. Links have it always."""
_INFO_BYTES = 48
_QUERY = struct.Struct("=IIIIQI36x")
_FLAGS_AT, _COUNT_AT = 12, 24
_MOST_PROGRAMS = 64
"""BPF_CGROUP_MAX_PROGS of the kernel."""


class LinkInfo(msgspec.Struct, frozen=True):
    """A link: ids of itself, of its program and of its cgroup; the cgroup is 0 if the link is detached."""

    number: int
    program: int
    cgroup: int
    hook: int


class HookPrograms(msgspec.Struct, frozen=True):
    """Ids of the programs on a hook of a cgroup; `shared` if it takes more than one."""

    programs: tuple[int, ...]
    shared: bool


def create(program: int, cgroup: Path, hook: int, name: str) -> int:
    """Put a program on a hook (enum bpf_attach_type); return the link's descriptor.

    Raises BpfError, OCCUPIED if a program of others has the hook for itself.
    """
    target = open_directory(cgroup)
    try:
        result = call(Command.LINK_CREATE, Buffer(struct.pack("=IIII", program, target, hook, 0)), 16)
        if result >= 0:
            return result
        if -result == errno.E2BIG:
            reason = f"{name} at {cgroup}: there are {_MOST_PROGRAMS} programs already"
            raise BpfError(BpfFailure.OCCUPIED, reason, errno.E2BIG)
        if -result == errno.EPERM and (occupied := _not_shared(cgroup, hook)):
            reason = f"{name} at {occupied}: another program has the hook for itself"
            raise BpfError(BpfFailure.OCCUPIED, reason, errno.EPERM)
        raise failure(-result, f"attaching {name} to {cgroup}")
    finally:
        os.close(target)


def update(link: int, program: int, name: str) -> None:
    """Replace the program of a link. Raises BpfError, INTERRUPTED if the link is detached."""
    bpf(Command.LINK_UPDATE, struct.pack("=IIII", link, program, 0, 0), f"replacing the program {name}")


def detach(link: int, name: str) -> None:
    """Take a link's program off its hook at once; closing and unpinning do so some milliseconds later.

    Raises BpfError; a detached link is none. Before Linux 5.9 this does nothing.
    """
    result = call(Command.LINK_DETACH, Buffer(struct.pack("=I", link)), 4)
    if result < 0 and -result not in {errno.EINVAL, NOT_SUPPORTED, errno.EOPNOTSUPP, errno.ENOLINK}:
        raise failure(-result, f"detaching {name}")


def link_info(descriptor: int) -> LinkInfo:
    """What the kernel knows of a link. Raises BpfError."""
    found = information(descriptor, bytes(_INFO_BYTES), "a link")
    _, number, program, cgroup, hook = struct.unpack_from("=III4xQI", found)
    return LinkInfo(number, program, cgroup, hook)


def hook_programs(cgroup: Path, hook: int) -> HookPrograms:
    """The programs on a hook. Raises BpfError."""
    target = open_directory(cgroup)
    try:
        return _query(target, hook)
    finally:
        os.close(target)


def open_directory(path: Path) -> int:
    """A descriptor of a directory. Raises BpfError."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BpfError(BpfFailure.MISSING, f"{path}: {error.strerror}", error.errno or 0) from error


def _not_shared(cgroup: Path, hook: int) -> Path | None:
    """The cgroup, this one or one above it, where a program allows no others on the hook. Raises BpfError."""
    above = (each for each in cgroup.absolute().parents if (each / "cgroup.procs").exists())
    return next((each for each in (cgroup, *above) if not hook_programs(each, hook).shared), None)


def _query(target: int, hook: int) -> HookPrograms:
    numbers = Buffer(4 * _MOST_PROGRAMS)
    attributes = Buffer(_QUERY.pack(target, hook, 0, 0, numbers.address, _MOST_PROGRAMS))
    result = call(Command.PROG_QUERY, attributes, _QUERY.size)
    if result < 0:
        raise failure(-result, "asking for the programs on a hook")
    (flags,) = struct.unpack_from("=I", attributes.content, _FLAGS_AT)
    (count,) = struct.unpack_from("=I", attributes.content, _COUNT_AT)
    found = struct.unpack_from(f"={min(count, _MOST_PROGRAMS)}I", numbers.content)
    return HookPrograms(found, shared=not found or bool(flags & _ALLOW_MULTI))
