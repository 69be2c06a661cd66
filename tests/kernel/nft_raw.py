"""A table of nftables as the kernel holds it, byte by byte, in a form in which two tables compare."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from kproxy.addresses import Family
from kproxy.kernel.netlink.messages import attribute, attributes, every_attribute
from kproxy.kernel.netlink.socket import NetlinkSocket
from kproxy.kernel.nft.expressions import FAMILY_NUMBERS
from kproxy.kernel.nft.messages import NFGENMSG

_SUBSYSTEM = 10
_GET_CHAIN, _GET_RULE, _GET_SET, _GET_ELEMENTS = 4, 7, 10, 13
_ANONYMOUS = 0x1
_COMPARED = {3: "flags", 4: "key type", 5: "key length", 6: "data type", 7: "data length", 17: "expression"}

Expression = tuple[str, tuple[tuple[int, object], ...]]


class RawSet(msgspec.Struct, frozen=True):
    """A map or set: its attributes by name, and its elements in an order of their own."""

    declared: dict[str, bytes]
    elements: tuple[bytes, ...]


class RawTable(msgspec.Struct, frozen=True):
    """Named maps and sets, chains with where the kernel calls them from, and rules by chain.

    Sets of rules stand where the rules look them up, instead of their names.
    """

    sets: dict[str, RawSet]
    chains: dict[str, tuple[bytes, ...]]
    rules: dict[str, list[list[Expression]]]


def raw_table(family: Family, table: str) -> RawTable:
    """Read a table in the calling thread's network namespace."""
    sock = NetlinkSocket(12)
    try:
        return _read(sock, family, table)
    finally:
        sock.close()


def _read(sock: NetlinkSocket, family: Family, table: str) -> RawTable:
    head = NFGENMSG.pack(FAMILY_NUMBERS[family], 0, 0) + attribute(1, table.encode() + b"\0")

    def dumped(kind: int, more: bytes = b"") -> Iterator[dict[int, bytes]]:
        for answer in sock.dump(_SUBSYSTEM << 8 | kind, head + more):
            held = attributes(answer[NFGENMSG.size :])
            if _text(held[1]) == table:
                yield held

    sets: dict[str, RawSet] = {}
    inner: dict[str, RawSet] = {}
    for held in dumped(_GET_SET):
        declared = {name: held[kind] for kind, name in _COMPARED.items() if kind in held}
        description = attributes(held.get(9, b""))
        declared["fields"] = description.get(2, b"")
        anonymous = int.from_bytes(held.get(3, b""), "big") & _ANONYMOUS
        if not anonymous:  # of sets within rules nft says a size that later versions do not
            declared["size"] = description.get(1, b"")
        elements = [
            element
            for message in dumped(_GET_ELEMENTS, attribute(2, held[2]))
            for _, element in every_attribute(message.get(3, b""))
        ]
        (inner if anonymous else sets)[_text(held[2])] = RawSet(declared, tuple(sorted(elements)))
    chains: dict[str, tuple[bytes, ...]] = {}
    for h in dumped(_GET_CHAIN):
        chains[_text(h[3])] = (h.get(4, b""), h.get(5, b""), h.get(7, b""))
    rules: dict[str, list[list[Expression]]] = {name: [] for name in chains}
    for held in dumped(_GET_RULE):
        expressions = [_expression(each, inner) for _, each in every_attribute(held[4])]
        rules[_text(held[2])].append([each for each in expressions if not _does_nothing(each)])
    return RawTable(sets, chains, rules)


def _expression(packed: bytes, inner: dict[str, RawSet]) -> Expression:
    held = attributes(packed)
    name = _text(held[1])
    found: list[tuple[int, object]] = []
    for kind, value in every_attribute(held.get(2, b"")):
        looked_up = inner.get(_text(value)) if name == "lookup" and kind == 1 else None
        found.append((kind, value if looked_up is None else looked_up))
    return name, tuple(found)


def _does_nothing(expression: Expression) -> bool:
    """Whether it swaps the one byte of a protocol in units of two, as nft 1.0 does for ranges."""
    name, held = expression
    values = dict(held)
    return name == "byteorder" and values[4] == b"\0\0\0\1" and values[5] == b"\0\0\0\2"


def _text(packed: bytes) -> str:
    return packed.rstrip(b"\0").decode("utf-8", "replace")
