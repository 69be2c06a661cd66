"""Print a rule that was decoded from the kernel as nft would, for the steps of an explanation."""

import socket
import struct
from collections.abc import Iterator, Mapping, Sequence

from kproxy.kernel.nft.operations import (
    Between,
    Bitwise,
    Byteorder,
    Change,
    Compare,
    Constant,
    Foreign,
    HasState,
    HasType,
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
)

_CT_STATES = {1: "invalid", 2: "established", 4: "related", 8: "new", 64: "untracked"}
_XT_STATES = {
    1: "invalid",
    2: "established",
    4: "related",
    8: "new",
    64: "snat",
    128: "dnat",
    256: "untracked",
}
_CT_STATUS = {2: "seen-reply", 4: "assured", 8: "confirmed", 16: "snat", 32: "dnat"}
_FIB_TYPES = {1: "unicast", 2: "local", 3: "broadcast", 5: "multicast"}
_ZEROES = bytes(16)


def describe(rule: Sequence[Operation], keys: Mapping[str, int]) -> str:
    """Return the text of a rule; `keys` are the lengths of the keys of its table's sets, in bytes."""
    return _Printer(keys).text(rule)


class _Printer:
    """Follows the texts of the registers through a rule."""

    def __init__(self, keys: Mapping[str, int]) -> None:
        self._keys = keys
        self._registers: dict[int, tuple[str, int]] = {}

    def text(self, rule: Sequence[Operation]) -> str:
        """See describe."""
        return " ".join(words for operation in _joined(rule) if (words := self._words(operation)))

    def _words(self, operation: Operation) -> str:
        match operation:
            case Load(register, _, length, shown):
                self._registers[register] = shown, length
            case Numgen(register, random, modulus, offset):
                kind = "random" if random else "inc"
                start = f" offset {offset}" if offset else ""
                self._registers[register] = f"numgen {kind} mod {modulus}{start}", 4
            case Constant(register, value):
                self._registers[register] = _plain(value), len(value)
            case Byteorder(source, target):
                self._registers[target] = self._registers.get(source, ("?", 4))
            case Bitwise(source, target, mask, xor):
                self._registers[target] = self._masked(source, mask, xor)
            case Compare(register, operator, value):
                return self._comparison(register, operator, value)
            case Between(register, first, last, inverted):
                what = self._registers.get(register, ("?", 0))[0]
                return f"{what} {'!= ' * inverted}{_value(what, first)}-{_value(what, last)}"
            case Lookup():
                return self._lookup(operation)
            case Verdict(word, chain):
                return f"{word} {chain}".strip()
            case Translate(destination, address, port):
                return f"{'dnat' if destination else 'snat'} to {self._destination(address, port)}"
            case Change(kind, name, source, seconds):
                timeout = f" timeout {seconds}s" if seconds else ""
                return f"{kind} @{name} {{ {self._key(name, source)}{timeout} }}"
            case Store(what, source):
                return f"{what} set {self._registers.get(source, ('?', 0))[0]}"
            case Limit(over, words):
                return f"{words} rate {'over' * over}".rstrip()
            case Masquerade(words) | Note(words) | Foreign(words):
                return words
            case Redirect(port):
                return (
                    "redirect" if port is None else f"redirect to :{self._registers.get(port, ('?', 0))[0]}"
                )
            case Reject():
                return "reject"
            case HasState(states, inverted):
                named = ",".join(word for bit, word in _XT_STATES.items() if states & bit)
                return f"ct state {'!= ' * inverted}{named}"
            case HasType(what, types, inverted):
                named = ",".join(word for number, word in _FIB_TYPES.items() if types & 1 << number)
                return f"fib {what} type {'!= ' * inverted}{named}"
            case Queue(number):
                return f"queue to {number}"
            case Untrack():
                return "notrack"
        return ""

    def _comparison(self, register: int, operator: str, value: bytes) -> str:
        what, length = self._registers.get(register, ("?", 0))
        if what.endswith(" &"):  # bits of a mask, compared with zero or with a value
            name, _, mask = what.removesuffix(" &").rpartition(" & ")
            bits = struct.unpack("=I", bytes.fromhex(mask))[0] if len(mask) == 8 else 0
            named = _CT_STATES if name == "ct state" else _CT_STATUS if name == "ct status" else {}
            if not any(value) and operator == "!=" and named:
                return f"{name} {','.join(word for bit, word in named.items() if bits & bit)}"
            if name[-4:] == "addr" and (prefix := _prefix(bytes.fromhex(mask))) is not None:
                return f"{name} {'' if operator == '==' else operator + ' '}{_address(value)}/{prefix}"
            shown = _plain(value) if any(value) else "0"
            sign = "" if operator == "==" else f"{operator} "
            return f"{name} & {bits:#x} {sign}{shown}"
        sign = "" if operator == "==" else f"{operator} "
        if what[-5:] in {"saddr", "daddr"} and len(value) < (4 if what.startswith("ip ") else 16):
            width = 4 if what.startswith("ip ") else 16
            return f"{what} {sign}{_address(value + _ZEROES[len(value) : width])}/{len(value) * 8}"
        if what in {"iifname", "oifname"}:
            name = value.rstrip(b"\0").decode("utf-8", "replace")
            return f'{what} {sign}"{name}{"" if value.endswith(bytes(1)) else "*"}"'
        if what.startswith("numgen") or what == "meta l4proto" or length == 2:
            return f"{what} {sign}{int.from_bytes(value, 'big')}"
        return f"{what} {sign}{_value(what, value)}"

    def _masked(self, source: int, mask: bytes, xor: bytes) -> tuple[str, int]:
        what, length = self._registers.get(source, ("?", len(mask)))
        if not any(xor):
            return f"{what} & {mask.hex()} &", length
        bits, kept = struct.unpack("=I", xor)[0], struct.unpack("=I", mask)[0]
        if kept == 0xFFFFFFFF:
            return f"{what} ^ {bits:#x}", length
        if kept == 0xFFFFFFFF & ~bits:
            return f"{what} | {bits:#x}", length
        return f"{what} & {kept:#x} ^ {bits:#x}", length

    def _lookup(self, operation: Lookup) -> str:
        key = self._key(operation.name, operation.source)
        name = "{ ... }" if operation.name.startswith("__") else f"@{operation.name}"
        if operation.verdict:
            return f"{key} vmap {name}"
        if operation.target is not None:
            self._registers[operation.target] = f"{key} map {name}", 0
            return ""
        return f"{key} {'!= ' * operation.inverted}{name}"

    def _key(self, name: str, source: int) -> str:
        length = self._keys.get(name, 4)
        texts, at = [], source
        while at < source + (length + 3) // 4:
            what, size = self._registers.get(at, ("?", 4))
            texts.append(what.removesuffix(" &"))
            at += max(1, (size + 3) // 4)
        return " . ".join(texts)

    def _destination(self, address: int | None, port: int | None) -> str:
        to = "" if address is None else self._registers.get(address, ("?", 0))[0]
        if port is None or port not in self._registers or " map " in to:
            return to
        literal = f"[{to}]" if ":" in to else to
        return f"{literal}:{self._registers[port][0]}"


def _joined(rule: Sequence[Operation]) -> Iterator[Operation]:
    """The operations with two comparisons that are a range as one."""
    last: Compare | None = None
    for operation in rule:
        first, last = last, None
        match operation:
            case Compare(register, "<=", value) if first is not None and first.register == register:
                yield Between(register, first.value, value)
                continue
            case Compare(_, ">="):
                last = operation
        if first is not None:
            yield first
        if last is None:
            yield operation
    if last is not None:
        yield last


def _value(what: str, value: bytes) -> str:
    if what[-5:] in {"saddr", "daddr"}:
        return _address(value)
    number = struct.unpack("=I", value)[0] if len(value) == 4 else int.from_bytes(value, "big")
    words = {"fib saddr type": _FIB_TYPES, "fib daddr type": _FIB_TYPES}.get(what, {})
    return words.get(number) or _plain(value)


def _plain(value: bytes) -> str:
    if len(value) == 16 or (len(value) == 4 and not value.endswith(bytes(1))):
        return _address(value)
    if len(value) <= 2:
        return str(int.from_bytes(value, "big"))
    return f"0x{value.hex()}"


def _address(value: bytes) -> str:
    if len(value) == 4:
        return socket.inet_ntop(socket.AF_INET, value)
    return socket.inet_ntop(socket.AF_INET6, value) if len(value) == 16 else f"0x{value.hex()}"


def _prefix(mask: bytes) -> int | None:
    number = int.from_bytes(mask, "big")
    width = len(mask) * 8
    length = number.bit_count()
    return length if number == ((1 << length) - 1) << width - length else None
