"""Lists of endpoints by slot, and those in which one change moves few endpoints. Pure.

backends/core/shares.py says how many slots an endpoint has. A list depends on the endpoints alone, not on
their history, so that a restarted kproxy finds the kernel as it would write it. Of 50,000 endpoints a change
moves about 300.
"""

import zlib
from collections.abc import Sequence

_WORD = 0xFFFFFFFF
_GOLDEN = 0x9E3779B1
"""Knuth's multiplicative hash, The Art of Computer Programming 6.4."""


def in_order(endpoints: Sequence[str], counts: Sequence[int]) -> list[str]:
    """The endpoint of each slot, in their order; `counts` as `slots` returns them."""
    return [each for each, count in zip(endpoints, counts, strict=True) for _ in range(count)]


def scattered(endpoints: Sequence[str], counts: Sequence[int]) -> list[str]:
    """The endpoint of each slot, in an order in which one more endpoint or one less moves few others.

    Each copy of an endpoint takes the first free slot from its `_first_slot` on. The order of the copies is
    that of their hashes, so the result is unique (ordered hash tables, Amble and Knuth 1974).
    """
    total = sum(counts)
    level = (total - 1).bit_length()
    copies = []
    for endpoint, count in zip(endpoints, counts, strict=True):
        for number in range(count):
            hashed = zlib.crc32(f"{endpoint} {number}".encode())
            copies.append((hashed * _GOLDEN & _WORD, endpoint, _first_slot(hashed, total, level)))
    copies.sort()
    after = list(range(total))
    found = [""] * total
    for _, endpoint, slot in copies:
        free = slot
        while after[free] != free:
            after[free] = free = after[after[free]]
        found[free] = endpoint
        after[free] = (free + 1) % total
    return found


def _first_slot(hashed: int, total: int, level: int) -> int:
    """A slot below `total`, which is at most 2**level; for most hashes it is the same with total + 1.

    A number is drawn from each power of two: the upper half counts if it is below the total, the lower half
    leads to the next lower power.
    """
    while level:
        drawn = (hashed ^ level * 0x5BD1E995) * _GOLDEN & _WORD
        while (slot := drawn >> 32 - level) >= total:
            drawn = drawn * 1664525 + 1013904223 & _WORD
        if slot >> level - 1:
            return slot
        level -= 1
    return 0
