"""A rule of the kernel as operations on registers: what an interpreter runs, and what nft would print.

Names and layouts are those of the kernel's include/uapi/linux/netfilter/nf_tables.h. Registers are counted in
words of four bytes. An expression that is not known here becomes Foreign, with its name.
"""

from collections.abc import Callable, Mapping

import msgspec

from kproxy.kernel.netlink.messages import attributes, every_attribute
from kproxy.kernel.nft.decoding import text
from kproxy.kernel.nft.expressions import VERDICTS

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
OPERATORS = {0: "==", 1: "!=", 2: "<", 3: "<=", 4: ">", 5: ">="}
"""enum nft_cmp_ops."""
_FIB_FLAGS = {1: "saddr", 2: "daddr", 4: "mark", 8: "iif", 16: "oif"}
_FIB_RESULTS = {1: "oif", 2: "oifname", 3: "type"}
_DYNAMIC = {0: "add", 1: "update", 2: "delete"}


class Load(msgspec.Struct, frozen=True):
    """Load `length` bytes of something, in nft's words, or `@HEADER OFFSET`; "" is not known."""

    register: int
    what: str
    length: int
    shown: str = ""


class Numgen(msgspec.Struct, frozen=True):
    """Load a number from `offset` to `offset` + `modulus` - 1, by chance or in turn."""

    register: int
    random: bool
    modulus: int
    offset: int


class Constant(msgspec.Struct, frozen=True):
    """Load a constant."""

    register: int
    value: bytes


class Verdict(msgspec.Struct, frozen=True):
    """End the rule with a verdict."""

    word: str
    chain: str = ""


class Compare(msgspec.Struct, frozen=True):
    """Go on if the comparison of a register with a value is true."""

    register: int
    operator: str
    value: bytes


class Between(msgspec.Struct, frozen=True):
    """Go on if a register is in (or, `inverted`, out of) a range."""

    register: int
    first: bytes
    last: bytes
    inverted: bool = False


class Bitwise(msgspec.Struct, frozen=True):
    """Load (value & mask) ^ xor."""

    source: int
    target: int
    mask: bytes
    xor: bytes


class Byteorder(msgspec.Struct, frozen=True):
    """Swap the bytes of each word of `size` bytes, as every little-endian machine does."""

    source: int
    target: int
    length: int
    size: int


class Lookup(msgspec.Struct, frozen=True):
    """Look up a key: go on if the set has it, load its value into `target`, or apply its `verdict`."""

    name: str
    source: int
    target: int | None = None
    verdict: bool = False
    inverted: bool = False


class Translate(msgspec.Struct, frozen=True):
    """Translate the destination or the source to the address and port in registers, if any."""

    destination: bool
    address: int | None
    port: int | None
    length: int = 4


class Masquerade(msgspec.Struct, frozen=True):
    """Translate the source to an address of the outgoing device."""

    words: str = "masquerade"


class Redirect(msgspec.Struct, frozen=True):
    """Translate the destination to the node itself."""

    port: int | None = None


class Reject(msgspec.Struct, frozen=True):
    """Refuse the packet with an error."""


class Change(msgspec.Struct, frozen=True):
    """Add, update or delete an element of a set; `limited`: it goes on only if expressions of it match."""

    operation: str
    name: str
    source: int
    seconds: int = 0
    limited: bool = False


class Store(msgspec.Struct, frozen=True):
    """Set metadata of the packet or its connection, in nft's words."""

    what: str
    source: int


class Limit(msgspec.Struct, frozen=True):
    """Go on below a rate, or above it if `over`."""

    over: bool
    words: str = "limit"


class Note(msgspec.Struct, frozen=True):
    """Something that never changes the packet's way: a counter, a log line."""

    words: str


class Untrack(msgspec.Struct, frozen=True):
    """Take the packet out of connection tracking."""


class HasState(msgspec.Struct, frozen=True):
    """Go on if the connection has one of these states, in the bits of iptables (XT_CONNTRACK_STATE_BIT)."""

    states: int
    inverted: bool = False


class HasType(msgspec.Struct, frozen=True):
    """Go on if an address, `saddr` or `daddr`, is of one of these types, a bit for each RTN_*."""

    what: str
    types: int
    inverted: bool = False


class Foreign(msgspec.Struct, frozen=True):
    """An expression that is not modelled."""

    words: str


Operation = (
    Load
    | Numgen
    | Constant
    | Verdict
    | Compare
    | Between
    | Bitwise
    | Byteorder
    | Lookup
    | Translate
    | Masquerade
    | Redirect
    | Reject
    | Change
    | Store
    | Limit
    | Note
    | Untrack
    | HasState
    | HasType
    | Foreign
)


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
    "counter": lambda _: Note("counter"),
    "log": lambda _: Note("log"),
    "last": lambda _: Note("last"),
    "notrack": lambda _: Untrack(),
    "objref": _objref,
}
