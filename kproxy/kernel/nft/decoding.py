"""Decode the kernel's answers about maps, sets and their elements into text as nft prints it.

Ten thousand services are a hundred thousand elements, so they are decoded by code in C: a regular expression
that describes every byte of an element, and `struct` on its groups. Elements of another form, such as foreign
ones with a comment, are decoded one by one. Unknown types are an error.

Layouts are those of the kernel's include/uapi/linux/netfilter/nf_tables.h, in the order of its function
nf_tables_fill_setelem; the numbers of data types are those of nftables' include/datatype.h.
"""

import ipaddress
import re
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from kproxy.kernel.netlink.messages import attributes, every_attribute

Counts = tuple[int, int]
"""(packets, bytes)."""

_ANONYMOUS, _INTERVAL, _MAP, _TIMEOUT, _DYNAMIC = 0x1, 0x4, 0x8, 0x10, 0x20  # enum nft_set_flags
_CONCATENATION, _EXPRESSIONS = 0x80, 0x100
_KNOWN_FLAGS = _INTERVAL | _MAP | _TIMEOUT | _DYNAMIC | _CONCATENATION | _EXPRESSIONS
_SET_NAME, _SET_FLAGS, _SET_KEY_TYPE, _SET_KEY_LENGTH = 2, 3, 4, 5
_SET_DATA_TYPE, _SET_DATA_LENGTH, _SET_EXPRESSION = 6, 7, 17
_VERDICT_TYPE = 0xFFFFFF00  # NFT_DATA_VERDICT
_TYPE_BITS = 6
_LIST_ELEMENTS = 3
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2
_BYTES, _PACKETS = 1, 2  # of a counter
_COUNTER = "counter"

_KEY, _DATA, _FLAGS, _ELEMENT_TIMEOUT, _EXPIRATION, _EXPRESSION, _KEY_END = 1, 2, 3, 4, 5, 7, 10
_VALUE, _VERDICT = 1, 2
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_ELEMENT = 1  # NFTA_LIST_ELEM
_INTERVAL_END = 1  # NFT_SET_ELEM_INTERVAL_END
_WORDS = {0: "drop", 1: "accept", -1: "continue", -3: "jump", -4: "goto", -5: "return"}
"""NF_DROP, NF_ACCEPT, and enum nft_verdicts."""
_TO_CHAIN = ("jump", "goto")


class UndecodableError(Exception):
    """The kernel holds a type or an element that this module does not know; the message names it."""


class _Field(msgspec.Struct, frozen=True):
    """One data type: its size in bytes, its padded `struct` code, and how nft prints it, and ranges of it."""

    size: int
    code: str
    text: Callable[..., str]
    range: Callable[[bytes, bytes], str] | None = None


def _ipv6(packed: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET6, packed)


def _address_range(first: bytes, last: bytes) -> str:
    """Return a range as a prefix if it is one, else as `first-last`."""
    start, end = ipaddress.ip_address(first), ipaddress.ip_address(last)
    if int(start) > int(end):
        raise UndecodableError(f"a range from {start} to {end}")
    size = (int(start) ^ int(end)).bit_length()
    texts = [socket.inet_ntop(socket.AF_INET if len(a) == 4 else socket.AF_INET6, a) for a in (first, last)]
    if first == last:
        return texts[0]
    if int(start) & (1 << size) - 1 or (int(end) + 1) & (1 << size) - 1:
        return "-".join(texts)
    return f"{texts[0]}/{start.max_prefixlen - size}"


def _number_range(first: bytes, last: bytes) -> str:
    start, end = int.from_bytes(first, "big"), int.from_bytes(last, "big")
    return str(start) if start == end else f"{start}-{end}"


def _host_order(number: int) -> str:
    return str(socket.ntohl(number))


