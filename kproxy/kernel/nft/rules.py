"""Compile rules from nft's language, as far as kproxy's renderer uses it, to the kernel's expressions.

The result is the same as that of nft 1.0.6; a test compares both in the kernel. The kernel names anonymous
sets when they are made, so a compiled rule is bytes with placeholders for the ids of its sets.
"""

import functools
import re
import struct
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from kproxy.addresses import Family
from kproxy.kernel.nft import expressions as x
from kproxy.kernel.nft.declarations import ANONYMOUS, CONSTANT, INTERVAL, SetType
from kproxy.kernel.nft.elements import encode, encode_keys, encode_ranges
from kproxy.kernel.nft.fields import IPV4, IPV6, PORT, Field, bounds, host_word, merged, network
from kproxy.kernel.nft.selectors import SELECTOR, Selector, address_family, selector, typeof

_MASK = 0xFFFFFFFF
_CT_BITS = {
    ("ct state", "established"): 2,
    ("ct state", "related"): 4,
    ("ct state", "new"): 8,
    ("ct status", "dnat"): 1 << 5,
}
"""NF_CT_STATE_BIT of the states, and IPS_DST_NAT."""
_LOCAL = 2  # RTN_LOCAL
_REGISTER = 4
"""Size, in words, of an older register of sixteen bytes; a constant address and port use one each."""
_OPERATIONS = {"update": x.UPDATE, "delete": x.DELETE}

_PLAIN = re.compile(
    r"(?:(?:meta l4proto|th dport) [\d-]+|ip6? [sd]addr (?:!= |vmap )?@\S+"
    r"|accept|drop|return|counter|(?:goto|jump) \S+)(?= |$)"
)
"""Statements that thousands of rules have in common."""

_DOT = re.compile(r" \. ")
_SPACE = re.compile(r" ")
_VERDICT = re.compile(r"(drop|accept|return|continue)|(goto|jump) (\S+)")
_REJECT = re.compile(r"reject")
_COUNTER = re.compile(r"counter")
_LIMIT = re.compile(r"limit rate (\d+)/second burst (\d+) packets")
_LOG = re.compile(r'log prefix "([^"]{1,127})" group (\d+)')
_QUEUE = re.compile(r"(queue|NFQUEUE) num (\d+)")
_RANGE = re.compile(r"(\d+)-(\d+)")
_MASQUERADE = re.compile(r"masquerade( fully-random)?")
_SET_MARK = re.compile(r"meta mark set meta mark ([|^]) (0x[0-9a-f]+)")
_CHANGE = re.compile(r"(update|delete) @(\S+) \{ ")
_CHANGE_END = re.compile(r"(?: timeout (\d+)s)? \}")
_DNAT = re.compile(r"dnat (ip6?) to ")
_MAP = re.compile(r" map (?:@(\S+)|\{ ([^}]*) \})")
_VMAP = re.compile(r" vmap @(\S+)")
_IN_SET = re.compile(r" (!= )?@(\S+)")
_AMONG = re.compile(r" \{ ([^}]*) \}")
_MASKED = re.compile(r" & (0x[0-9a-f]+) != 0")
_VALUE = re.compile(r' (!= |< )?("[^"]*"|\S+)')
_WORD = re.compile(r"\S+")


class _Lookup(Protocol):
    """An expression that looks up a set by name, or an inner one by name and id."""

    def __call__(self, name: str, *, inner: bool = False) -> bytes: ...


class InnerSet(msgspec.Struct, frozen=True):
    """An anonymous set or map of a rule: its type, and its elements as elements.py encodes them."""

    kind: SetType
    elements: tuple[bytes, ...]

    @property
    def template(self) -> str:
        """The name pattern from which the kernel makes a free name."""
        return "__set%d" if self.kind.data is None else "__map%d"


class Rule(msgspec.Struct, frozen=True):
    """A rule's expressions, in parts; the ids of its anonymous sets are inserted between them.

    `statements`: the same by statement, if there are no sets.
    """

    expressions: tuple[bytes, ...]
    sets: tuple[InnerSet, ...] = ()
    statements: tuple[bytes, ...] = ()

    def with_ids(self, ids: Sequence[int]) -> bytes:
        """The expressions with the ids of the rule's sets."""
        parts = [self.expressions[0]]
        for number, rest in zip(ids, self.expressions[1:], strict=True):
            parts += [struct.pack("!I", number), rest]
        return b"".join(parts)


@functools.lru_cache(maxsize=1024)
def compile_rule(family: Family, text: str) -> Rule:
    """Compile a rule of a table of this family. Raises ValueError for syntax that kproxy does not use."""
    try:
        return _Compiler(family, text).rule()
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(f"cannot compile the rule {text!r}: {error}") from error


@functools.lru_cache(maxsize=4096)
def _statement(family: Family, text: str) -> bytes:
    """A statement that is the same in every rule."""
    return _Compiler(family, text).alone()


