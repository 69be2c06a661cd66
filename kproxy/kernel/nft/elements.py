"""Encode elements of maps and sets as netlink attributes, in bulk.

Seventy thousand elements are written when a node starts, so they are encoded by columns: each distinct
address, port or verdict is encoded once, and the columns are joined by code in C.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import repeat

from kproxy.kernel.netlink.messages import NLA, NLA_F_NESTED, attribute, every_attribute, nested
from kproxy.kernel.nft import expressions as x
from kproxy.kernel.nft.declarations import SetType
from kproxy.kernel.nft.fields import Field, bounds, pad, total_length

LIST_TABLE, LIST_SET, LIST_ELEMENTS, LIST_SET_ID = 1, 2, 3, 4
"""enum nft_set_elem_list_attributes."""
_ELEMENT = 1  # NFTA_LIST_ELEM
_KEY, _DATA, _FLAGS, _USERDATA, _KEY_END = 1, 2, 3, 6, 10
_VALUE = 1
_INTERVAL_END = 1
_OPEN_INTERVAL = b"\x01\x04\x01\x00\x00\x00"
"""libnftnl's NFTNL_UDATA_SET_ELEM_FLAGS with NFTNL_SET_ELEM_F_INTERVAL_OPEN, in a little-endian machine."""
MOST_BYTES = 64000
"""Greatest size of the elements in one message: the length of their attribute has 16 bits."""


def encode(kind: SetType, elements: Mapping[str, str]) -> list[bytes]:
    """Encode each element (value by key) of a map or set. Raises ValueError or OSError for an invalid one."""
    if _is_intervals(kind):
        return _intervals(kind.key[0], elements, with_start=True)
    if kind.data is None and _is_whole(kind):
        return _plain(kind, elements)
    keys = _keys(kind, elements)
    if kind.verdicts:
        values = elements.values()
        tails = {text: nested(_DATA, x.verdict_data(*_words(text))) for text in set(values)}
        heads = {text: _head(_key_length(kind) + len(tail)) for text, tail in tails.items()}
        return _join(map(heads.__getitem__, values), *keys, map(tails.__getitem__, values))
    if kind.data is None:
        return _join(repeat(_head(_key_length(kind))), *keys)
    length = total_length(kind.data)
    before = _opening(_DATA, length)
    head = _head(_key_length(kind) + len(before) + len(pad(bytes(length))))
    columns = _columns(elements.values(), kind.data)
    return _join(repeat(head), *keys, repeat(before), *itertools.starmap(_encoded, columns))


def encode_keys(kind: SetType, keys: Iterable[str]) -> list[bytes]:
    """Encode each element by its key alone, for deletion. Raises ValueError or OSError for an invalid one."""
    if _is_intervals(kind):
        return _intervals(kind.key[0], keys, with_start=False)
    if _is_whole(kind):
        return _plain(kind, keys)
    return _join(repeat(_head(_key_length(kind))), *_keys(kind, tuple(keys)))


def _is_whole(kind: SetType) -> bool:
    """Whether a key is one value without padding, such as an address."""
    return len(kind.key) == 1 and not kind.ranges and kind.key[0].padded == kind.key[0].size


def _plain(kind: SetType, keys: Iterable[str]) -> list[bytes]:
    """Encode elements that have only such a key: sets of addresses can be of thousands."""
    before = _head(_key_length(kind)) + _opening(_KEY, kind.key[0].size)
    encode_one = kind.key[0].encode
    return [before + encode_one(key) for key in keys]


def _is_intervals(kind: SetType) -> bool:
    """Whether it is a set of ranges of one field, in which each range is two elements of the kernel."""
    return kind.ranges and len(kind.key) == 1


def _intervals(field: Field, ranges: Iterable[str], *, with_start: bool) -> list[bytes]:
    """Encode each range, by its first address and one after its last, in one item.

    `with_start`: as nft does, an element at zero ends nothing; it comes last, so that item and range have
    the same number.
    """
    found = []
    end = x.number(_FLAGS, _INTERVAL_END)
    for text in ranges:
        first, last = (int.from_bytes(bound, "big") for bound in bounds(text, field))
        if last + 1 < 1 << field.width:
            found.append(
                nested(_ELEMENT, _bound(field, first)) + nested(_ELEMENT, _bound(field, last + 1), end)
            )
        else:
            found.append(nested(_ELEMENT, _bound(field, first), attribute(_USERDATA, _OPEN_INTERVAL)))
        with_start &= first > 0
    if with_start and found:
        found.append(nested(_ELEMENT, _bound(field, 0), end))
    return found


