"""The type description (BTF) without which the kernel makes no socket storage.

The kernel wants the types of key and value by number (Documentation/bpf/btf.rst). It compares sizes only: the
key is an int, the value a struct with the size of the storage and that int as its only member.
"""

import struct

from kproxy.kernel.bpf.syscall import Buffer, Command, bpf

KEY, VALUE = 1, 2
"""Numbers of the types."""

_MAGIC, _VERSION = 0xEB9F, 1
_HEADER = struct.Struct("<HBBIIIII")
_KIND_INT, _KIND_STRUCT = 1, 4
_SIGNED = 1
_NAMES = b"\0int\0value\0"


def load(value_bytes: int) -> int:
    """Load the types of a storage with values of that size; return the descriptor. Raises BpfError."""
    data = describe(value_bytes)
    buffer = Buffer(data)
    return bpf(Command.BTF_LOAD, struct.pack("=QQIII", buffer.address, 0, len(data), 0, 0), "BTF")


def describe(value_bytes: int) -> bytes:
    """The description as bytes."""
    types = struct.pack("<IIII", _NAMES.index(b"int"), _KIND_INT << 24, 4, _SIGNED << 24 | 32)
    types += struct.pack("<III", _NAMES.index(b"value"), _KIND_STRUCT << 24 | 1, value_bytes)
    types += struct.pack("<III", _NAMES.index(b"int"), KEY, 0)
    sizes = (0, len(types), len(types), len(_NAMES))
    return _HEADER.pack(_MAGIC, _VERSION, 0, _HEADER.size, *sizes) + types + _NAMES