class _Compiler:
    """Parses one rule from left to right."""

    def __init__(self, family: Family, text: str) -> None:
        self._family = family
        self._text = text
        self._at = 0
        self._found: list[bytes] = []
        self._before: list[bytes] = []
        self._sets: list[InnerSet] = []

    def rule(self) -> Rule:
        """Return the compiled rule."""
        while self._at < len(self._text):
            if found := self._take(_PLAIN):
                self._found.append(_statement(self._family, found[0]))
            else:
                self._any_statement()
            if self._at < len(self._text) and not self._take(_SPACE):
                raise ValueError(f"not understood at {self._text[self._at :]!r}")
        rest = b"".join(self._found)
        if self._before:
            return Rule((*self._before, rest), tuple(self._sets))
        return Rule((rest,), (), tuple(self._found))

    def alone(self) -> bytes:
        """Return the only statement."""
        self._any_statement()
        if self._at < len(self._text):
            raise ValueError(f"not understood at {self._text[self._at :]!r}")
        return b"".join(self._found)

    def _any_statement(self) -> None:
        statements: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], None]], ...] = (
            (_VERDICT, self._verdict),
            (_REJECT, lambda _: self._found.append(x.reject(self._family))),
            (_COUNTER, lambda _: self._found.append(x.count())),
            (_LIMIT, lambda found: self._found.append(x.limit(int(found[1]), int(found[2])))),
            (_LOG, lambda found: self._found.append(x.log(found[1], int(found[2])))),
            (_QUEUE, self._queue),
            (_MASQUERADE, lambda found: self._found.append(x.masquerade(x.FULLY_RANDOM if found[1] else 0))),
            (_SET_MARK, self._set_mark),
            (_CHANGE, self._change),
            (_DNAT, self._dnat),
        )
        for pattern, act in statements:
            if found := self._take(pattern):
                act(found)
                return
        self._match()

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self._text, self._at)
        if found:
            self._at = found.end()
        return found

    def _need(self, pattern: re.Pattern[str]) -> re.Match[str]:
        found = self._take(pattern)
        if found is None:
            raise ValueError(f"not understood at {self._text[self._at :]!r}")
        return found

    def _concatenation(self) -> list[Selector]:
        """Parse selectors, without loading them."""
        found = [selector(self._need(SELECTOR))]
        while self._take(_DOT):
            found.append(selector(self._need(SELECTOR)))
        return found

    def _load(self, selectors: Sequence[Selector]) -> None:
        register = 0
        for each in selectors:
            self._found.append(each.load(register))
            register += each.field.padded // 4

    def _inner(self, kind: SetType, elements: Sequence[bytes], expression: _Lookup) -> None:
        """Look up an anonymous set, by its template name and its id."""
        inner = InnerSet(kind, tuple(elements))
        self._sets.append(inner)
        # The id is the last attribute, so its value is what the expression ends with.
        lookup = expression(inner.template, inner=True)
        self._before.append(b"".join([*self._found, lookup[: -len(x.SET_ID)]]))
        self._found = []

    def _verdict(self, found: re.Match[str]) -> None:
        self._found.append(x.verdict(found[1] or found[2], found[3] or ""))

    def _queue(self, found: re.Match[str]) -> None:
        expression = x.queue if found[1] == "queue" else x.queue_by_target
        self._found.append(expression(int(found[2])))

    def _set_mark(self, found: re.Match[str]) -> None:
        mark = int(found[2], 16)
        mask = _MASK & ~mark if found[1] == "|" else _MASK
        self._found += [
            x.load_meta(x.META_MARK),
            x.bitwise(host_word(mask), host_word(mark)),
            x.set_meta(x.META_MARK),
        ]

    def _change(self, found: re.Match[str]) -> None:
        self._load(self._concatenation())
        end = self._need(_CHANGE_END)
        self._found.append(x.change_set(_OPERATIONS[found[1]], found[2], int(end[1] or 0)))

    def _dnat(self, found: re.Match[str]) -> None:
        family = address_family(found[1])
        field = IPV4 if family is Family.IPV4 else IPV6
        register = _REGISTER
        if SELECTOR.match(self._text, self._at):
            selectors = self._concatenation()
            self._load(selectors)
            self._map(selectors, field)
            register = field.padded // 4
        else:
            address, _, port = self._need(_WORD)[0].rpartition(":")
            self._found.append(x.immediate(field.encode(address.strip("[]"))))
            self._found.append(x.immediate(PORT.encode(port), register))
        self._found.append(x.dnat(family, register))

    def _map(self, selectors: Sequence[Selector], address: Field) -> None:
        found = self._need(_MAP)
        if found[1]:
            self._found.append(x.lookup_value(found[1]))
            return
        pairs = dict(element.split(" : ") for element in found[2].split(", "))
        key = tuple(each.field for each in selectors)
        kind = SetType(key, (address, PORT), ANONYMOUS | CONSTANT, len(pairs))
        self._inner(kind, encode(kind, pairs), x.lookup_value)

    def _match(self) -> None:
        selectors = self._concatenation()
        if found := self._take(_VMAP):
            self._load(selectors)
            self._found.append(x.lookup_verdict(found[1]))
        elif found := self._take(_IN_SET):
            self._load(selectors)
            self._found.append(x.lookup_none(found[2]) if found[1] else x.lookup(found[2]))
        elif len(selectors) > 1:
            raise ValueError(f"a concatenation is looked up in a set, not {self._text[self._at :]!r}")
        elif found := self._take(_AMONG):
            self._among(selectors[0], found[1].split(", "))
        elif found := self._take(_MASKED):
            self._load(selectors)
            self._bits(int(found[1], 16))
        else:
            found = self._need(_VALUE)
            operator = {"!= ": x.NOT_EQUAL, "< ": x.LESS, None: x.EQUAL}[found[1]]
            self._compare(selectors[0], operator, found[2])

    def _among(self, what: Selector, values: Sequence[str]) -> None:
        """Match one of several values; addresses may be ranges."""
        if len(values) == 1:
            self._compare(what, x.EQUAL, values[0])
            return
        self._load([what])
        field = what.field
        if field.width:
            ranges = merged(bounds(value, field) for value in values)
            elements = encode_ranges(field, ranges)
            flags = ANONYMOUS | CONSTANT | INTERVAL
        else:
            flags = ANONYMOUS | CONSTANT
            elements = encode_keys(SetType((field,)), values)
        kind = SetType((field,), None, flags, len(elements), key_typeof=typeof([what.typeof]))
        self._inner(kind, elements, x.lookup)

    def _bits(self, mask: int) -> None:
        """Match any of these bits of the number in the first register."""
        zero = host_word(0)
        self._found += [x.bitwise(host_word(mask), zero), x.compare(x.NOT_EQUAL, zero)]

    def _compare(self, what: Selector, operator: int, value: str) -> None:
        bits = [_CT_BITS.get((what.words, word), 0) for word in value.split(",")]
        if all(bits) and operator == x.EQUAL:
            self._load([what])
            self._bits(sum(bits))
        elif what.words in {"th dport", "icmpv6 type", "ip6 hoplimit"} and operator == x.EQUAL:
            self._number(what, value)
        elif what.field.width and operator != x.LESS:
            self._prefix(what, operator, value)
        elif what.words == "iifname" and operator != x.LESS:
            self._load([what])
            self._found.append(x.compare(operator, _interface(value, what.field)))
        elif what.words == "fib saddr type" and value == "local" and operator == x.EQUAL:
            self._load([what])
            self._found.append(x.compare(operator, host_word(_LOCAL)))
        elif what.words.startswith("numgen") and operator == x.LESS:
            self._load([what])
            self._found += [x.to_network_order(), x.compare(operator, struct.pack("!I", int(value)))]
        elif what.words == "meta l4proto" and operator != x.LESS:
            self._load([what])
            self._found.append(x.compare(operator, what.field.encode(value)))
        else:
            raise ValueError(f"{what.words} is not compared with {value!r}")

    def _number(self, what: Selector, value: str) -> None:
        """Match a number, or an inclusive range of numbers, which are compared in network order."""
        self._load([what])
        between = _RANGE.fullmatch(value)
        if between is None:
            self._found.append(x.compare(x.EQUAL, what.field.encode(value)))
            return
        self._found.append(x.compare(x.AT_LEAST, what.field.encode(between[1])))
        self._found.append(x.compare(x.AT_MOST, what.field.encode(between[2])))

    def _prefix(self, what: Selector, operator: int, value: str) -> None:
        """Match an address in a prefix; a prefix of whole bytes is compared without a mask."""
        packed, length = network(value)
        size, rest = divmod(length, 8)
        if len(packed) != what.field.size:
            raise ValueError(f"{value} is of the other family")
        if rest or not size:
            width = what.field.width
            mask = (((1 << length) - 1) << width - length).to_bytes(len(packed), "big")
            self._load([what])
            self._found += [x.bitwise(mask, bytes(len(packed))), x.compare(operator, packed)]
            return
        offset = {"ip saddr": 12, "ip daddr": 16, "ip6 saddr": 8, "ip6 daddr": 24}[what.words]
        self._found += [x.payload(x.NETWORK_HEADER, offset, size), x.compare(operator, packed[:size])]


def _interface(value: str, field: Field) -> bytes:
    """Encode an interface name, or the prefix of a name that ends with `*`."""
    name = value.strip('"')
    return name[:-1].encode() if name.endswith("*") else field.encode(name)
