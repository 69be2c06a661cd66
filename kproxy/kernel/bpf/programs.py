"""Programs at the sockets of a cgroup: the object that belongs to kproxy, and its load with maps.

The kernel's verifier explains a refusal in a log, whose last lines name the instruction and the reason.
"""

import errno
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import msgspec

from kproxy.kernel.bpf.elf import BpfObject, Program, read_object
from kproxy.kernel.bpf.syscall import Buffer, Command, bpf, call, failure, information
from kproxy.kernel.bpf.types import BpfError, BpfFailure

HOOKS: Mapping[str, int] = {"getpeername4": 29, "getpeername6": 30, "connect4": 10, "connect6": 11}
"""enum bpf_attach_type by program, in the order of attaching: names first, then what gives them."""

LICENCE = "Dual BSD/GPL"
"""Licence of the programs, as connect.c says it. No function of the kernel that they use asks for the GPL."""

OBJECT = Path(__file__).with_name("connect.o")

_CGROUP_SOCK_ADDR = 18
"""BPF_PROG_TYPE_CGROUP_SOCK_ADDR of enum bpf_prog_type."""
_LOAD = struct.Struct("=IIQQIIQII16sII")
_INFO_BYTES = 224
_MAPS_AT = 52
_NAME_AT, _NAME_BYTES = 64, 16
_VERIFIED_AT = 216
_MOST_MAPS = 64
_LOG_BYTES = 1 << 20
_LOG_LINES = 4


class ProgramInfo(msgspec.Struct, frozen=True):
    """What the kernel knows of a loaded program.

    `number` is its id, `tag` a hash of its instructions without the maps, `maps` the ids of its maps,
    `verified` the number of instructions that the verifier followed (0 before Linux 5.16).
    """

    number: int
    name: str
    tag: bytes
    maps: frozenset[int]
    verified: int


def connect_object() -> BpfObject:
    """The programs and maps of connect.c, as compiled. Raises BpfError, REFUSED if the file is damaged."""
    try:
        return read_object(OBJECT.read_bytes())
    except (OSError, ValueError) as error:
        raise BpfError(BpfFailure.REFUSED, f"{OBJECT.name}: {error}") from error


def load(name: str, program: Program, maps: Mapping[str, int]) -> int:
    """Load a program of HOOKS over maps by their descriptors; return its descriptor.

    Raises BpfError, with the last lines of the verifier's log if it was the verifier.
    """
    code, licence = Buffer(program.linked(maps)), Buffer(LICENCE.encode() + b"\0")
    count = len(program.instructions) // 8

    def attributes(level: int, log: Buffer | None) -> Buffer:
        size, address = (0, 0) if log is None else (_LOG_BYTES, log.address)
        kind = _CGROUP_SOCK_ADDR
        where = level, size, address, 0, 0, name.encode(), 0, HOOKS[name]
        return Buffer(_LOAD.pack(kind, count, code.address, licence.address, *where))

    result = call(Command.PROG_LOAD, attributes(0, None), _LOAD.size)
    if result >= 0:
        return result
    log = Buffer(_LOG_BYTES)
    again = call(Command.PROG_LOAD, attributes(1, log), _LOAD.size)
    if again >= 0:
        return again
    raise _refusal(name, -result, log.content.partition(b"\0")[0].decode("utf-8", "replace"))


def _refusal(name: str, code: int, log: str) -> BpfError:
    """A verifier refuses with EACCES too, which means a missing capability elsewhere."""
    lines = [line.strip() for line in log.splitlines() if line.strip() and not line.startswith("processed ")]
    error = failure(code, f"program {name}")
    if not lines:
        return error
    kind = BpfFailure.REFUSED if code in {errno.EACCES, errno.E2BIG} else error.kind
    message = f"program {name}: {os.strerror(code)}; the verifier: {'; '.join(lines[-_LOG_LINES:])}"
    return BpfError(kind, message, code)


def program_info(descriptor: int) -> ProgramInfo:
    """What the kernel knows of a program. Raises BpfError."""
    numbers = Buffer(4 * _MOST_MAPS)
    request = bytearray(_INFO_BYTES)
    struct.pack_into("=IQ", request, _MAPS_AT, _MOST_MAPS, numbers.address)
    found = information(descriptor, bytes(request), "a program")
    number, tag = struct.unpack_from("=4xI8s", found)
    (count,) = struct.unpack_from("=I", found, _MAPS_AT)
    (verified,) = struct.unpack_from("=I", found, _VERIFIED_AT)
    maps = struct.unpack_from(f"={min(count, _MOST_MAPS)}I", numbers.content)
    name = found[_NAME_AT : _NAME_AT + _NAME_BYTES].partition(b"\0")[0].decode("ascii", "replace")
    return ProgramInfo(number, name, tag, frozenset(maps), verified)


def program_name(number: int) -> str:
    """The name of any program by its id; "" if the kernel does not say, as without CAP_SYS_ADMIN."""
    try:
        descriptor = bpf(Command.PROG_GET_FD_BY_ID, struct.pack("=III", number, 0, 0), f"program {number}")
    except BpfError:
        return ""
    try:
        return program_info(descriptor).name
    except BpfError:
        return ""
    finally:
        os.close(descriptor)