_FIELDS = {
    4: _Field(4, "I", _host_order),  # integer, as numgen draws it: in the machine's own byte order
    7: _Field(4, "4s", socket.inet_ntoa, _address_range),  # ipv4_addr
    8: _Field(16, "16s", _ipv6, _address_range),  # ipv6_addr
    12: _Field(1, "B3x", str),  # inet_proto
    13: _Field(2, "H2x", str, _number_range),  # inet_service
}


class Declaration(msgspec.Struct, frozen=True):
    """A map or set: its types by nft's numbers, concatenations in six bits each, and lengths in bytes.

    `data_type` is None for a set; `expression` is the expression of each element, such as `counter`, or "".
    """

    name: str
    flags: int
    key_type: int
    key_length: int
    data_type: int | None
    data_length: int
    expression: str

    def __str__(self) -> str:
        return f"{'map' if self.flags & _MAP else 'set'} {self.name}"

    @property
    def of_rules(self) -> bool:
        """Whether it is an anonymous set of a rule; its contents cannot change."""
        return bool(self.flags & _ANONYMOUS)

    @property
    def of_packets(self) -> bool:
        """Whether packets fill it: its contents change without a transaction."""
        return bool(self.flags & (_TIMEOUT | _DYNAMIC))


def declaration(held: dict[int, bytes]) -> Declaration:
    """Decode a map or set from the attributes of the kernel's message."""
    expression = attributes(held.get(_SET_EXPRESSION, b"")).get(_EXPRESSION_NAME, b"")
    data = held.get(_SET_DATA_TYPE)
    return Declaration(
        text(held[_SET_NAME]),
        _number(held.get(_SET_FLAGS)),
        _number(held.get(_SET_KEY_TYPE)),
        _number(held.get(_SET_KEY_LENGTH)),
        None if data is None else _number(data),
        _number(held.get(_SET_DATA_LENGTH)),
        text(expression),
    )


def text(packed: bytes) -> str:
    """Decode a zero-terminated string."""
    return packed.rstrip(b"\0").decode("utf-8", "replace")


