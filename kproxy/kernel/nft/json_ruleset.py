"""Tables from what `nft -j list ruleset` printed, in the form in which they are read from the kernel.

The schema is that of libnftables-json(5). What is not known becomes an operation that an interpreter does
not model, so that it says so.
"""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence

from kproxy.addresses import Family
from kproxy.kernel.nft import json_values as v
from kproxy.kernel.nft.json_values import Json
from kproxy.kernel.nft.operations import (
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
from kproxy.kernel.nft.ruleset import Chain, Table

_HOOKS = {"prerouting": 0, "input": 1, "forward": 2, "output": 3, "postrouting": 4}
_PAYLOADS = {
    ("ip", "saddr"): "ipv4_addr",
    ("ip", "daddr"): "ipv4_addr",
    ("ip6", "saddr"): "ipv6_addr",
    ("ip6", "daddr"): "ipv6_addr",
    ("ip", "protocol"): "inet_proto",
    ("ip6", "nexthdr"): "inet_proto",
    ("ip6", "hoplimit"): "inet_proto",
}
_TRANSPORTS = {"tcp": 6, "udp": 17, "sctp": 132, "dccp": 33, "udplite": 136, "icmp": 1, "icmpv6": 58}
_META = {
    "mark": "mark",
    "l4proto": "inet_proto",
    "nfproto": "nf_proto",
    "protocol": "ether_type",
    "iifname": "ifname",
    "oifname": "ifname",
    "iif": "ifname",
    "oif": "ifname",
    "pkttype": "pkt_type",
}
_NAMES = {"iif": "iifname", "oif": "oifname"}
_CT = {"state": "ct_state", "status": "ct_status", "mark": "mark", "direction": "ct_dir"}
_NOTES = frozenset({"counter", "comment", "last", "meter", "ct timeout", "ct helper"})
_ORDER = {"<", "<=", ">", ">="}
_ERRORS = (ValueError, KeyError, TypeError, IndexError, OSError, struct.error)


def parse(text: str, family: Family) -> tuple[Table, ...] | None:
    """The tables that packets of a family pass; None if the text is not nft's JSON."""
    try:
        listed = json.loads(text)["nftables"]
        return tuple(_tables(listed, "ip" if family is Family.IPV4 else "ip6"))
    except _ERRORS:
        return None


def _tables(listed: Sequence[Json], own: str) -> Iterator[Table]:
    objects: dict[tuple[str, str], list[tuple[str, Json]]] = {}
    for each in listed:
        kind, held = next(iter(each.items()))
        if kind == "metainfo" or held.get("family") not in {own, "inet"}:
            continue
        name = held["name"] if kind == "table" else held["table"]
        objects.setdefault((held["family"], name), []).append((kind, held))
    for (word, name), found in objects.items():
        if not any(kind == "table" and "dormant" in _flags(held) for kind, held in found):
            yield _table(word, name, found)


def _flags(held: Json) -> Sequence[str]:
    flags = held.get("flags", ())
    return [flags] if isinstance(flags, str) else flags


def _table(family: str, name: str, objects: Sequence[tuple[str, Json]]) -> Table:
    sets: dict[str, v.ListedElements] = {}
    for kind, held in objects:
        if kind in {"set", "map"}:
            data = _types(held["map"]) if kind == "map" else None
            try:
                sets[held["name"]] = v.elements(
                    held["name"], _types(held["type"]), data, held.get("elem", ())
                )
            except _ERRORS:
                continue
    types = {held["name"]: _types(held.get("map", ())) for kind, held in objects if kind in {"set", "map"}}
    rules: dict[str, list[tuple[Operation, ...]]] = {}
    for kind, held in objects:
        if kind == "rule":
            compiled = _Rule(family, sets, types).compile(held["expr"])
            rules.setdefault(held["chain"], []).append(compiled)
    chains = {}
    for kind, held in objects:
        if kind == "chain":
            chain = tuple(rules.get(held["name"], ()))
            chains[held["name"]] = Chain(
                held["name"],
                chain,
                hook=_HOOKS.get(held.get("hook", "")),
                priority=int(held.get("prio", 0)),
                kind=held.get("type", ""),
                drops=held.get("policy") == "drop",
            )
    return Table(family, name, chains, sets)


def _is_masked(expression: Json) -> bool:
    return isinstance(expression, dict) and "&" in expression


def _types(listed: Json) -> tuple[str, ...]:
    if isinstance(listed, str):
        return tuple(listed.split(" . "))
    return tuple(listed)


class _Rule:
    """Compiles one rule; anonymous sets are added to `sets`."""

    def __init__(
        self,
        family: str,
        sets: dict[str, v.ListedElements],
        types: Mapping[str, Sequence[str]],
    ) -> None:
        self._family = family
        self._sets = sets
        self._types = types
        self._found: list[Operation] = []

    def compile(self, statements: Sequence[Json]) -> tuple[Operation, ...]:
        """The operations of a rule."""
        for number, statement in enumerate(statements):
            word = next(iter(statement))
            before = len(self._found)
            try:
                self._statement(word, statement[word], statement)
            except _ERRORS:
                del self._found[before:]
                self._found.append(Foreign(word))
            if word == "xt" and number == len(statements) - 1:
                self._found.append(Foreign("xt target ?"))
        return tuple(self._found)

    def _statement(self, word: str, held: Json, whole: Json) -> None:
        if (found := v.target(whole)) is not None:
            self._found.append(Verdict(found.word, found.chain))
            return
        match word:
            case "match":
                self._match(held["op"], held["left"], held["right"])
            case "vmap":
                kinds = self._load(held["key"], 0)
                name = self._set(held["data"], kinds, ("verdict",))
                self._found.append(Lookup(name, 0, verdict=True))
            case "dnat" | "snat":
                self._translate(word == "dnat", held)
            case "masquerade":
                self._found.append(Masquerade())
            case "redirect":
                port = (held or {}).get("port")
                if port is not None:
                    self._load(port, 8, "inet_service")
                self._found.append(Redirect(None if port is None else 8))
            case "reject":
                self._found.append(Reject())
            case "mangle":
                key = held["key"]
                what = f"{next(iter(key))} {next(iter(key.values()))['key']}" if "payload" not in key else ""
                self._load(held["value"], 0, "mark")
                self._found.append(Store(what, 0))
            case "set":
                elem = held["elem"]
                value = elem["elem"]["val"] if isinstance(elem, dict) and "elem" in elem else elem
                self._load(value, 0)
                limited = bool(held.get("stmt"))
                self._found.append(Change(held["op"], held["set"].removeprefix("@"), 0, limited=limited))
            case "limit":
                self._found.append(Limit(over=bool(held.get("inv"))))
            case "notrack":
                self._found.append(Untrack())
            case "xt":
                kind = (held or {}).get("type", "match")
                self._found.append(Foreign(f"xt {kind} {(held or {}).get('name', '?')}"))
            case "queue":
                self._found.append(Queue((held or {}).get("num", 0)))
            case "flow" | "dup":
                self._found.append(Foreign("dup"))
            case "log":
                self._found.append(Note(log_words((held or {}).get("prefix"), (held or {}).get("group"))))
            case note if note in _NOTES:
                self._found.append(Note(note))
            case _:
                self._found.append(Foreign(word))

    def _match(self, operator: str, left: Json, right: Json) -> None:
        kinds = self._load(left, 0)
        kind = kinds[0]
        if (isinstance(right, str) and right.startswith("@")) or (isinstance(right, dict) and "set" in right):
            name = self._set(right, kinds, None)
            self._found.append(Lookup(name, 0, inverted=operator == "!="))
        elif operator == "in" or (isinstance(right, list) and not _is_masked(left)):
            bits = v.encode(kind, right if isinstance(right, list) else [right])
            zero = bytes(len(bits))
            self._found += [Bitwise(0, 0, bits, zero), Compare(0, "!=", zero)]
        elif isinstance(right, dict) and ("range" in right or "prefix" in right):
            first, last = v.bounds(kind, right)
            self._found.append(Between(0, first, last, inverted=operator == "!="))
        elif kind == "ifname" and isinstance(right, str) and right.endswith("*"):
            self._found.append(Compare(0, operator, right[:-1].encode()))
        else:
            value = v.encode(kind, right)
            if operator in _ORDER and v.width(kind) == 4:
                self._found.append(Byteorder(0, 0, 4, 4))
                value = value[::-1]
            self._found.append(Compare(0, operator, value))

    def _load(self, expression: Json, register: int, kind: str = "") -> tuple[str, ...]:
        """Load an expression into registers; return its data types. `kind` is that of a constant."""
        if not isinstance(expression, dict):
            self._found.append(Constant(register, v.encode(kind, expression)))
            return (kind,)
        word, held = next(iter(expression.items()))
        match word:
            case "concat":
                kinds: tuple[str, ...] = ()
                for part in held:
                    kinds += self._load(part, register)
                    register += v.padded(v.width(kinds[-1])) // 4
                return kinds
            case "payload":
                return (self._payload(held, register),)
            case "meta":
                found = _META.get(held["key"], "")
                name = _NAMES.get(held["key"], held["key"])
                what = name if name in {"iifname", "oifname"} else f"meta {name}"
                self._found.append(Load(register, what if found else "", v.width(found), what))
                return (found,)
            case "ct":
                found = _CT.get(held["key"], "") if "dir" not in held else ""
                what = f"ct {held['key']}"
                self._found.append(Load(register, what if found else "", v.width(found), what))
                return (found,)
            case "fib":
                flags = held.get("flags", [])
                shown = " . ".join([flags] if isinstance(flags, str) else flags)
                what = f"fib {shown} {held['result']}"
                self._found.append(Load(register, what, 4, what))
                return ("fib_addrtype" if held["result"] == "type" else "ifindex",)
            case "numgen":
                random = held["mode"] == "random"
                self._found.append(Numgen(register, random, held["mod"], held.get("offset", 0)))
                return ("integer",)
            case "map":
                inner = self._load(held["key"], register)
                data = self._types.get(str(held["data"]).removeprefix("@"), (kind,))
                name = self._set(held["data"], inner, tuple(data))
                self._found.append(Lookup(name, register, register))
                return tuple(data)
            case "&" | "|" | "^":
                return self._bits(word, held, register, kind)
        self._found.append(Load(register, "", 4, word))
        return ("",)

    def _payload(self, held: Json, register: int) -> str:
        protocol, field = held.get("protocol", ""), held.get("field", "")
        kind = _PAYLOADS.get((protocol, field), "")
        if kind:
            if self._family == "inet":
                version = b"\x02" if protocol == "ip" else b"\x0a"
                self._found += [Load(15, "meta nfproto", 1, "meta nfproto"), Compare(15, "==", version)]
            what = f"{protocol} {field}"
            self._found.append(Load(register, what, v.width(kind), what))
            return kind
        if protocol in {"th", *_TRANSPORTS} and field in {"sport", "dport"}:
            if protocol != "th":
                number = bytes([_TRANSPORTS[protocol]])
                self._found += [Load(15, "meta l4proto", 1, "meta l4proto"), Compare(15, "==", number)]
            self._found.append(Load(register, f"th {field}", 2, f"th {field}"))
            return "inet_service"
        if protocol in _TRANSPORTS:
            number = bytes([_TRANSPORTS[protocol]])
            self._found += [Load(15, "meta l4proto", 1, "meta l4proto"), Compare(15, "==", number)]
        if (protocol, field) in v.BYTES:
            place, kind = v.BYTES[protocol, field]
            self._found.append(Load(register, place, 1, f"{protocol} {field}"))
            return kind
        self._found.append(Load(register, "", 4, f"{protocol} {field}".strip() or "payload"))
        return ""

    def _bits(self, operator: str, operands: Json, register: int, kind: str) -> tuple[str, ...]:
        left, right = operands[:2]
        kinds = self._load(left, register, kind)
        number = v.number(kinds[0], right)
        every = (1 << 8 * v.width(kinds[0])) - 1
        mask, xor = {"&": (number, 0), "|": (every & ~number, number), "^": (every, number)}[operator]
        self._found.append(Bitwise(register, register, v.encode(kinds[0], mask), v.encode(kinds[0], xor)))
        return kinds

    def _set(self, named: Json, kinds: Sequence[str], data: Sequence[str] | None) -> str:
        """The name of a set; an anonymous one is made."""
        if isinstance(named, str):
            return named.removeprefix("@")
        name = f"__{len(self._sets)}"
        self._sets[name] = v.elements(name, kinds, data, named["set"])
        return name

    def _translate(self, destination: bool, held: Json) -> None:
        address, port = held.get("addr"), held.get("port")
        if isinstance(address, dict) and ("range" in address or "prefix" in address):
            self._found.append(Foreign("nat"))
            return
        at = of_port = None
        length = 4
        if address is not None:
            v6 = (isinstance(address, str) and ":" in address) or (
                held.get("family", self._family) == "ip6" and not isinstance(address, str)
            )
            kind = "ipv6_addr" if v6 else "ipv4_addr"
            kinds = self._load(address, 0, kind)
            at, length = 0, v.width(kinds[0])
            of_port = length // 4 if len(kinds) > 1 else None
        if port is not None:
            of_port = 8
            self._load(port, of_port, "inet_service")
        self._found.append(Translate(destination, at, of_port, length))
