"""Maps: a hash that is written and read in batches, an array that is written as memory, and counters.

A hash takes 10,000 elements in some milliseconds. An array of the kind BPF_F_MMAPABLE is memory that this
process shares with the programs: a slot is written without a system call.
"""

import contextlib
import errno
import mmap
import os
import struct
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from kproxy.kernel.bpf import btf
from kproxy.kernel.bpf.elf import MapDeclaration
from kproxy.kernel.bpf.syscall import NOT_SUPPORTED, Buffer, Command, bpf, call, failure, information
from kproxy.kernel.bpf.types import BpfError, BpfFailure

SK_STORAGE = 24
"""BPF_MAP_TYPE_SK_STORAGE of enum bpf_map_type."""

_ELEMENT = struct.Struct("=IxxxxQQQ")
"""Attributes of a request for one element: map, key, value, flags."""
_KEY_ONLY = 16
"""Size of the part of them that a deletion takes."""
_BATCH = struct.Struct("=QQQQIIQQ")
"""Of one for many: position before and after, keys, values, number, map, flags of elements and of the map."""
_NUMBER_AT = 32
_MOST_AT_ONCE = 8192
_LEAST_AT_ONCE = 64
_POSITION_BYTES = 32
_INFO_BYTES = 88
_WORD = 8
_POSSIBLE = Path("/sys/devices/system/cpu/possible")
_NAME_BYTES = 15


class MapInfo:
    """What the kernel knows of a map: `number` is its id, `entries` its greatest number of elements."""

    def __init__(self, descriptor: int) -> None:
        """Ask the kernel. Raises BpfError."""
        found = struct.unpack_from("=IIIIII", information(descriptor, bytes(_INFO_BYTES), "a map"))
        self.kind, self.number, self.key_bytes, self.value_bytes, self.entries, self.flags = found

    def is_as(self, declaration: MapDeclaration) -> bool:
        """Whether a program that declares the map so can use it; the number of entries does not matter."""
        wanted = declaration.kind, declaration.key_bytes, declaration.value_bytes, declaration.flags
        return wanted == (self.kind, self.key_bytes, self.value_bytes, self.flags)


def create(name: str, declaration: MapDeclaration, entries: int) -> int:
    """Make a map with room for that many elements; return its descriptor. Raises BpfError."""
    types = 0, 0, 0
    described = None
    if declaration.kind == SK_STORAGE:
        described = btf.load(declaration.value_bytes)
        types, entries = (described, btf.KEY, btf.VALUE), 0
    sizes = declaration.kind, declaration.key_bytes, declaration.value_bytes, entries, declaration.flags
    text = name.encode()[:_NAME_BYTES]
    what = f"map {name}" if declaration.kind == SK_STORAGE else f"map {name} of {entries} elements"
    try:
        attributes = struct.pack("=IIIIIII16sIIII", *sizes, 0, 0, text, 0, *types)
        return bpf(Command.MAP_CREATE, attributes, what)
    except BpfError as error:
        if declaration.kind == SK_STORAGE and error.code in {errno.EINVAL, NOT_SUPPORTED}:
            reason = f"{what}: this kernel has no storage for sockets (BPF_MAP_TYPE_SK_STORAGE)"
            raise BpfError(BpfFailure.MISSING, reason, error.code) from error
        raise
    finally:
        if described is not None:
            os.close(described)


class HashMap:
    """A hash by its descriptor: values by keys, both as bytes."""

    def __init__(self, name: str, descriptor: int) -> None:
        self.name = name
        self.descriptor = descriptor
        info = MapInfo(descriptor)
        self._key_bytes, self._value_bytes, self._entries = info.key_bytes, info.value_bytes, info.entries
        self._key, self._value = Buffer(self._key_bytes), Buffer(self._value_bytes)
        self._element = Buffer(_ELEMENT.pack(descriptor, self._key.address, self._value.address, 0))

    def read(self) -> dict[bytes, bytes]:
        """All elements. Raises BpfError."""
        read = _batches(self.name, self.descriptor, self._key_bytes, self._value_bytes, self._entries)
        found: dict[bytes, bytes] = {}
        for number, keys, values in read:
            cut = zip(
                _parts(keys, self._key_bytes, number), _parts(values, self._value_bytes, number), strict=True
            )
            found.update(cut)
        return found

    def write(self, elements: Mapping[bytes, bytes]) -> None:
        """Add or replace elements one by one. Raises BpfError, FULL without room."""
        for key, value in elements.items():
            self._key.write(_sized(key, self._key_bytes))
            self._value.write(_sized(value, self._value_bytes))
            result = call(Command.MAP_UPDATE_ELEM, self._element, _ELEMENT.size)
            if result < 0:
                raise self._failure(-result)

    def delete(self, keys: Collection[bytes]) -> None:
        """Delete elements one by one; one that is gone already is no error. Raises BpfError."""
        for key in keys:
            self._key.write(_sized(key, self._key_bytes))
            result = call(Command.MAP_DELETE_ELEM, self._element, _KEY_ONLY)
            if result < 0 and result != -errno.ENOENT:
                raise self._failure(-result)

    def fill(self, elements: Mapping[bytes, bytes]) -> None:
        """Write many elements at once. Raises BpfError; then a part may be written."""
        items = list(elements.items())
        for start in range(0, len(items), _MOST_AT_ONCE):
            some = items[start : start + _MOST_AT_ONCE]
            keys = Buffer(b"".join(_sized(key, self._key_bytes) for key, _ in some))
            values = Buffer(b"".join(_sized(value, self._value_bytes) for _, value in some))
            attributes = _BATCH.pack(0, 0, keys.address, values.address, len(some), self.descriptor, 0, 0)
            result = call(Command.MAP_UPDATE_BATCH, Buffer(attributes), _BATCH.size)
            if result < 0:
                raise self._failure(-result)

    def _failure(self, code: int) -> BpfError:
        if code == errno.E2BIG:
            return BpfError(BpfFailure.FULL, f"map {self.name} is full: {self._entries} elements", code)
        return failure(code, f"map {self.name}")


