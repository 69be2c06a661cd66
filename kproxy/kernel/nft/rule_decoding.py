"""Decode the expressions of a rule in the kernel to operations (operations.py).

Numbers are those of the kernel's include/uapi/linux/netfilter/nf_tables.h.
"""

from collections.abc import Callable, Mapping

from kproxy.kernel.netlink.messages import attributes, every_attribute
from kproxy.kernel.nft.decoding import text
from kproxy.kernel.nft.expressions import VERDICTS
from kproxy.kernel.nft.operations import (
    OPERATORS,
    Between,
    Bitwise,
    Byteorder,
    Change,
    Compare,
    Constant,
    Foreign,
    Limit,
    Load,
    Lookup,
    Masquerade,
    Note,
    Numgen,
    Operation,
    Queue,
    Redirect,
    Reject,
    Store,
    Translate,
    Untrack,
    Verdict,
    log_words,
)

_NAME, _DATA = 1, 2
_DATA_VALUE, _DATA_VERDICT = 1, 2
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_FIRST = 8  # NFT_REG32_00
_WORDS = {code: word for word, code in VERDICTS.items()}
_LINK, _NETWORK, _TRANSPORT = 0, 1, 2
_PAYLOADS = {
    (_NETWORK, 12, 4): "ip saddr",
    (_NETWORK, 16, 4): "ip daddr",
    (_NETWORK, 8, 16): "ip6 saddr",
    (_NETWORK, 24, 16): "ip6 daddr",
    (_NETWORK, 9, 1): "ip protocol",
    (_NETWORK, 6, 1): "ip6 nexthdr",
    (_NETWORK, 7, 1): "ip6 hoplimit",
    (_TRANSPORT, 0, 2): "th sport",
    (_TRANSPORT, 2, 2): "th dport",
}
_PARTS = {
    (base, offset): (size, what) for (base, offset, size), what in _PAYLOADS.items() if what[-4:] == "addr"
}
"""Prefixes of whole bytes are compared without a mask."""
_META = {
    1: "meta protocol",
    3: "meta mark",
    4: "iif",
    5: "oif",
    6: "iifname",
    7: "oifname",
    2: "meta priority",
    10: "meta skuid",
    11: "meta skgid",
    15: "meta nfproto",
    16: "meta l4proto",
    19: "meta pkttype",
    12: "meta nftrace",
}
_CT = {0: "ct state", 1: "ct direction", 2: "ct status", 3: "ct mark"}
_FIB_FLAGS = {1: "saddr", 2: "daddr", 4: "mark", 8: "iif", 16: "oif"}
_FIB_RESULTS = {1: "oif", 2: "oifname", 3: "type"}
_DYNAMIC = {0: "add", 1: "update", 2: "delete"}


def operations(packed: bytes) -> tuple[Operation, ...]:
    """Decode a rule's expressions, except matches and targets of iptables."""
    return tuple(operation(attributes(expression)) for _, expression in every_attribute(packed))


def operation(held: Mapping[int, bytes]) -> Operation:
    """Decode an expression from its attributes."""
    name, data = text(held[_NAME]), attributes(held.get(_DATA, b""))
    decode = _DECODERS.get(name)
    try:
        found = decode(data) if decode is not None else None
    except KeyError:
        found = None
    if found is not None:
        return found
    return Foreign(name)


def _number(packed: bytes | None) -> int:
    return int.from_bytes(packed or b"", "big")


def _register(packed: bytes) -> int:
    """A register in words; the first four numbers are those of sixteen bytes, 0 is the verdict."""
    number = _number(packed)
    return number - _FIRST if number >= _FIRST else (number - 1) * 4


def _optional(packed: bytes | None) -> int | None:
    return None if packed is None else _register(packed)


def _data(packed: bytes) -> bytes:
    return attributes(packed)[_DATA_VALUE]


def _payload(data: Mapping[int, bytes]) -> Operation | None:
    if 1 not in data:
        return None  # writes to the packet
    place = _number(data[2]), _number(data[3]), _number(data[4])
    base, offset, length = place
    what = _PAYLOADS.get(place) or _parts(base, offset, length)
    header = ("ll", "nh", "th", "ih")[min(base, 3)]
    shown = what or f"@{header},{offset * 8},{length * 8}"
    return Load(_register(data[1]), what or f"@{header} {offset}", length, shown)


def _parts(base: int, offset: int, length: int) -> str:
    """The address whose first bytes are loaded, "" for none."""
    size, what = _PARTS.get((base, offset), (0, ""))
    return what if length <= size else ""


def _loaded(words: Mapping[int, str], key: int, word: str) -> tuple[str, str]:
    return words.get(key, ""), words.get(key, f"{word} {key}")


