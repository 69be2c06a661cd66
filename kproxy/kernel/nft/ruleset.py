"""Read all tables that the packets of a family pass, with every rule and element, for an interpreter.

Elements stay as the kernel sent them: of a hundred thousand, a packet needs a handful, which are found in the
bytes without decoding the others.
"""

import errno
import functools
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, overload

import msgspec

from kproxy.addresses import Family
from kproxy.kernel.netlink.messages import attribute, attributes, every_attribute
from kproxy.kernel.netlink.socket import NetlinkSocket
from kproxy.kernel.nft import xt
from kproxy.kernel.nft.decoding import declaration, text
from kproxy.kernel.nft.expressions import FAMILY_NUMBERS, VERDICTS
from kproxy.kernel.nft.messages import NFGENMSG, SUBSYSTEM
from kproxy.kernel.nft.operations import Operation
from kproxy.kernel.nft.rule_decoding import operation

_NETLINK_NETFILTER = 12
_INET = 1  # NFPROTO_INET
_GET_TABLE, _GET_CHAIN, _GET_RULE, _GET_SET, _GET_ELEMENTS = 1, 4, 7, 10, 13
_TABLE, _TABLE_FLAGS, _DORMANT = 1, 2, 1
_SET = 2
_CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE = 3, 4, 5, 7
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2
_RULE_CHAIN, _RULE_HANDLE, _RULE_EXPRESSIONS = 2, 3, 4
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2
_XT_NAME, _XT_INFO = 1, 3
_OF_IPTABLES = {"match": xt.match, "target": xt.target}
_NOT_OF_IPTABLES = re.compile(
    rb"\x01\0(?:lookup|ct|fib|numgen|nat|masq|redir|reject|dynset|objref|quota|notrack|hash|exthdr|connlimit"
    rb"|socket|byteorder|rt|osf|queue|tproxy)\0"
)
"""Names of expressions that iptables-nft does not write; it prints rules with them as if they had none."""
_LIST_ELEMENTS = 3
_KEY, _DATA, _FLAGS, _KEY_END = 1, 2, 3, 10
_VALUE, _VERDICT, _VERDICT_CODE, _VERDICT_CHAIN = 1, 2, 1, 2
_INTERVAL = 0x4
_DESCRIPTION, _DESCRIPTION_FIELDS, _FIELD_LENGTH = 9, 2, 1
_END = 1  # NFT_SET_ELEM_INTERVAL_END
_CATCH_ALL = 2  # NFT_SET_ELEM_CATCHALL
_DROP = 0
_WORDS = {code: word for word, code in VERDICTS.items()}
_HEAD = struct.Struct("=HH")
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
            starts = not _number(held.get(_FLAGS)) & _END
            if bound <= key and (best is None or (bound, starts) > best):
                best = bound, starts
                found = _value(held) if starts else None
        return found

    def _every(self, *, catch_all: bool = False) -> Iterator[tuple[bytes, bytes, Element]]:
        for held in self._held():
            if catch_all and not _number(held.get(_FLAGS)) & _CATCH_ALL:
                continue
            first = attributes(held.get(_KEY, b"")).get(_VALUE, b"")
            last = attributes(held.get(_KEY_END, b"")).get(_VALUE, first)
            yield first, last, _value(held)

    def _held(self) -> Iterator[Mapping[int, bytes]]:
        for listed in self.lists:
            for _, element in every_attribute(listed):
                yield attributes(element)


class SomeElements(Protocol):
    """The elements of a map or set."""

    @property
    def key_length(self) -> int:
        """The length of a key in bytes."""

    def find(self, key: bytes) -> Element | None:
        """The value of a key; None if the map or set does not have it."""


class PackedRules(Sequence[tuple[Operation, ...]]):
    """The kernel's answers about rules, each decoded when it is asked for: of a hundred thousand, few are."""

    def __init__(self, packed: Sequence[bytes]) -> None:
        self._packed = packed

    def __len__(self) -> int:
        return len(self._packed)

    @overload
    def __getitem__(self, index: int) -> tuple[Operation, ...]: ...

    @overload
    def __getitem__(self, index: slice) -> "PackedRules": ...

    def __getitem__(self, index: int | slice) -> "tuple[Operation, ...] | PackedRules":
        if isinstance(index, slice):
            return PackedRules(self._packed[index])
        return _rule(attributes(self._packed[index][NFGENMSG.size :]).get(_RULE_EXPRESSIONS, b""))

    def handles(self) -> tuple[int, ...]:
        """The handle of each rule."""
        return tuple(_number(attributes(each[NFGENMSG.size :]).get(_RULE_HANDLE)) for each in self._packed)


class Chain(msgspec.Struct, frozen=True):
    """A chain and its rules; `mixed`: iptables-nft would not write some of them so.

    A base chain has a hook (enum nf_inet_hooks), a priority, a type and a policy.
    """

    name: str
    rules: Sequence[tuple[Operation, ...]] = ()
    mixed: bool = False
    hook: int | None = None
    priority: int = 0
    kind: str = ""
    drops: bool = False

    @property
    def handles(self) -> tuple[int, ...]:
        """The handle of each rule; none in a dump."""
        return self.rules.handles() if isinstance(self.rules, PackedRules) else ()


class Table(msgspec.Struct, frozen=True):
    """A table; `family` is nft's word, `ip`, `ip6` or `inet`."""

    family: str
    name: str
    chains: Mapping[str, Chain] = {}
    sets: Mapping[str, SomeElements] = {}

    def __str__(self) -> str:
        return f"{self.family} {self.name}"