class ElementDecoder:
    """Decodes the elements of one map or set. The constructor and all methods may raise UndecodableError."""

    def __init__(self, declared: Declaration) -> None:
        self._name = declared.name
        if declared.flags & ~_KNOWN_FLAGS:
            raise UndecodableError(f"{declared.name}: flags {declared.flags:#x}")
        if declared.expression not in {"", _COUNTER}:
            raise UndecodableError(f"{declared.name}: its elements have a {declared.expression}")
        self._key = _fields(declared, declared.key_type, declared.key_length)
        self._ranges = bool(declared.flags & _INTERVAL)
        self._bounds = self._ranges and len(self._key) == 1
        if self._bounds and (self._key[0].range is None or declared.data_type is not None):
            raise UndecodableError(f"{declared.name}: intervals of something without an order")
        self._verdicts = declared.data_type == _VERDICT_TYPE
        self._data: Sequence[_Field] = ()
        if declared.data_type is not None and not self._verdicts:
            self._data = _fields(declared, declared.data_type, declared.data_length)
        data_length = 4 if self._verdicts else declared.data_length
        self._lengths = (
            declared.key_length,
            declared.key_length if self._ranges else 0,
            0 if declared.data_type is None else data_length,
        )
        self._pattern = _pattern(declared, verdicts=self._verdicts)
        self._known_verdicts: dict[tuple[bytes, bytes], str] = {}

    def texts(self, messages: Iterable[bytes]) -> dict[str, str]:
        """Return the elements in messages: key -> value, "" in sets, as nft prints both."""
        if self._bounds:
            return dict.fromkeys(self._intervals(messages), "")
        found: dict[str, str] = {}
        for matches in map(self._matches, messages):
            if not matches:
                continue
            columns = list(zip(*matches, strict=True))
            found.update(zip(self._keys(columns), self._values(columns), strict=True))
        return found

    def counts(self, messages: Iterable[bytes]) -> dict[str, Counts]:
        """Return the counters by key; elements without a counter are left out."""
        found: dict[str, Counts] = {}
        for matches in map(self._matches, messages):
            if not matches:
                continue
            columns = list(zip(*matches, strict=True))
            for key, size, packets in zip(self._keys(columns), columns[5], columns[6], strict=True):
                if packets:
                    found[key] = int.from_bytes(packets, "big"), int.from_bytes(size, "big")
        return found

    def _intervals(self, messages: Iterable[bytes]) -> Iterator[str]:
        """The ranges between the bounds in messages, which are in any order.

        An end is the address after the last; one without a start, such as nft's at zero, ends nothing.
        """
        bounds: list[tuple[bytes, bool]] = []
        for message in messages:
            for _, element in every_attribute(attributes(message).get(_LIST_ELEMENTS, b"")):
                held = attributes(element)
                key = attributes(held.get(_KEY, b"")).get(_VALUE, b"")
                flags = _number(held.get(_FLAGS))
                if len(key) != self._key[0].size or flags & ~_INTERVAL_END:
                    raise UndecodableError(f"{self._name}: an element of another shape")
                bounds.append((key, not flags))
        size = self._key[0].size
        start: bytes | None = None
        for key, starts in sorted(bounds):
            if start is not None:
                if starts:
                    raise UndecodableError(f"{self._name}: intervals that overlap")
                yield self._range(start, (int.from_bytes(key, "big") - 1).to_bytes(size, "big"))
            start = key if starts else None
        if start is not None:
            yield self._range(start, b"\xff" * size)

    def _matches(self, message: bytes) -> list[tuple[bytes, ...]]:
        """(whole, key, end of key, data or verdict, chain, bytes, packets) of each element of a message."""
        elements = attributes(message).get(_LIST_ELEMENTS, b"")
        matches = self._pattern.findall(elements)
        if sum(len(match[0]) for match in matches) != len(elements):
            return [self._match(each) for _, each in every_attribute(elements)]
        return matches

    def _match(self, element: bytes) -> tuple[bytes, ...]:
        """As `_matches`, for one element with attributes in any order; unknown ones are ignored."""
        held = attributes(element)
        key = attributes(held.get(_KEY, b"")).get(_VALUE, b"")
        end = attributes(held.get(_KEY_END, b"")).get(_VALUE, key) if self._ranges else b""
        data = attributes(held.get(_DATA, b""))
        value, chain = data.get(_VALUE, b""), b""
        if self._verdicts:
            verdict = attributes(data.get(_VERDICT, b""))
            value = verdict.get(_VERDICT_CODE, b"")
            chain = verdict.get(_VERDICT_CHAIN, b"").rstrip(b"\0")
        counted = {}
        expression = attributes(held.get(_EXPRESSION, b""))
        if text(expression.get(_EXPRESSION_NAME, b"")) == _COUNTER:
            counted = attributes(expression.get(_EXPRESSION_DATA, b""))
        lengths = (len(key), len(end), len(value))
        if _FLAGS in held or lengths != self._lengths:
            raise UndecodableError(f"{self._name}: an element of another shape")
        return element, key, end, value, chain, counted.get(_BYTES, b""), counted.get(_PACKETS, b"")

    def _keys(self, columns: Sequence[Sequence[bytes]]) -> Iterable[str]:
        if not self._ranges:
            return _texts(self._key, columns[1])
        return list(map(self._range, columns[1], columns[2]))

    def _values(self, columns: Sequence[Sequence[bytes]]) -> Iterable[str]:
        if self._verdicts:
            return list(map(self._verdict, columns[3], columns[4]))
        return _texts(self._data, columns[3]) if self._data else [""] * len(columns[0])

    def _verdict(self, code: bytes, chain: bytes) -> str:
        known = self._known_verdicts.get((code, chain))
        if known is None:
            word = _WORDS.get(int.from_bytes(code, "big", signed=True))
            if word is None or (word in _TO_CHAIN) != bool(chain):
                raise UndecodableError(f"{self._name}: verdict {code.hex()} to {chain!r}")
            known = self._known_verdicts[code, chain] = f"{word} {text(chain)}".strip()
        return known

    def _range(self, first: bytes, last: bytes) -> str:
        texts, offset = [], 0
        for field in self._key:
            start, end = first[offset : offset + field.size], last[offset : offset + field.size]
            offset += _padded(field.size)
            if field.range is not None:
                texts.append(field.range(start, end))
            elif start == end:
                texts.append(field.text(int.from_bytes(start, "big")))
            else:
                raise UndecodableError(f"{self._name}: a range of something without an order")
        return " . ".join(texts)