def encode_ranges(field: Field, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Encode the bounds of an interval set of one field, from sorted inclusive ranges that do not touch.

    As nft writes them: an element for the start of a range and one, flagged as end, after its last address; a
    flagged one at zero if no range starts there. A range up to the last address has no end element.
    """
    found = []
    end = x.number(_FLAGS, _INTERVAL_END)
    if ranges and ranges[0][0]:
        found.append(nested(_ELEMENT, _bound(field, 0), end))
    for first, last in ranges:
        if last + 1 < 1 << field.width:
            found.append(nested(_ELEMENT, _bound(field, first)))
            found.append(nested(_ELEMENT, _bound(field, last + 1), end))
        else:
            found.append(nested(_ELEMENT, _bound(field, first), attribute(_USERDATA, _OPEN_INTERVAL)))
    return found


def chunks(elements: Sequence[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield lists of elements that fit one message each, with the number of their first element."""
    if not elements:
        return
    step = MOST_BYTES // max(map(len, elements))
    for start in range(0, len(elements), step):
        yield start, nested(LIST_ELEMENTS, *elements[start : start + step])


def number_at(listed: bytes, offset: int, kind: SetType) -> int | None:
    """Return the number of the item whose element starts at an offset of an encoded list, or None."""
    place = NLA.size
    for number, (_, content) in enumerate(every_attribute(listed[NLA.size :])):
        if place == offset:
            return number // 2 if _is_intervals(kind) else number
        place += NLA.size + len(pad(content))
    return None


def _bound(field: Field, number: int) -> bytes:
    return nested(_KEY, attribute(_VALUE, number.to_bytes(field.width // 8, "big")))


def _join(*columns: Iterable[bytes]) -> list[bytes]:
    return list(map(b"".join, zip(*columns, strict=False)))


def _keys(kind: SetType, keys: Iterable[str]) -> list[Iterable[bytes]]:
    """The encoded parts of the keys, column by column."""
    columns = _columns(keys, kind.key)
    parts: list[Iterable[bytes]] = [repeat(_opening(_KEY, total_length(kind.key)))]
    if not kind.ranges:
        return [*parts, *itertools.starmap(_encoded, columns)]
    bound = [_bounds(column, field) for column, field in columns]
    parts += [first for first, _ in bound]
    parts.append(repeat(_opening(_KEY_END, total_length(kind.key))))
    return parts + [last for _, last in bound]


def _key_length(kind: SetType) -> int:
    length = len(_opening(_KEY, 0)) + len(pad(bytes(total_length(kind.key))))
    return length * 2 if kind.ranges else length


def _columns(values: Iterable[str], fields: Sequence[Field]) -> Iterator[tuple[Sequence[str], Field]]:
    """The column of each field, of values that are concatenations."""
    if len(fields) == 1:
        return iter([(tuple(values), fields[0])])
    rows = [value.split(" . ") for value in values]
    if any(len(row) != len(fields) for row in rows):
        raise ValueError(f"not {len(fields)} fields: {next(r for r in rows if len(r) != len(fields))}")
    columns: Iterable[Sequence[str]] = zip(*rows, strict=True) if rows else repeat((), len(fields))
    return zip(columns, fields, strict=True)


def _encoded(column: Sequence[str], field: Field) -> Iterator[bytes]:
    known = {text: pad(field.encode(text)) for text in set(column)}
    return map(known.__getitem__, column)


def _bounds(column: Sequence[str], field: Field) -> tuple[Iterator[bytes], Iterator[bytes]]:
    split: Callable[[str], tuple[bytes, bytes]] = functools.partial(bounds, field=field)
    if not field.width:
        split = _twice(field)
    known = {text: tuple(map(pad, split(text))) for text in set(column)}
    return (known[text][0] for text in column), (known[text][1] for text in column)


def _twice(field: Field) -> Callable[[str], tuple[bytes, bytes]]:
    return lambda text: (field.encode(text), field.encode(text))


def _words(verdict: str) -> tuple[str, str]:
    word, _, chain = verdict.partition(" ")
    return word, chain


def _opening(kind: int, length: int) -> bytes:
    """The headers before a value of `length` bytes: of the attribute and of the one nested in it."""
    return NLA.pack(2 * NLA.size + len(pad(bytes(length))), kind | NLA_F_NESTED) + NLA.pack(
        NLA.size + length, _VALUE
    )


def _head(length: int) -> bytes:
    return NLA.pack(NLA.size + length, _ELEMENT | NLA_F_NESTED)
