"""A transaction as netlink messages, each with the command that it belongs to."""

import itertools
import struct
from collections.abc import Iterator, Sequence

import msgspec

from kproxy.addresses import Family
from kproxy.kernel.netlink.messages import attribute, nested
from kproxy.kernel.nft import elements as e
from kproxy.kernel.nft import expressions as x
from kproxy.kernel.nft.commands import (
    AddChain,
    AddContainer,
    AddElements,
    AddRule,
    AddTable,
    Command,
    DeleteChain,
    DeleteContainer,
    DeleteElements,
    DeleteTable,
    FlushChain,
    Transaction,
    element_text,
)
from kproxy.kernel.nft.declarations import SET_ID, SET_NAME, set_attributes, set_type
from kproxy.kernel.nft.hooks import parse_hook
from kproxy.kernel.nft.rules import InnerSet, compile_rule

SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_NEW_TABLE, _DELETE_TABLE = 0, 2
_NEW_CHAIN, _DELETE_CHAIN = 3, 5
_NEW_RULE, _DELETE_RULE = 6, 8
_NEW_SET, _DELETE_SET = 9, 11
_NEW_ELEMENTS, _DELETE_ELEMENTS = 12, 14
"""enum nf_tables_msg_types."""
_CREATE, _APPEND = 0x400, 0x800  # NLM_F_CREATE, NLM_F_APPEND
_TABLE = 1  # of every kind of object
_TABLE_FLAGS = 2
_CHAIN_NAME, _CHAIN_HOOK, _CHAIN_TYPE = 3, 4, 7
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2
_RULE_CHAIN, _RULE_EXPRESSIONS = 2, 4
NFGENMSG = struct.Struct("!BBH")
_SHOWN = 120  # characters of a command in an error


class Message(msgspec.Struct, frozen=True, gc=False):
    """One message without its header: type, flags, body, and the command that it belongs to.

    `body` begins with the family and the table. `first` is the number of the message's first element in the
    command, and `listed` the offset of the list of elements in the body.
    """

    kind: int
    flags: int
    body: bytes
    command: Command
    first: int = 0
    listed: int = 0

    def describe(self, table: str, offset: int | None) -> str:
        """The command as text, shortened, or its element at an offset of the body."""
        match self.command:
            case AddElements(container=container, elements=elements):
                shown = [element_text(*each) for each in itertools.islice(elements.items(), self.first, None)]
            case DeleteElements(container=container, keys=keys):
                shown = list(keys[self.first :])
            case _:
                return _shortened(self.command.line(table))
        number = None
        if self.listed and offset is not None:
            kind = set_type(self.command.declaration)
            number = e.number_at(self.body[self.listed :], offset - self.listed, kind)
        named = ", ".join(shown) if number is None else shown[min(number, len(shown) - 1)]
        return _shortened(f"element {table} {container} {{ {named} }}")


def _shortened(line: str) -> str:
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."


def encode(transaction: Transaction) -> list[Message]:
    """Encode the commands in order. Raises ValueError for text that cannot be parsed."""
    return list(_Encoder(transaction).messages(transaction.commands))


class _Encoder:
    """Encodes the commands of one transaction; numbers its new sets."""

    def __init__(self, transaction: Transaction) -> None:
        self._family: Family = transaction.family
        self._head = NFGENMSG.pack(x.FAMILY_NUMBERS[transaction.family], 0, 0)
        self._head += x.string(_TABLE, transaction.table)
        self._ids = itertools.count(1)

    def messages(self, commands: Sequence[Command]) -> Iterator[Message]:
        """The messages of commands."""
        for command in commands:
            yield from self._messages(command)

    def _messages(self, command: Command) -> Iterator[Message]:
        match command:
            case AddTable():
                yield self._message(command, _NEW_TABLE, _CREATE, x.number(_TABLE_FLAGS, 0))
            case DeleteTable():
                yield self._message(command, _DELETE_TABLE, 0)
            case AddContainer(name=name, declaration=declaration):
                body = x.string(SET_NAME, name) + x.number(SET_ID, next(self._ids))
                body += set_attributes(declaration)
                yield self._message(command, _NEW_SET, _CREATE, body)
            case DeleteContainer(name=name):
                yield self._message(command, _DELETE_SET, 0, x.string(SET_NAME, name))
            case AddChain(name=name, hook=hook):
                body = x.string(_CHAIN_NAME, name) + (_hook(hook) if hook else b"")
                yield self._message(command, _NEW_CHAIN, _CREATE, body)
            case FlushChain(name=name):
                yield self._message(command, _DELETE_RULE, 0, x.string(_RULE_CHAIN, name))
            case DeleteChain(name=name):
                yield self._message(command, _DELETE_CHAIN, 0, x.string(_CHAIN_NAME, name))
            case AddRule():
                yield from self._rule(command)
            case AddElements(container=container, declaration=declaration):
                encoded = e.encode(set_type(declaration), command.elements)
                yield from self._elements(command, _NEW_ELEMENTS, _CREATE, container, encoded)
            case DeleteElements(container=container, declaration=declaration):
                encoded = e.encode_keys(set_type(declaration), command.keys)
                yield from self._elements(command, _DELETE_ELEMENTS, 0, container, encoded)

    def _message(self, command: Command, kind: int, flags: int, body: bytes = b"") -> Message:
        return Message(kind, flags, self._head + body, command)

    def _rule(self, command: AddRule) -> Iterator[Message]:
        """The rule, after its anonymous sets."""
        rule = compile_rule(self._family, command.rule)
        ids = []
        for inner in rule.sets:
            ids.append(next(self._ids))
            yield from self._inner(command, inner, ids[-1])
        body = x.string(_RULE_CHAIN, command.chain) + nested(_RULE_EXPRESSIONS, rule.with_ids(ids))
        yield self._message(command, _NEW_RULE, _CREATE | _APPEND, body)

    def _inner(self, command: AddRule, inner: InnerSet, number: int) -> Iterator[Message]:
        declared = x.string(SET_NAME, inner.template) + x.number(SET_ID, number) + inner.kind.attributes()
        yield self._message(command, _NEW_SET, _CREATE, declared)
        body = x.string(e.LIST_SET, inner.template) + x.number(e.LIST_SET_ID, number)
        for _, listed in e.chunks(inner.elements):
            yield self._message(command, _NEW_ELEMENTS, _CREATE, body + listed)

    def _elements(
        self, command: Command, kind: int, flags: int, container: str, encoded: Sequence[bytes]
    ) -> Iterator[Message]:
        before = self._head + x.string(e.LIST_SET, container)
        for first, listed in e.chunks(encoded):
            yield Message(kind, flags, before + listed, command, first, len(before))


def _hook(text: str) -> bytes:
    """Encode the hook of a base chain, e.g. `type nat hook output priority -100;`."""
    kind, hook, priority = parse_hook(text)
    place = nested(
        _CHAIN_HOOK, x.number(_HOOK_NUMBER, hook), attribute(_HOOK_PRIORITY, struct.pack("!i", priority))
    )
    return place + x.string(_CHAIN_TYPE, kind)
