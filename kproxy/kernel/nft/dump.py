"""Read a table from the kernel without the program nft: its chains, its maps and sets, and their elements.

For 70,000 elements nft takes five times as long and 200 MB in a separate process; and nft 1.0.6 reads the
elements even to list a table without them.
"""

import contextlib
import errno
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from kproxy.addresses import Family
from kproxy.kernel.netlink.messages import attribute, attributes, every_attribute
from kproxy.kernel.netlink.socket import NetlinkSocket
from kproxy.kernel.nft.decoding import Counts, ElementDecoder, UndecodableError, declaration, text
from kproxy.kernel.nft.expressions import FAMILY_NUMBERS
from kproxy.kernel.nft.listed import digest, hook_line, without_counts
from kproxy.kernel.nft.messages import NFGENMSG, SUBSYSTEM
from kproxy.kernel.nft.types import Reading

_NETLINK_NETFILTER = 12
_GET_TABLE, _GET_CHAIN, _GET_RULE, _GET_SET, _GET_ELEMENTS = 1, 4, 7, 10, 13
_TABLE = 1  # of tables, chains, rules, sets and elements
_TABLE_FLAGS = 2
_DORMANT = 1  # NFT_TABLE_F_DORMANT
_SET = 2  # the name, of sets and of elements
_CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE = 3, 4, 5, 7
_RULE_CHAIN, _RULE_HANDLE, _RULE_EXPRESSIONS, _RULE_COMMENT = 2, 3, 4, 7
_SET_COUNT = 20
_LIST_ELEMENTS = 3
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2
_LOOKUP_SET = 1
_COUNTER, _COUNTER_PACKETS = b"counter\0", 2
_CHAINS_BY_NAME = 16
_AT_ONCE = 500
"""Chains or rules that are decoded before a reading gives way: a few milliseconds."""


def reading(
    family: Family,
    table: str,
    *,
    elements: bool,
    portable: bool = False,
    gives_way: Callable[[], bool] = lambda: False,
) -> Reading | None:
    """Read the table; None if it does not exist. It is not consistent if the table is changed meantime.

    `portable`: see Reading.chains. `gives_way`: asked now and then whether something more urgent waits.
    Raises OSError, GaveWay.
    """
    with _socket(gives_way) as sock:
        try:
            answers = _dump(sock, _GET_SET, _request(family, table))
            declared = [declaration(attributes(answer[NFGENMSG.size :])) for answer in answers]
            named = [each for each in declared if not each.of_rules]
            found: dict[str, dict[str, str]] = {}
            unreadable: dict[str, str] = {}
            for each in named if elements else ():
                if each.of_packets:
                    continue
                try:
                    decoder = ElementDecoder(each)
                    found[each.name] = decoder.texts(_elements(sock, family, table, each.name))
                except UndecodableError as error:
                    unreadable[each.name] = str(error)
            inner = None
            if portable:
                inner = {
                    each.name: b"".join(sorted(_listed(_elements(sock, family, table, each.name))))
                    for each in declared
                    if each.of_rules
                }
            return Reading(
                _chains(sock, family, table, inner),
                frozenset(map(str, named)),
                found if elements else None,
                unreadable,
                any(_is_dormant(held) for held in _of_table(sock, _GET_TABLE, family, table)),
            )
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise


def counts(family: Family, table: str, name: str) -> dict[str, Counts] | None:
    """Read the counters of a map's or set's elements, by key; None if it does not exist.

    Raises UndecodableError, OSError.
    """
    with _socket() as sock:
        try:
            answer = sock.ask(SUBSYSTEM << 8 | _GET_SET, 0, _request(family, table, name))[0]
            declared = declaration(attributes(answer[NFGENMSG.size :]))
            return ElementDecoder(declared).counts(_elements(sock, family, table, name))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise


def rule_counts(
    family: Family, table: str, chains: Collection[str] | None = None
) -> dict[str, tuple[int, ...]] | None:
    """Read the packets that each counter in the rules of a chain has counted; None if there is no table.

    Chains without counters are left out. Few `chains` are asked for one by one. Raises OSError.
    """
    found: dict[str, tuple[int, ...]] = {}
    asked = chains if chains is not None and len(chains) <= _CHAINS_BY_NAME else ("",)
    with _socket() as sock:
        try:
            for held in (rule for chain in asked for rule in _rules_of(sock, family, table, chain)):
                packets = tuple(_packets(held.get(_RULE_EXPRESSIONS, b"")))
                if packets:
                    chain = text(held[_RULE_CHAIN])
                    found[chain] = found.get(chain, ()) + packets
            return found if found or any(_of_table(sock, _GET_TABLE, family, table)) else None
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise


def _rules_of(sock: NetlinkSocket, family: Family, table: str, chain: str) -> Iterator[dict[int, bytes]]:
    """The rules of a chain, none if it does not exist; "": of all chains."""
    if not chain:
        yield from _of_table(sock, _GET_RULE, family, table)
        return
    request = _request(family, table) + attribute(_RULE_CHAIN, chain.encode() + b"\0")
    for answer in _dump(sock, _GET_RULE, request):
        yield attributes(answer[NFGENMSG.size :])


