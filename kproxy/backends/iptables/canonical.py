"""Canonical form of iptables rules: two spellings of the same rule have the same form.

kproxy writes rules in the exact form that iptables-save prints, so most can be compared as text. Dumps of
other iptables versions differ in details, and rules that kube-proxy left on the node have its own spelling.
`canonical_rule` is for lines that differ as text; it takes some tens of microseconds each.

Equivalences are those of iptables' own extensions (libxt_MARK, libxt_statistic, libxt_recent, ...), checked
against both variants of 1.8.9.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable

_Form = tuple[object, ...]

_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')
_ESCAPED = re.compile(r"\\(.)")
_ALL_ONES = 0xFFFFFFFF
_COMMANDS = frozenset({"-A", "-I", "-D", "--append", "--insert", "--delete"})
_HEADER = {
    "-s": "-s", "--source": "-s", "--src": "-s",
    "-d": "-d", "--destination": "-d", "--dst": "-d",
    "-i": "-i", "--in-interface": "-i",
    "-o": "-o", "--out-interface": "-o",
    "-p": "-p", "--protocol": "-p", "--proto": "-p",
}  # fmt: skip
_PROTOCOLS = {
    "0": "all", "1": "icmp", "6": "tcp", "17": "udp", "58": "ipv6-icmp", "icmpv6": "ipv6-icmp", "132": "sctp"
}  # fmt: skip
_PROTOCOL_MATCHES = frozenset({"tcp", "udp", "sctp", "dccp", "udplite", "icmp", "icmp6", "icmpv6"})
_LONG = {
    "--destination-port": "--dport", "--source-port": "--sport",
    "--destination-ports": "--dports", "--source-ports": "--sports",
}  # fmt: skip
_PORTS = frozenset({"--dport", "--sport"})
_PROTOCOL_OPTIONS = _PORTS | {
    "--syn",
    "--tcp-flags",
    "--tcp-option",
    "--icmp-type",
    "--icmpv6-type",
    "--chunk-types",
}
_SORTED_LISTS = frozenset({"--ctstate", "--state", "--src-type", "--dst-type", "--ctstatus"})
_DEFAULT_REJECT = frozenset({"icmp-port-unreachable", "icmp6-port-unreachable", "port-unreach"})
_DEFAULT_RECENT_MASK = frozenset({"255.255.255.255", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"})
_PROBABILITY_UNIT = 0x80000000  # xt_statistic compares 31 random bits

_Option = tuple[bool, str, tuple[str, ...]]


def canonical_rule(line: str) -> tuple[object, ...]:
    """Return the normal form of one rule, equal for every spelling of the same rule.

    `line` is `-A CHAIN ...` as in a dump or a restore input; `-I CHAIN [number] ...` and `-D CHAIN ...` give
    the form of the rule that they insert or delete. Leading packet counters are ignored. The first item is
    the chain. The order of matches is significant, except for comments and the protocol's own match.
    Raises ValueError for a line that is not a rule.
    """
    tokens = tokenize(line)
    if tokens and tokens[0][0].startswith("[") and not tokens[0][1]:
        del tokens[0]
    if len(tokens) < 2 or tokens[0][0] not in _COMMANDS:
        msg = f"not an iptables rule: {line!r}"
        raise ValueError(msg)
    start = 3 if len(tokens) > 2 and tokens[2][0].isdigit() and tokens[0][0] != "-A" else 2
    return (tokens[1][0], *_Parser().parse(tokens[start:]))


def tokenize(line: str) -> list[tuple[str, bool]]:
    """Words of a line as iptables-restore splits it: (text, whether it was in double quotes)."""
    if '"' not in line:
        return [(word, False) for word in line.split()]
    return [
        (word, False) if word else (_ESCAPED.sub(r"\1", quoted), True)
        for quoted, word in _TOKEN.findall(line)
    ]


def probability(value: str) -> int:
    """Return a --probability as the kernel stores it, in units of 2**-31."""
    return round(float(value) * _PROBABILITY_UNIT)


class _Parser:
    """Parses the words of one rule into its normal form."""

    def __init__(self) -> None:
        self.header: dict[str, _Form] = {}
        self.protocol_options: list[_Option] = []
        self.matches: list[tuple[str, list[_Option]]] = []
        self.comments: list[str] = []
        self.target: tuple[str, str] | None = None
        self.target_options: list[_Option] = []

    def parse(self, tokens: list[tuple[str, bool]]) -> _Form:
        options = self.protocol_options
        negated = False
        at = 0
        while at < len(tokens):
            word = tokens[at][0]
            at += 1
            if word == "!":
                negated = True
                continue
            first = at
            while at < len(tokens) and (tokens[at][1] or not _is_option(tokens[at][0])):
                at += 1
            values = tuple(text for text, _ in tokens[first:at])
            if word in _HEADER:
                self._add_header(_HEADER[word], negated, values)
            elif word in ("-m", "--match"):
                options = self._match_options(values[0])
            elif word in ("-j", "--jump", "-g", "--goto"):
                self.target = ("-g" if word in ("-g", "--goto") else "-j", values[0])
                options = self.target_options
            elif word == "--comment":
                self.comments.append(values[0])
            elif word not in ("-c", "--set-counters"):
                name = _LONG.get(word, word)
                (self.protocol_options if name in _PROTOCOL_OPTIONS else options).append(
                    (negated, name, values)
                )
            negated = False
        return self._normal_form()

    def _match_options(self, name: str) -> list[_Option]:
        if name in _PROTOCOL_MATCHES:
            return self.protocol_options
        options: list[_Option] = []
        if name != "comment":
            self.matches.append((name, options))
        return options

    def _add_header(self, option: str, negated: bool, values: tuple[str, ...]) -> None:
        value: object = values[0]
        if option in ("-s", "-d"):
            value = _network(values[0])
            if not negated and isinstance(value, tuple) and value[1] == 0:
                return
        elif option == "-p":
            value = _PROTOCOLS.get(values[0].lower(), values[0].lower())
            if value == "all":
                return
        elif value == "+" and not negated:
            return
        self.header[option] = (negated, value)

    def _normal_form(self) -> _Form:
        matches = tuple((name, _NORMALISERS.get(name, _plain)(options)) for name, options in self.matches)
        target: _Form = ()
        if self.target is not None:
            target = (*self.target, _NORMALISERS.get(self.target[1], _plain)(self.target_options))
        header = tuple(sorted(self.header.items()))
        return header, _protocol(self.protocol_options), matches, tuple(self.comments), target


def _is_option(word: str) -> bool:
    return word == "!" or (len(word) > 1 and word[0] == "-" and not word[1].isdigit())


def _plain(options: list[_Option]) -> _Form:
    return tuple(
        sorted(
            (negated, name, (",".join(sorted(values[0].split(","))),) if name in _SORTED_LISTS else values)
            for negated, name, values in options
        )
    )


def _protocol(options: list[_Option]) -> _Form:
    kept: list[_Option] = []
    for negated, name, values in options:
        if name in _PORTS:
            low, colon, high = values[0].partition(":")
            low, high = low or "0", (high or "65535") if colon else low
            if (low, high) != ("0", "65535") or negated:
                kept.append((negated, name, (low, high)))
        elif name == "--syn":
            kept.append((negated, "--tcp-flags", ("ACK,FIN,RST,SYN", "SYN")))
        elif name == "--tcp-flags":
            kept.append((negated, name, tuple(",".join(sorted(value.split(","))) for value in values)))
        else:
            kept.append((negated, name, values))
    return tuple(sorted(kept))


def _mark_match(options: list[_Option]) -> _Form:
    return tuple((negated, name, _value_and_mask(values[0])) for negated, name, values in options)


def _mark_target(options: list[_Option]) -> _Form:
    # every spelling is one operation: mark = (mark & ~mask) ^ value  (xt_MARK, revision 2)
    for _, name, values in options:
        value, mask = _value_and_mask(values[0])
        if name == "--set-mark":
            return value, mask | value
        if name == "--or-mark":
            return value, value
        if name == "--and-mark":
            return 0, ~value & _ALL_ONES
        if name == "--xor-mark":
            return value, 0
        return value, mask
    return ()


def _statistic(options: list[_Option]) -> _Form:
    return tuple(
        sorted(
            (negated, name, (str(probability(values[0])),) if name == "--probability" else values)
            for negated, name, values in options
        )
    )


def _recent(options: list[_Option]) -> _Form:
    kept = [
        option
        for option in options
        if option[1] != "--rsource" and not (option[1] == "--mask" and option[2][0] in _DEFAULT_RECENT_MASK)
    ]
    if all(name != "--name" for _, name, _ in kept):
        kept.append((False, "--name", ("DEFAULT",)))
    return tuple(sorted(kept))


def _reject(options: list[_Option]) -> _Form:
    kept = [option for option in options if option[2][0] not in _DEFAULT_REJECT]
    return tuple(sorted(kept))


def _nat(options: list[_Option]) -> _Form:
    return tuple(
        sorted(
            (
                negated,
                name,
                (_endpoint(values[0]),) if name in ("--to-destination", "--to-source") else values,
            )
            for negated, name, values in options
        )
    )


_NORMALISERS: dict[str, Callable[[list[_Option]], _Form]] = {
    "mark": _mark_match,
    "MARK": _mark_target,
    "statistic": _statistic,
    "recent": _recent,
    "REJECT": _reject,
    "DNAT": _nat,
    "SNAT": _nat,
}


def _value_and_mask(text: str) -> tuple[int, int]:
    value, slash, mask = text.partition("/")
    return int(value, 0), int(mask, 0) if slash else _ALL_ONES


def _endpoint(text: str) -> str:
    if not text.startswith("["):
        return _address(text) or text
    inside, _, port = text[1:].partition("]")
    address = _address(inside) or inside
    return f"[{address}]{port}" if port else address


def _network(text: str) -> tuple[bytes, int] | str:
    """Return the network address without host bits and the prefix length; the text if it is no network."""
    address, _, suffix = text.partition("/")
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        packed = socket.inet_pton(kind, address)
        bits = len(packed) * 8
        if not suffix:
            length = bits
        elif suffix.isdigit():
            length = int(suffix)
        else:
            mask = int.from_bytes(socket.inet_pton(kind, suffix))
            length = mask.bit_count()
            if mask != (1 << bits) - (1 << bits - length):
                return text
    except OSError:
        return text
    if length > bits:
        return text
    keep = (1 << bits) - (1 << bits - length)
    return (int.from_bytes(packed) & keep).to_bytes(len(packed)), length


def _address(text: str) -> str | None:
    kind = socket.AF_INET6 if ":" in text else socket.AF_INET
    try:
        return socket.inet_ntop(kind, socket.inet_pton(kind, text))
    except OSError:
        return None
