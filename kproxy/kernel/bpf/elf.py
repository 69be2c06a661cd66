"""Read what clang makes for BPF: programs by section, maps by symbol, and the instructions that name a map.

The object is ours and little-endian, so only that part of ELF is read which it uses (elf(5); the kinds of
relocations are in Documentation/bpf/llvm_reloc.rst of the kernel).
"""

import struct
from collections.abc import Mapping

import msgspec

_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQ")
_MAP = struct.Struct("<IIIII")
_PROGBITS, _SYMTAB, _REL = 1, 2, 9
_EXECUTABLE = 4
_R_BPF_64_64 = 1
_LOAD_64 = 0x18
_PSEUDO_MAP_FD = 1
INSTRUCTION_BYTES = 8


class MapDeclaration(msgspec.Struct, frozen=True):
    """A map as the source declares it: enum bpf_map_type, sizes in bytes, entries, flags."""

    kind: int
    key_bytes: int
    value_bytes: int
    entries: int
    flags: int


class Program(msgspec.Struct, frozen=True):
    """Instructions, and the maps that they name: (number of the instruction, map)."""

    instructions: bytes
    names: tuple[tuple[int, str], ...]

    def linked(self, descriptors: Mapping[str, int]) -> bytes:
        """The instructions with these maps."""
        code = bytearray(self.instructions)
        for number, name in self.names:
            at = number * INSTRUCTION_BYTES
            code[at + 1] = code[at + 1] & 0x0F | _PSEUDO_MAP_FD << 4
            struct.pack_into("<i", code, at + 4, descriptors[name])
        return bytes(code)


class BpfObject(msgspec.Struct, frozen=True):
    """An object file: programs by the last part of their section's name, and maps by name."""

    programs: Mapping[str, Program]
    maps: Mapping[str, MapDeclaration]


class _Section(msgspec.Struct, frozen=True):
    name: str
    kind: int
    flags: int
    body: bytes
    applies_to: int


def read_object(data: bytes) -> BpfObject:
    """Read an object file. Raises ValueError if it is none, or uses what is not known here."""
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a little-endian ELF object of 64 bits")
    try:
        sections = _sections(data)
        symbols = _symbols(sections)
        return _object(sections, symbols)
    except (struct.error, IndexError, StopIteration) as error:
        raise ValueError(f"not a complete ELF object: {error}") from error


def _sections(data: bytes) -> list[_Section]:
    (offset,) = struct.unpack_from("<Q", data, 40)
    size, number, names_at = struct.unpack_from("<HHH", data, 58)
    headers = [_SECTION.unpack_from(data, offset + size * n) for n in range(number)]
    bodies = [data[each[4] : each[4] + each[5]] for each in headers]
    return [
        _Section(_text(bodies[names_at], each[0]), each[1], each[2], body, each[7])
        for each, body in zip(headers, bodies, strict=True)
    ]


def _symbols(sections: list[_Section]) -> list[tuple[str, int, int]]:
    """(name, number of the section, value) of each symbol."""
    table = next(each for each in sections if each.kind == _SYMTAB)
    names = next(each.body for each in sections if each.name == ".strtab")
    found = [_SYMBOL.unpack_from(table.body, at) for at in range(0, len(table.body), _SYMBOL.size)]
    return [(_text(names, each[0]), each[3], each[4]) for each in found]


def _object(sections: list[_Section], symbols: list[tuple[str, int, int]]) -> BpfObject:
    maps: dict[str, MapDeclaration] = {}
    programs: dict[str, Program] = {}
    for number, section in enumerate(sections):
        if section.name == "maps":
            maps = {
                name: MapDeclaration(*_MAP.unpack_from(section.body, value))
                for name, where, value in symbols
                if where == number and name
            }
        elif section.kind == _PROGBITS and section.flags & _EXECUTABLE and section.body:
            names = tuple(_named_maps(section, number, sections, symbols))
            programs[section.name.rpartition("/")[2]] = Program(section.body, names)
    return BpfObject(programs, maps)


def _named_maps(
    section: _Section, number: int, sections: list[_Section], symbols: list[tuple[str, int, int]]
) -> list[tuple[int, str]]:
    found = []
    for each in sections:
        if each.kind != _REL or each.applies_to != number:
            continue
        for offset, info in _RELOCATION.iter_unpack(each.body):
            name = symbols[info >> 32][0]
            if info & 0xFFFFFFFF != _R_BPF_64_64 or section.body[offset] != _LOAD_64:
                raise ValueError(f"{section.name}: {name} is named in a way that is not known")
            found.append((offset // INSTRUCTION_BYTES, name))
    return found


def _text(table: bytes, offset: int) -> str:
    return table[offset : table.index(b"\0", offset)].decode("ascii")