def _fields(declared: Declaration, kind: int, length: int) -> Sequence[_Field]:
    fields: list[_Field] = []
    while kind:
        field = _FIELDS.get(kind & (1 << _TYPE_BITS) - 1)
        if field is None:
            raise UndecodableError(f"{declared.name}: type {kind:#x}")
        fields.insert(0, field)
        kind >>= _TYPE_BITS
    size = fields[0].size if len(fields) == 1 else sum(_padded(field.size) for field in fields)
    if not fields or size != length:
        raise UndecodableError(f"{declared.name}: {length} bytes where {size} were expected")
    return fields


def _texts(fields: Sequence[_Field], packed: Sequence[bytes]) -> Iterator[str]:
    """The fields of each value, joined as nft joins concatenations. A lone short field is never padded."""
    code = "".join(field.code for field in fields) if len(fields) > 1 else fields[0].code.partition("3x")[0]
    columns = zip(*struct.Struct(f"!{code}").iter_unpack(b"".join(packed)), strict=True)
    return map(
        " . ".join,
        zip(*(map(field.text, column) for field, column in zip(fields, columns, strict=True)), strict=True),
    )


def _pattern(declared: Declaration, *, verdicts: bool) -> re.Pattern[bytes]:
    """The expression for one element; its groups are the variable parts, see ElementDecoder._matches."""
    parts = [rb"..", _kind(_ELEMENT), _value(_KEY, declared.key_length)]
    parts.append(_value(_KEY_END, declared.key_length) if declared.flags & _INTERVAL else b"()")
    if verdicts:
        parts += [
            *(rb"..", _kind(_DATA), rb"..", _kind(_VERDICT), _head(8, _VERDICT_CODE), rb"(.{4})"),
            *(rb"(?:..", _kind(_VERDICT_CHAIN), rb"([^\0]{1,127})\0{1,4})?"),
        ]
    elif declared.data_type is not None:
        parts += [_value(_DATA, declared.data_length), b"()"]
    else:
        parts.append(b"()()")
    if declared.expression:
        name = re.escape(struct.pack("=HH8s", 12, _EXPRESSION_NAME, _COUNTER.encode()))
        values = _head(12, 1) + rb"(.{8})" + _head(12, 2) + rb"(.{8})"
        parts.append(rb"(?:" + _head(44, _EXPRESSION) + name + _head(28, 2) + values + rb")?")
    else:
        parts.append(b"()()")
    if declared.flags & _TIMEOUT:
        parts += [rb"(?:" + _head(12, kind) + rb".{8})?" for kind in (_ELEMENT_TIMEOUT, _EXPIRATION)]
    return re.compile(b"(" + b"".join(parts) + b")", re.DOTALL)


def _value(kind: int, size: int) -> bytes:
    """The expression for an attribute that holds a value of `size` bytes."""
    head = _head(8 + _padded(size), kind) + _head(4 + size, _VALUE)
    return head + b"(.{%d})" % size + rb"\0" * (_padded(size) - size)


def _head(length: int, kind: int) -> bytes:
    return re.escape(struct.pack("=HH", length, kind))


def _kind(kind: int) -> bytes:
    return re.escape(struct.pack("=H", kind))


def _padded(size: int) -> int:
    return (size + 3) & ~3


def _number(packed: bytes | None) -> int:
    return int.from_bytes(packed or b"", "big")