class Slots:
    """An array as memory that the programs read; items are words of 64 bits."""

    def __init__(self, descriptor: int, *, writable: bool = True) -> None:
        """Raises BpfError."""
        info = MapInfo(descriptor)
        size = info.entries * -(-info.value_bytes // _WORD) * _WORD
        protection = mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ
        whole_pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            self._memory = mmap.mmap(descriptor, whole_pages, mmap.MAP_SHARED, protection)
        except OSError as error:
            raise failure(error.errno or errno.EIO, "the memory of the slots") from error
        self.words = memoryview(self._memory)[:size].cast("Q")

    def close(self) -> None:
        """Release the memory; it stays as long as parts of it are in use."""
        self.words.release()
        with contextlib.suppress(BufferError):
            self._memory.close()


class Counters:
    """Numbers that each processor counts for itself."""

    def __init__(self, name: str, descriptor: int) -> None:
        """Raises BpfError."""
        self.name = name
        self.descriptor = descriptor
        self.entries = MapInfo(descriptor).entries
        self._processors = possible_processors()

    def read(self, count: int) -> list[int]:
        """The sums of the first `count`. Raises BpfError."""
        count = min(count, self.entries)
        value_bytes = self._processors * _WORD
        try:
            data = b"".join(
                values
                for _, _, values in _batches(self.name, self.descriptor, 4, value_bytes, count, most=count)
            )
        except BpfError as error:
            if error.code not in {NOT_SUPPORTED, errno.EOPNOTSUPP, errno.EINVAL}:
                raise
            data = self._read_one_by_one(count, value_bytes)
        numbers = memoryview(data[: count * value_bytes]).cast("Q")
        each = [numbers[processor :: self._processors].tolist() for processor in range(self._processors)]
        return [sum(some) for some in zip(*each, strict=True)]

    def start_at(self, sums: list[int]) -> None:
        """Set the first counters, which no program may use yet. Raises BpfError."""
        rest = bytes((self._processors - 1) * _WORD)
        for number, total in enumerate(sums):
            if total:
                write_element(self.name, self.descriptor, number, struct.pack("=Q", total) + rest)

    def _read_one_by_one(self, count: int, value_bytes: int) -> bytes:
        """Kernels before 5.13 read no counters in batches."""
        each = (read_element(self.name, self.descriptor, number, value_bytes) for number in range(count))
        return b"".join(each)


def write_element(name: str, descriptor: int, number: int, value: bytes) -> None:
    """Write one element of an array. Raises BpfError."""
    key, content = Buffer(struct.pack("=I", number)), Buffer(value)
    attributes = _ELEMENT.pack(descriptor, key.address, content.address, 0)
    bpf(Command.MAP_UPDATE_ELEM, attributes, f"map {name}")


def read_element(name: str, descriptor: int, number: int, value_bytes: int) -> bytes:
    """Read one element of an array. Raises BpfError."""
    key, content = Buffer(struct.pack("=I", number)), Buffer(value_bytes)
    attributes = _ELEMENT.pack(descriptor, key.address, content.address, 0)
    bpf(Command.MAP_LOOKUP_ELEM, attributes, f"map {name}")
    return content.content


def possible_processors(listed: Path = _POSSIBLE) -> int:
    """Number of processors that the kernel keeps counters for. Raises BpfError."""
    try:
        ranges = [part.split("-") for part in listed.read_text(encoding="ascii").strip().split(",")]
        return sum(int(part[-1]) - int(part[0]) + 1 for part in ranges)
    except (OSError, ValueError) as error:
        raise BpfError(BpfFailure.MISSING, f"{listed} does not list the processors: {error}") from error


def _batches(
    name: str, descriptor: int, key_bytes: int, value_bytes: int, entries: int, most: int | None = None
) -> Iterator[tuple[int, bytes, bytes]]:
    """(number, keys, values) of some elements at a time; ends after `most`."""
    before, after = Buffer(_POSITION_BYTES), Buffer(_POSITION_BYTES)
    size = max(_LEAST_AT_ONCE, min(_MOST_AT_ONCE, entries))
    started, ended, read = False, False, 0
    while not ended and (most is None or read < most):
        keys, values = Buffer(key_bytes * size), Buffer(value_bytes * size)
        at = before.address if started else 0
        packed = _BATCH.pack(at, after.address, keys.address, values.address, size, descriptor, 0, 0)
        attributes = Buffer(packed)
        result = call(Command.MAP_LOOKUP_BATCH, attributes, _BATCH.size)
        if result == -errno.ENOSPC:
            size *= 2  # more elements have the same hash than there was room for
            continue
        ended = result == -errno.ENOENT
        if result < 0 and not ended:
            raise failure(-result, f"reading map {name}")
        (number,) = struct.unpack_from("=I", attributes.content, _NUMBER_AT)
        yield number, keys.content[: number * key_bytes], values.content[: number * value_bytes]
        started, read, before, after = True, read + number, after, before


def _parts(data: bytes, size: int, number: int) -> list[bytes]:
    return [data[at * size : (at + 1) * size] for at in range(number)]


def _sized(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise ValueError(f"{len(data)} bytes for an element of {size}")
    return data
