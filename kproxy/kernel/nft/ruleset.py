"""Read all tables that the packets of a family pass, for an interpreter.

The rules of a chain are read when a packet enters it, and decoded when it comes to them: of a hundred
thousand, it passes some tens.
"""

import errno
import functools
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import overload

import msgspec

from kproxy.addresses import Family
from kproxy.kernel.netlink.messages import attribute, attributes, every_attribute
from kproxy.kernel.netlink.socket import NetlinkSocket
from kproxy.kernel.nft import xt
from kproxy.kernel.nft.decoding import declaration, text
from kproxy.kernel.nft.expressions import FAMILY_NUMBERS
from kproxy.kernel.nft.held_elements import Elements, SomeElements, as_number
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
_INTERVAL = 0x4
_DESCRIPTION, _DESCRIPTION_FIELDS, _FIELD_LENGTH = 9, 2, 1
_DROP = 0
_HEAD = struct.Struct("=HH")


class PackedRules(Sequence[tuple[Operation, ...]]):
    """The rules of a chain; `load` returns the kernel's answers about them. Raises OSError where it does."""

    def __init__(self, load: Callable[[], Sequence[bytes]]) -> None:
        self._load = load

    @functools.cached_property
    def _packed(self) -> Sequence[bytes]:
        return self._load()

    @property
    def mixed(self) -> bool:
        """Whether iptables-nft would not write some of them so."""
        return any(_NOT_OF_IPTABLES.search(each, _chain_of(each)[1]) for each in self._packed)

    def __len__(self) -> int:
        return len(self._packed)

    @overload
    def __getitem__(self, index: int) -> tuple[Operation, ...]: ...

    @overload
    def __getitem__(self, index: slice) -> "PackedRules": ...

    def __getitem__(self, index: int | slice) -> "tuple[Operation, ...] | PackedRules":
        if isinstance(index, slice):
            chosen = self._packed[index]
            return PackedRules(lambda: chosen)
        return _rule(attributes(self._packed[index][NFGENMSG.size :]).get(_RULE_EXPRESSIONS, b""))

    @functools.cached_property
    def handles(self) -> tuple[int, ...]:
        """The handle of each rule."""
        return tuple(as_number(attributes(each[NFGENMSG.size :]).get(_RULE_HANDLE)) for each in self._packed)


class Chain(msgspec.Struct, frozen=True):
    """A chain and its rules.

    A base chain has a hook (enum nf_inet_hooks), a priority, a type and a policy.
    """

    name: str
    rules: Sequence[tuple[Operation, ...]] = ()
    hook: int | None = None
    priority: int = 0
    kind: str = ""
    drops: bool = False

    @property
    def handles(self) -> tuple[int, ...]:
        """The handle of each rule; none in a dump."""
        return self.rules.handles if isinstance(self.rules, PackedRules) else ()

    @property
    def mixed(self) -> bool:
        """Whether iptables-nft would not write some of the rules so; False in a dump."""
        return isinstance(self.rules, PackedRules) and self.rules.mixed


class Table(msgspec.Struct, frozen=True):
    """A table; `family` is nft's word, `ip`, `ip6` or `inet`."""

    family: str
    name: str
    chains: Mapping[str, Chain] = {}
    sets: Mapping[str, SomeElements] = {}

    def __str__(self) -> str:
        return f"{self.family} {self.name}"


def read(family: Family) -> tuple[Table, ...]:
    """Every table that IP packets of a family pass; none if the kernel has no nftables. Raises OSError.

    The rules are read later, in the same network namespace, by the thread that asks for them.
    """
    sock = NetlinkSocket(_NETLINK_NETFILTER)
    found = []
    for word, number in (
        ("ip" if family is Family.IPV4 else "ip6", FAMILY_NUMBERS[family]),
        ("inet", _INET),
    ):
        found += [_table(sock, word, number, name) for name in _names(sock, number)]
    return tuple(found)


def _names(sock: NetlinkSocket, number: int) -> list[str]:
    try:
        answers = _dump(sock, _GET_TABLE, number)
    except OSError as error:
        if error.errno in {errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT}:
            return []
        raise
    return [text(held[_TABLE]) for held in answers if not as_number(held.get(_TABLE_FLAGS)) & _DORMANT]


def _table(sock: NetlinkSocket, word: str, number: int, name: str) -> Table:
    sets = {}
    for held in _dump(sock, _GET_SET, number, name):
        declared = declaration(held)
        lists = tuple(_elements(sock, number, name, declared.name))
        fields = _field_lengths(held)
        intervals = bool(declared.flags & _INTERVAL) and not fields
        sets[declared.name] = Elements(declared.name, declared.key_length, lists, intervals, fields)
    chains = {}
    for held in _dump(sock, _GET_CHAIN, number, name):
        if text(held[_TABLE]) == name:
            of = text(held[_CHAIN_NAME])
            chains[of] = _chain(held, PackedRules(functools.partial(_rules, sock, number, name, of)))
    return Table(word, name, chains, sets)


def _rules(sock: NetlinkSocket, number: int, table: str, chain: str) -> list[bytes]:
    """The kernel's answers about the rules of a chain; none if it is gone."""
    try:
        answers = _answers(sock, _GET_RULE, number, table, attribute(_RULE_CHAIN, chain.encode() + b"\0"))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return []
        raise
    return [answer for answer in answers if _chain_of(answer)[0] == chain]


def _field_lengths(held: Mapping[int, bytes]) -> tuple[int, ...]:
    """The lengths of the fields of a concatenation with ranges; only these have them."""
    concatenation = attributes(attributes(held.get(_DESCRIPTION, b"")).get(_DESCRIPTION_FIELDS, b""))
    if not concatenation:
        return ()
    listed = every_attribute(attributes(held[_DESCRIPTION])[_DESCRIPTION_FIELDS])
    return tuple(as_number(attributes(field).get(_FIELD_LENGTH)) for _, field in listed)


def _chain(held: Mapping[int, bytes], rules: PackedRules) -> Chain:
    name = text(held[_CHAIN_NAME])
    if _CHAIN_HOOK not in held:
        return Chain(name, rules)
    hook = attributes(held[_CHAIN_HOOK])
    return Chain(
        name,
        rules,
        as_number(hook[_HOOK_NUMBER]),
        int.from_bytes(hook[_HOOK_PRIORITY], "big", signed=True),
        text(held.get(_CHAIN_TYPE, b"")),
        _CHAIN_POLICY in held and as_number(held[_CHAIN_POLICY]) == _DROP,
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


def _answers(sock: NetlinkSocket, kind: int, number: int, table: str, within: bytes = b"") -> list[bytes]:
    request = NFGENMSG.pack(number, 0, 0)
    if table:
        request += attribute(_TABLE, table.encode() + b"\0") + within
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
