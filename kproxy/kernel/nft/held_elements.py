"""Elements of maps and sets as the kernel sent them: of a hundred thousand, a packet needs a handful.

These are found in the bytes, without decoding the others.
"""

import functools
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import msgspec

from kproxy.kernel.netlink.messages import attributes, every_attribute
from kproxy.kernel.nft.decoding import text
from kproxy.kernel.nft.expressions import VERDICTS

_KEY, _DATA, _FLAGS, _KEY_END = 1, 2, 3, 10
_VALUE, _VERDICT, _VERDICT_CODE, _VERDICT_CHAIN = 1, 2, 1, 2
_END = 1  # NFT_SET_ELEM_INTERVAL_END
_CATCH_ALL = 2  # NFT_SET_ELEM_CATCHALL
_HEAD = struct.Struct("=HH")
_WORDS = {code: word for word, code in VERDICTS.items()}
_CATCH_ALL_FLAGS = _HEAD.pack(8, _FLAGS) + _CATCH_ALL.to_bytes(4, "big")
_NESTED = 0x8000


class Target(msgspec.Struct, frozen=True):
    """A verdict: its word and, for `jump` and `goto`, the chain."""

    word: str
    chain: str = ""

    def __str__(self) -> str:
        return f"{self.word} {self.chain}".strip()


Element = bytes | Target
"""The value of an element: data, or a verdict; no bytes in sets."""


class Elements(msgspec.Struct, frozen=True):
    """The elements of a map or set of a key length in bytes, as the kernel sent them.

    `intervals`: consecutive elements are bounds of ranges of one field. `fields`: the lengths of the fields
    of a concatenation in which elements are ranges.
    """

    name: str
    key_length: int
    lists: tuple[bytes, ...] = ()
    intervals: bool = False
    fields: tuple[int, ...] = ()

    def find(self, key: bytes) -> Element | None:
        """The value of a key; None if the map or set does not have it."""
        if self.intervals:
            return self._between(key)
        if self.fields:
            return next(
                (value for first, last, value in self._every() if _within(first, key, last, self.fields)),
                None,
            )
        return self._exact(key)

    def may_find(self, words: Sequence[bytes | None]) -> bool:
        """Whether an element may have a key of these words of four bytes, of which some are not known."""
        if self.intervals or self.fields or any(_CATCH_ALL_FLAGS in listed for listed in self.lists):
            return True
        return any(fits(key, words) for key, _, _ in self._every())

    def _exact(self, key: bytes) -> Element | None:
        for head in _heads(self.key_length):
            for listed in self.lists:
                start = listed.find(head + key)
                while start >= _HEAD.size:
                    length = _HEAD.unpack_from(listed, start - _HEAD.size)[0]
                    if len(head) + len(key) <= length <= len(listed) - start + _HEAD.size:
                        return _value(attributes(listed[start : start - _HEAD.size + length]))
                    start = listed.find(head + key, start + 1)
        if not any(_CATCH_ALL_FLAGS in listed for listed in self.lists):
            return None
        return next((value for first, _, value in self._every(catch_all=True) if not first), None)

    def _between(self, key: bytes) -> Element | None:
        """The value of the last bound up to the key, if that is a start."""
        found: Element | None = None
        best: tuple[bytes, bool] | None = None
        for held in self._held():
            bound = attributes(held.get(_KEY, b"")).get(_VALUE, b"")
            starts = not as_number(held.get(_FLAGS)) & _END
            if bound <= key and (best is None or (bound, starts) > best):
                best = bound, starts
                found = _value(held) if starts else None
        return found

    def _every(self, *, catch_all: bool = False) -> Iterator[tuple[bytes, bytes, Element]]:
        for held in self._held():
            if catch_all and not as_number(held.get(_FLAGS)) & _CATCH_ALL:
                continue
            first = attributes(held.get(_KEY, b"")).get(_VALUE, b"")
            last = attributes(held.get(_KEY_END, b"")).get(_VALUE, first)
            yield first, last, _value(held)

    def _held(self) -> Iterator[Mapping[int, bytes]]:
        for listed in self.lists:
            for _, element in every_attribute(listed):
                yield attributes(element)


def fits(key: bytes, words: Sequence[bytes | None]) -> bool:
    """Whether a key has the words that are known."""
    padded = key.ljust(4 * len(words), b"\0")
    return all(word is None or padded[4 * at : 4 * at + 4] == word for at, word in enumerate(words))


class SomeElements(Protocol):
    """The elements of a map or set."""

    @property
    def key_length(self) -> int:
        """The length of a key in bytes."""

    def find(self, key: bytes) -> Element | None:
        """The value of a key; None if the map or set does not have it."""

    def may_find(self, words: Sequence[bytes | None]) -> bool:
        """Whether an element may have a key of these words of four bytes, of which some are not known."""


def _value(held: Mapping[int, bytes]) -> Element:
    data = attributes(held.get(_DATA, b""))
    if _VERDICT not in data:
        return data.get(_VALUE, b"")
    verdict = attributes(data[_VERDICT])
    code = int.from_bytes(verdict.get(_VERDICT_CODE, b""), "big", signed=True)
    return Target(_WORDS.get(code, f"verdict {code}"), text(verdict.get(_VERDICT_CHAIN, b"")))


@functools.cache
def _heads(length: int) -> Sequence[bytes]:
    """What precedes a key of that length in an element, with and without the flag for nesting."""
    padded = (length + 3) & ~3
    inner = _HEAD.pack(_HEAD.size + length, _VALUE)
    return [_HEAD.pack(2 * _HEAD.size + padded, _KEY | flag) + inner for flag in (_NESTED, 0)]


def _within(first: bytes, key: bytes, last: bytes, fields: Sequence[int]) -> bool:
    """Whether every field of a concatenation is in its range; fields begin at multiples of four bytes."""
    at = 0
    for length in fields:
        if not first[at : at + length] <= key[at : at + length] <= last[at : at + length]:
            return False
        at += (length + 3) & ~3
    return True


def as_number(packed: bytes | None) -> int:
    """An attribute that is a number; 0 if it is missing."""
    return int.from_bytes(packed or b"", "big")