def _meta(data: Mapping[int, bytes]) -> Operation:
    what, shown = _loaded(_META, _number(data[2]), "meta")
    if 3 in data:
        return Store(shown, _register(data[3]))
    return Load(_register(data[1]), what, 16 if what in {"iifname", "oifname"} else 4, shown)


def _ct(data: Mapping[int, bytes]) -> Operation:
    what, shown = _loaded(_CT, _number(data[2]), "ct")
    if 4 in data:
        return Store(shown, _register(data[4]))
    return Load(_register(data[1]), what, 4, shown)


def _fib(data: Mapping[int, bytes]) -> Operation:
    flags = _number(data.get(3))
    shown = " . ".join(word for bit, word in _FIB_FLAGS.items() if flags & bit)
    shown = f"fib {shown} {_FIB_RESULTS[_number(data[2])]}"
    return Load(_register(data[1]), shown, 4, shown)


def _numgen(data: Mapping[int, bytes]) -> Operation:
    return Numgen(_register(data[1]), _number(data[3]) == 1, _number(data[2]), _number(data.get(4)))


def _immediate(data: Mapping[int, bytes]) -> Operation:
    held = attributes(data[2])
    if _DATA_VERDICT not in held:
        return Constant(_register(data[1]), held[_DATA_VALUE])
    verdict = attributes(held[_DATA_VERDICT])
    code = int.from_bytes(verdict[_VERDICT_CODE], "big", signed=True)
    return Verdict(_WORDS.get(code, f"verdict {code}"), text(verdict.get(_VERDICT_CHAIN, b"")))


def _compare(data: Mapping[int, bytes]) -> Operation:
    return Compare(_register(data[1]), OPERATORS[_number(data[2])], _data(data[3]))


def _range(data: Mapping[int, bytes]) -> Operation:
    return Between(_register(data[1]), _data(data[3]), _data(data[4]), inverted=_number(data[2]) == 1)


def _bitwise(data: Mapping[int, bytes]) -> Operation | None:
    if _number(data.get(6)):
        return None  # a shift, or an operation with a register
    return Bitwise(_register(data[1]), _register(data[2]), _data(data[4]), _data(data[5]))


def _byteorder(data: Mapping[int, bytes]) -> Operation:
    return Byteorder(_register(data[1]), _register(data[2]), _number(data[4]), _number(data[5]))


def _lookup(data: Mapping[int, bytes]) -> Operation:
    target = data.get(3)
    verdict = target is not None and not _number(target)
    inverted = bool(_number(data.get(5)) & 1)
    return Lookup(
        text(data[1]), _register(data[2]), None if verdict else _optional(target), verdict, inverted
    )


def _nat(data: Mapping[int, bytes]) -> Operation | None:
    last, flags = data.get(4), _number(data.get(7))
    if (last is not None and last != data.get(3)) or (6 in data and data[6] != data.get(5)) or flags & 0x80:
        return None  # a range, or a whole network
    length = 16 if _number(data[2]) == 10 else 4
    return Translate(_number(data[1]) == 1, _optional(data.get(3)), _optional(data.get(5)), length)


def _dynset(data: Mapping[int, bytes]) -> Operation:
    return Change(
        _DYNAMIC[_number(data[3])],
        text(data[1]),
        _register(data[4]),
        _number(data.get(6)) // 1000,
        limited=7 in data or 10 in data or 5 in data,
    )


def _masquerade(data: Mapping[int, bytes]) -> Operation:
    words = "masquerade fully-random" if _number(data.get(1)) & 0x10 else "masquerade"
    return Masquerade(words)


def _objref(data: Mapping[int, bytes]) -> Operation | None:
    return Note("counter name") if _number(data.get(1)) == 1 else None


def _log(data: Mapping[int, bytes]) -> Operation:
    prefix, group = data.get(2), data.get(1)
    return Note(
        log_words(None if prefix is None else text(prefix), None if group is None else _number(group))
    )


_DECODERS: Mapping[str, Callable[[Mapping[int, bytes]], Operation | None]] = {
    "payload": _payload,
    "meta": _meta,
    "ct": _ct,
    "fib": _fib,
    "numgen": _numgen,
    "immediate": _immediate,
    "cmp": _compare,
    "range": _range,
    "bitwise": _bitwise,
    "byteorder": _byteorder,
    "lookup": _lookup,
    "nat": _nat,
    "masq": _masquerade,
    "redir": lambda data: Redirect(_optional(data.get(1))),
    "reject": lambda _: Reject(),
    "dynset": _dynset,
    "limit": lambda data: Limit(over=bool(_number(data.get(5)) & 1)),
    "queue": lambda data: Queue(_number(data[1])),
    "counter": lambda _: Note("counter"),
    "log": _log,
    "last": lambda _: Note("last"),
    "notrack": lambda _: Untrack(),
    "objref": _objref,
}