def _packets(expressions: bytes) -> Iterator[int]:
    """The number of packets of each counter of a rule."""
    if _COUNTER not in expressions:
        return
    for _, expression in every_attribute(expressions):
        held = attributes(expression)
        if held[_EXPRESSION_NAME] == _COUNTER:
            yield int.from_bytes(attributes(held[_EXPRESSION_DATA])[_COUNTER_PACKETS], "big")


def sizes(family: Family, table: str, wanted: Callable[[str], bool]) -> dict[str, int]:
    """Count the elements of those maps and sets whose names are `wanted`; none if there is no table.

    Kernels since Linux 6.16 tell the number, otherwise the elements are read. Raises OSError.
    """
    found = {}
    with _socket() as sock:
        try:
            for held in _of_table(sock, _GET_SET, family, table):
                name = text(held[_SET])
                if not wanted(name):
                    continue
                counted = held.get(_SET_COUNT)
                found[name] = (
                    sum(1 for _ in _listed(_elements(sock, family, table, name)))
                    if counted is None
                    else int.from_bytes(counted, "big")
                )
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
    return found


def _elements(sock: NetlinkSocket, family: Family, table: str, name: str) -> Iterator[bytes]:
    for answer in _dump(sock, _GET_ELEMENTS, _request(family, table, name)):
        sock.give_way()
        yield answer[NFGENMSG.size :]


def _dump(sock: NetlinkSocket, kind: int, request: bytes) -> list[bytes]:
    # Not repeated: the kernel says "interrupted" for a change of any table, see kproxy.kernel.nft.events.
    return sock.dump(SUBSYSTEM << 8 | kind, request, repeat=False)


def _listed(messages: Iterable[bytes]) -> Iterator[bytes]:
    """The encoded elements in messages."""
    for message in messages:
        for _, element in every_attribute(attributes(message).get(_LIST_ELEMENTS, b"")):
            yield element


def _chains(
    sock: NetlinkSocket, family: Family, table: str, inner: Mapping[str, bytes] | None
) -> dict[str, tuple[str, ...]]:
    """See Reading.chains; portable if `inner` has the contents of the anonymous sets, by the kernel's names.

    The kernel lists the chains of all tables of a family, but the rules of one.
    """
    lines: dict[str, list[str]] = {}
    for held in _of_table(sock, _GET_CHAIN, family, table):
        lines[text(held[_CHAIN_NAME])] = []
        if hook := held.get(_CHAIN_HOOK):
            line = hook_line(text(held[_CHAIN_TYPE]), hook, held.get(_CHAIN_POLICY, b""))
            lines[text(held[_CHAIN_NAME])].append(line)
    for held in _of_table(sock, _GET_RULE, family, table):
        # An anonymous set cannot change while its rule exists, and handles are not reused.
        content = without_counts(held.get(_RULE_EXPRESSIONS, b""))
        handle = f"{int.from_bytes(held[_RULE_HANDLE], 'big')} "
        if inner is not None:
            content, handle = b"".join(_without_names(content, inner)), ""
        of_rule = digest(content + held.get(_RULE_COMMENT, b""))
        lines[text(held[_RULE_CHAIN])].append(f"{handle}{of_rule}")
    return {name: tuple(rules) for name, rules in lines.items()}


def _without_names(expressions: bytes, inner: Mapping[str, bytes]) -> Iterator[bytes]:
    """A rule's content, with the contents of its anonymous sets in place of their names, which vary."""
    for _, expression in every_attribute(expressions):
        held = attributes(expression)
        yield held[_EXPRESSION_NAME]
        for kind, value in every_attribute(held.get(_EXPRESSION_DATA, b"")):
            yield struct.pack("=H", kind)
            yield inner.get(text(value), value) if kind == _LOOKUP_SET else value


def _of_table(sock: NetlinkSocket, kind: int, family: Family, table: str) -> Iterator[dict[int, bytes]]:
    for number, answer in enumerate(_dump(sock, kind, _request(family, table))):
        if number % _AT_ONCE == 0:
            sock.give_way()
        held = attributes(answer[NFGENMSG.size :])
        if text(held[_TABLE]) == table:
            yield held


def _is_dormant(held: Mapping[int, bytes]) -> bool:
    return bool(int.from_bytes(held.get(_TABLE_FLAGS, b""), "big") & _DORMANT)


def _request(family: Family, table: str, name: str = "") -> bytes:
    body = NFGENMSG.pack(FAMILY_NUMBERS[family], 0, 0) + attribute(_TABLE, table.encode() + b"\0")
    return body + attribute(_SET, name.encode() + b"\0") if name else body


@contextlib.contextmanager
def _socket(gives_way: Callable[[], bool] = lambda: False) -> Iterator[NetlinkSocket]:
    """A socket in the current network namespace of the calling thread."""
    sock = NetlinkSocket(_NETLINK_NETFILTER, gives_way=gives_way)
    try:
        yield sock
    finally:
        sock.close()
