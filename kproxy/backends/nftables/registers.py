"""The registers of a rule that runs: bytes, numbers that chance draws, and what is not known."""

from collections.abc import Mapping, Sequence

import msgspec

from kproxy.backends.core.packets import Branch
from kproxy.backends.nftables.drawn import Drawn

Cell = bytes | Drawn | None
"""A word of a register: four bytes, a number that chance draws, or None if it is not known."""


class State(msgspec.Struct, frozen=True, gc=False):
    """A branch within a rule, and its registers."""

    branch: Branch
    registers: Mapping[int, Cell] = {}

    def holding(self, register: int, cells: Sequence[Cell]) -> "State":
        """The state after words were loaded, from a register on."""
        words = dict(self.registers)
        words.update(enumerate(cells, register))
        return State(self.branch, words)

    def words(self, register: int, length: int) -> list[Cell]:
        """The words that hold `length` bytes, from a register on."""
        return [self.registers.get(register + at) for at in range((length + 3) // 4)]

    def value(self, register: int, length: int) -> bytes | None:
        """The bytes from a register on; None if some are not known or drawn."""
        words = self.words(register, length)
        known = [word for word in words if isinstance(word, bytes)]
        return b"".join(known)[:length] if len(known) == len(words) else None


def cells_of(value: bytes | None, length: int) -> list[Cell]:
    """A value as words; None: as many that are not known."""
    if value is None:
        return [None] * ((length + 3) // 4)
    padded = value[:length].ljust((length + 3) & ~3, b"\0")
    return [padded[at : at + 4] for at in range(0, len(padded), 4)]


def masked(held: bytes, mask: bytes, xor: bytes) -> bytes:
    """(held & mask) ^ xor, byte by byte."""
    return bytes(value & kept ^ flipped for value, kept, flipped in zip(held, mask, xor, strict=True))


def swapped(word: Cell, size: int) -> Cell:
    """A word in the other byte order, in units of `size` bytes."""
    if isinstance(word, Drawn):
        return word.swapped()
    if word is None:
        return None
    return word[::-1] if size >= 4 else b"".join(word[at : at + size][::-1] for at in range(0, 4, size))


def holds(held: bytes, operator: str, value: bytes) -> bool:
    """Whether a comparison of bytes is true."""
    return {
        "==": held == value,
        "!=": held != value,
        "<": held < value,
        "<=": held <= value,
        ">": held > value,
        ">=": held >= value,
    }[operator]