def read(family: Family) -> tuple[Table, ...]:
    """Every table that IP packets of a family pass; none if the kernel has no nftables. Raises OSError."""
    sock = NetlinkSocket(_NETLINK_NETFILTER)
    try:
        found = []
        for word, number in (
            ("ip" if family is Family.IPV4 else "ip6", FAMILY_NUMBERS[family]),
            ("inet", _INET),
        ):
            found += [_table(sock, word, number, name) for name in _names(sock, number)]
        return tuple(found)
    finally:
        sock.close()


def _names(sock: NetlinkSocket, number: int) -> list[str]:
    try:
        answers = _dump(sock, _GET_TABLE, number)
    except OSError as error:
        if error.errno in {errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT}:
            return []
        raise
    return [text(held[_TABLE]) for held in answers if not _number(held.get(_TABLE_FLAGS)) & _DORMANT]


def _table(sock: NetlinkSocket, word: str, number: int, name: str) -> Table:
    sets = {}
    for held in _dump(sock, _GET_SET, number, name):
        declared = declaration(held)
        lists = tuple(_elements(sock, number, name, declared.name))
        fields = _field_lengths(held)
        intervals = bool(declared.flags & _INTERVAL) and not fields
        sets[declared.name] = Elements(declared.name, declared.key_length, lists, intervals, fields)
    rules: dict[str, list[bytes]] = {}
    mixed: set[str] = set()
    for answer in _answers(sock, _GET_RULE, number, name):
        of, rest = _chain_of(answer)
        rules.setdefault(of, []).append(answer)
        if of not in mixed and _NOT_OF_IPTABLES.search(answer, rest):
            mixed.add(of)
    chains = {}
    for held in _dump(sock, _GET_CHAIN, number, name):
        if text(held[_TABLE]) == name:
            of = text(held[_CHAIN_NAME])
            chains[of] = _chain(held, PackedRules(rules.get(of, ())), mixed=of in mixed)
    return Table(word, name, chains, sets)


def _field_lengths(held: Mapping[int, bytes]) -> tuple[int, ...]:
    """The lengths of the fields of a concatenation with ranges; only these have them."""
    concatenation = attributes(attributes(held.get(_DESCRIPTION, b"")).get(_DESCRIPTION_FIELDS, b""))
    if not concatenation:
        return ()
    listed = every_attribute(attributes(held[_DESCRIPTION])[_DESCRIPTION_FIELDS])
    return tuple(_number(attributes(field).get(_FIELD_LENGTH)) for _, field in listed)


def _chain(held: Mapping[int, bytes], rules: Sequence[tuple[Operation, ...]], *, mixed: bool) -> Chain:
    name = text(held[_CHAIN_NAME])
    if _CHAIN_HOOK not in held:
        return Chain(name, rules, mixed)
    hook = attributes(held[_CHAIN_HOOK])
    return Chain(
        name,
        rules,
        mixed,
        _number(hook[_HOOK_NUMBER]),
        int.from_bytes(hook[_HOOK_PRIORITY], "big", signed=True),
        text(held.get(_CHAIN_TYPE, b"")),
        _CHAIN_POLICY in held and _number(held[_CHAIN_POLICY]) == _DROP,
    )


@functools.lru_cache(maxsize=4096)
def _rule(packed: bytes) -> tuple[Operation, ...]:
    found: tuple[Operation, ...] = ()
    for _, expression in every_attribute(packed):
        held = attributes(expression)
        name, data = text(held[_EXPRESSION_NAME]), attributes(held.get(_EXPRESSION_DATA, b""))
        if name in _OF_IPTABLES:
            found += _OF_IPTABLES[name](text(data.get(_XT_NAME, b"")), data.get(_XT_INFO, b""))
        else:
            found += (operation(held),)
    return found


def _elements(sock: NetlinkSocket, number: int, table: str, name: str) -> Iterator[bytes]:
    request = NFGENMSG.pack(number, 0, 0) + attribute(_TABLE, table.encode() + b"\0")
    request += attribute(_SET, name.encode() + b"\0")
    try:
        answers = sock.dump(SUBSYSTEM << 8 | _GET_ELEMENTS, request, repeat=False)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return
        raise
    for answer in answers:
        if listed := attributes(answer[NFGENMSG.size :]).get(_LIST_ELEMENTS):
            yield listed


def _dump(sock: NetlinkSocket, kind: int, number: int, table: str = "") -> list[dict[int, bytes]]:
    return [attributes(answer[NFGENMSG.size :]) for answer in _answers(sock, kind, number, table)]


def _answers(sock: NetlinkSocket, kind: int, number: int, table: str) -> list[bytes]:
    request = NFGENMSG.pack(number, 0, 0)
    if table:
        request += attribute(_TABLE, table.encode() + b"\0")
    return sock.dump(SUBSYSTEM << 8 | kind, request, repeat=False)


def _chain_of(answer: bytes) -> tuple[str, int]:
    """The chain of a rule and the offset of what follows.

    The kernel puts it second, after the table (nf_tables_fill_rule_info in nf_tables_api.c).
    """
    at = NFGENMSG.size
    at += (_HEAD.unpack_from(answer, at)[0] + 3) & ~3
    length, kind = _HEAD.unpack_from(answer, at)
    if kind == _RULE_CHAIN:
        return text(answer[at + _HEAD.size : at + length]), at + length
    return text(attributes(answer[NFGENMSG.size :])[_RULE_CHAIN]), at


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


def _number(packed: bytes | None) -> int:
    return int.from_bytes(packed or b"", "big")
