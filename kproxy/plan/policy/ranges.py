"""Sets of addresses from ipBlocks: their union, each without its own exceptions, as disjoint CIDRs.

A hole that one block leaves may be filled by another. The work is linear but for sorting, and the number of
CIDRs is bounded by `limits.RANGES`: an exception cuts a block into as many pieces as its prefix is longer.
"""

from collections.abc import Collection, Iterable, Iterator

import msgspec

from kproxy.addresses import Family, from_number

Interval = tuple[int, int]


class Block(msgspec.Struct, frozen=True, gc=False, order=True):
    """An ipBlock; all CIDRs are canonical and of one family. Intervals say the same in numbers."""

    family: Family
    cidr: str
    excepts: tuple[str, ...] = ()
    interval: Interval = (0, 0)
    holes: tuple[Interval, ...] = ()

    def contains(self, address: int) -> bool:
        """Whether it has an address of its family."""
        first, last = self.interval
        return first <= address <= last and not any(begin <= address <= end for begin, end in self.holes)

    def __str__(self) -> str:
        return f"{self.cidr} except {', '.join(self.excepts)}" if self.excepts else self.cidr


def is_strictly_within(inner: Interval, outer: Interval) -> bool:
    """Whether a range is within another one of its family and smaller, as `except` must be."""
    return outer[0] <= inner[0] and inner[1] <= outer[1] and inner != outer


def count_ranges(lists: Iterable[Collection[Block]], family: Family, limit: int) -> int:
    """The number of CIDRs that `cidrs_of` makes of each list of blocks, added up to one above `limit`."""
    number = 0
    for blocks in lists:
        for _ in _pieces(blocks, family):
            number += 1
            if number > limit:
                return number
    return number


def most_ranges(blocks: Iterable[Block], family: Family) -> int:
    """At least the number of CIDRs of `cidrs_of`, found without making them."""
    return sum(1 + len(each.holes) * family.host_bits for each in blocks if each.family is family)


def cidrs_of(blocks: Collection[Block], family: Family) -> tuple[str, ...]:
    """The addresses of all blocks of a family as canonical disjoint CIDRs in order of address."""
    mine = [each for each in blocks if each.family is family]
    if len(mine) == 1 and not mine[0].excepts:
        return (mine[0].cidr,)
    return tuple(f"{from_number(family, first)}/{length}" for first, length in _pieces(mine, family))


def is_everything(cidrs: tuple[str, ...]) -> bool:
    """Whether disjoint CIDRs are all addresses of their family."""
    return len(cidrs) == 1 and cidrs[0].endswith("/0")


def _pieces(blocks: Iterable[Block], family: Family) -> Iterator[tuple[int, int]]:
    """(first address, prefix length) of each CIDR."""
    bits = family.host_bits
    for first, last in _union(part for each in blocks if each.family is family for part in _parts(each)):
        begin = first
        while begin <= last:
            aligned = (begin & -begin).bit_length() - 1 if begin else bits
            size = min(aligned, (last - begin + 1).bit_length() - 1)
            yield begin, bits - size
            begin += 1 << size


def _parts(block: Block) -> Iterator[Interval]:
    """What exceptions leave of a block."""
    begin, end = block.interval
    for first, last in _union(block.holes):
        if begin < first:
            yield begin, first - 1
        begin = last + 1
    if begin <= end:
        yield begin, end


def _union(intervals: Iterable[Interval]) -> Iterator[Interval]:
    """The same addresses as disjoint intervals in order, none beside another."""
    current: Interval | None = None
    for first, last in sorted(intervals):
        if current is not None and first <= current[1] + 1:
            current = current[0], max(current[1], last)
        else:
            if current is not None:
                yield current
            current = first, last
    if current is not None:
        yield current
