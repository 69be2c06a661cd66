"""Walk a packet through nftables as the kernel holds them: the rules of every table, not only kproxy's.

A rule is a program on registers, and runs here as in the kernel (net/netfilter/nf_tables_core.c): an
expression that does not match ends the rule, and the next rule of the chain follows. A value that chance
draws stays open until it is compared or looked up, and divides the branch there.
"""

import socket
import struct
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from kproxy.addresses import Family
from kproxy.backends.core.packets import NUMBERS, Branch, Flow, Hook
from kproxy.backends.nftables.describe import describe
from kproxy.backends.nftables.drawn import Drawn
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
    Redirect,
    Reject,
    Store,
    Translate,
    Untrack,
    Verdict,
)
from kproxy.kernel.nft.ruleset import Chain, Element, SomeElements, Table, Target
from kproxy.plan.outcomes import PacketVerdict, Routing

_MOST_JUMPS = 16
"""NFT_JUMP_STACK_SIZE."""

Cell = bytes | Drawn | None
"""A word of a register: four bytes, a number that chance draws, or None if it is not known."""

_Registers = Mapping[int, Cell]
_ETHERTYPES = {Family.IPV4: b"\x08\x00", Family.IPV6: b"\x86\xdd"}
_NEW, _UNTRACKED = 8, 64
_SNAT, _DNAT = 16, 32
_LOCAL, _UNICAST = 2, 1
_HARMLESS = frozenset({"xt target LOG", "xt target NFLOG", "xt target TRACE", "dup", "flow_offload"})
"""Statements that are not modelled and do not change the packet's way."""
_LOADING = frozenset({"hash", "exthdr", "osf", "rt", "socket", "xfrm", "tunnel", "payload", "bitwise"})
"""Expressions that are not modelled and load a register."""
_FINAL = frozenset({"tproxy", "synproxy", "queue", "fwd", "nat"})
"""Statements that are not modelled and decide."""


class BaseChain:
    """A base chain of a table, with all that its rules lead to; see HookChain."""

    def __init__(self, table: Table, chain: Chain, family: Family, interfaces: Mapping[int, str]) -> None:
        self.hook = Hook(chain.hook or 0)
        self.priority = chain.priority
        self.translates = chain.kind == "nat"
        self.table = str(table)
        self._table = table
        self._chain = chain
        self._family = family
        self._interfaces = interfaces
        self._keys = {name: each.key_length for name, each in table.sets.items()}

    def walk(self, branch: Branch, routing: Routing) -> Sequence[Branch]:
        """See HookChain.walk."""
        found = []
        walk = _Walk(self._table, self._family, self._interfaces, self._keys, routing)
        for each, accepted in walk.chain(self._chain.name, branch, 0):
            if each.verdict is None and not accepted and self._chain.drops:
                step = f"{self.table} {self._chain.name}: policy drop"
                found.append(each.step(step).end(PacketVerdict.DROP, step))
            else:
                found.append(each)
        return found


def base_chains(
    tables: Sequence[Table], family: Family, interfaces: Mapping[int, str]
) -> tuple[BaseChain, ...]:
    """The base chains of all tables; `interfaces` are the names of devices by index."""
    hooks = {int(hook) for hook in Hook}
    return tuple(
        BaseChain(table, chain, family, interfaces)
        for table in tables
        for chain in table.chains.values()
        if chain.hook in hooks
    )


class _State(msgspec.Struct, frozen=True, gc=False):
    """A branch within a rule, and its registers."""

    branch: Branch
    registers: _Registers = {}

    def holding(self, register: int, cells: Sequence[Cell]) -> "_State":
        words = dict(self.registers)
        words.update(enumerate(cells, register))
        return _State(self.branch, words)

    def words(self, register: int, length: int) -> list[Cell]:
        return [self.registers.get(register + at) for at in range((length + 3) // 4)]

    def value(self, register: int, length: int) -> bytes | None:
        """The bytes from a register on; None if some are not known or drawn."""
        words = self.words(register, length)
        known = [word for word in words if isinstance(word, bytes)]
        return b"".join(known)[:length] if len(known) == len(words) else None


class _Walk:
    """One packet in one table."""

    def __init__(
        self,
        table: Table,
        family: Family,
        interfaces: Mapping[int, str],
        keys: Mapping[str, int],
        routing: Routing,
    ) -> None:
        self._table = table
        self._family = family
        self._interfaces = interfaces
        self._keys = keys
        self._routing = routing

    def chain(self, name: str, start: Branch, depth: int) -> list[tuple[Branch, bool]]:
        """The ways out of a chain: ended ones, accepted ones (True), and those that return."""
        chain = self._table.chains.get(name)
        if chain is None or depth > _MOST_JUMPS:
            why = (
                f"{self._table} {name}: no such chain" if chain is None else f"{self._table}: too many jumps"
            )
            return [(start.end(PacketVerdict.UNKNOWN, why), False)]
        out: list[tuple[Branch, bool]] = []
        going = [start]
        for rule in chain.rules:
            after: list[Branch] = []
            for branch in going:
                for each, target in self._rule(name, rule, branch):
                    if each.verdict is not None:
                        out.append((each, False))
                    elif target is None or target.word == "continue":
                        after.append(each)
                    else:
                        out += self._follow(target, each, depth, after)
            going = after
            if not going:
                break
        return out + [(branch, False) for branch in going]

    def _follow(
        self, target: Target, branch: Branch, depth: int, after: list[Branch]
    ) -> list[tuple[Branch, bool]]:
        """Apply a verdict; branches that come back to the next rule are added to `after`."""
        match target.word:
            case "accept":
                return [(branch, True)]
            case "return":
                return [(branch, False)]
            case "drop":
                return [(branch.end(PacketVerdict.DROP, _last(branch)), False)]
            case "goto":
                return self.chain(target.chain, branch, depth + 1)
            case "jump":
                ways = self.chain(target.chain, branch, depth + 1)
                after += [each for each, accepted in ways if each.verdict is None and not accepted]
                return [way for way in ways if way[0].verdict is not None or way[1]]
        return [(branch.end(PacketVerdict.UNKNOWN, f"not modelled: {_last(branch)}"), False)]

    def _rule(
        self, chain: str, rule: Sequence[Operation], start: Branch
    ) -> Iterator[tuple[Branch, Target | None]]:
        """Run a rule: the branches that follow, each with its verdict, None for the next rule."""
        text = ""
        states = [_State(start)]
        for operation in rule:
            after: list[_State] = []
            for state in states:
                for each, result in self._run(operation, state):
                    if result == "forks":
                        text = text or self._text(chain, rule)
                        yield from self._forked(each, text, after)
                    elif result is None:
                        after.append(each)
                    elif result == "misses":
                        yield each.branch, None
                    else:
                        text = text or self._text(chain, rule)
                        yield self._ended(each.branch, text, result)
            states = after
            if not states:
                return
        if not _acts(rule):
            yield from ((state.branch, None) for state in states)
            return
        text = text or self._text(chain, rule)
        yield from ((state.branch.step(text), None) for state in states)

    @staticmethod
    def _forked(state: _State, rule: str, after: list[_State]) -> Iterator[tuple[Branch, Target | None]]:
        """Go both ways from an expression that is not modelled."""
        known = state.branch.assumption(rule)
        if known is None and not state.branch.may_fork():
            yield state.branch.step(rule).end(PacketVerdict.UNKNOWN, f"not modelled: {rule}"), None
            return
        matches, misses = state.branch.fork(rule)
        if known is not False:
            after.append(_State(matches if known is None else state.branch, state.registers))
        if known is not True:
            yield misses if known is None else state.branch, None

    def _text(self, chain: str, rule: Sequence[Operation]) -> str:
        return f"{self._table} {chain}: {describe(rule, self._keys)}"

    def _ended(
        self, branch: Branch, text: str, result: "Target | Element | str"
    ) -> tuple[Branch, Target | None]:
        """Apply the last statement of a rule."""
        if isinstance(result, Target):
            shown = text if text.endswith(str(result)) else f"{text} -> {result}"
            return branch.step(shown), result
        match result:
            case "rejects":
                return branch.step(text).end(PacketVerdict.REJECT, text), None
            case "accepts":
                if branch.flow.translated and " map " in text:
                    text = f"{text} -> {branch.flow.destination} port {branch.flow.port}"
                return branch.step(text), Target("accept")
        return branch.step(text).end(PacketVerdict.UNKNOWN, f"not modelled: {text}"), None

    def _run(self, operation: Operation, state: _State) -> list[tuple[_State, "Target | str | None"]]:
        """Run an expression: None to go on, a Target, `misses`, `forks`, or how the rule ends."""
        flow = state.branch.flow
        match operation:
            case Load(register, what, length):
                value = self._load(flow, what)
                return [(state.holding(register, _cells(value, length)), None)]
            case Numgen(register, _, modulus, offset):
                drawn: Cell = Drawn(modulus, offset) if modulus > 1 else struct.pack("=I", offset)
                return [(state.holding(register, [drawn]), None)]
            case Constant(register, value):
                return [(state.holding(register, _cells(value, len(value))), None)]
            case Bitwise(source, target, mask, xor):
                held = state.value(source, len(mask))
                value = None if held is None else _masked(held, mask, xor)
                return [(state.holding(target, _cells(value, len(mask))), None)]
            case Byteorder(source, target, length, size):
                words = [_swapped(word, size) for word in state.words(source, length)]
                return [(state.holding(target, words), None)]
            case Compare(register, operator, value):
                return self._compare(state, register, operator, value)
            case Between(register, first, last, inverted):
                held = state.value(register, len(first))
                return [(state, "forks" if held is None else _hit((first <= held <= last) != inverted))]
            case Lookup():
                return self._lookup(operation, state)
            case Verdict(word, chain):
                return [(state, Target(word, chain))]
            case Reject():
                return [(state, "rejects")]
            case Masquerade():
                return [(_State(state.branch.to(self._masqueraded(flow))), "accepts")]
            case Redirect(port):
                return self._redirected(state, port)
            case Translate():
                return self._translated(operation, state)
            case Store(what, source):
                return [(self._stored(state, what, source), None)]
            case Change(limited=limited):
                return [(state, "forks" if limited else None)]
            case Limit(over):
                return [(state, "misses" if over else None)]
            case Untrack():
                changed = msgspec.structs.replace(flow, untracked=True)
                return [(_State(state.branch.to(changed), state.registers), None)]
            case Foreign(words):
                return [_foreign(state, words)]
            case Note():
                pass
        return [(state, None)]

    def _load(self, flow: Flow, what: str) -> bytes | None:
        match what:
            case "ip saddr" | "ip6 saddr":
                return _packed(flow.source)
            case "ip daddr" | "ip6 daddr":
                return _packed(flow.destination)
            case "th sport":
                return struct.pack("!H", flow.source_port) if flow.source_port else None
            case "th dport":
                return struct.pack("!H", flow.port)
            case "meta l4proto" | "ip protocol" | "ip6 nexthdr":
                return bytes([NUMBERS[flow.protocol]])
            case "meta nfproto":
                return bytes([2 if self._family is Family.IPV4 else 10])
            case "meta protocol":
                return _ETHERTYPES[self._family]
            case "meta mark":
                return struct.pack("=I", flow.mark)
            case "meta nftrace":
                return b"\0"
            case "meta pkttype":
                return b"\0" if flow.incoming else None
            case "iifname" | "oifname":
                name = flow.incoming if what == "iifname" else flow.outgoing
                return None if name is None else name.encode().ljust(16, b"\0")
            case "iif" | "oif":
                return self._index(flow.incoming if what == "iif" else flow.outgoing)
            case "ct state":
                return struct.pack("=I", _UNTRACKED if flow.untracked else _NEW)
            case "ct status":
                return struct.pack(
                    "=I", _DNAT * (flow.translated and not flow.scheduled) | _SNAT * flow.masqueraded
                )
            case "ct direction":
                return b"\0"
            case "ct mark":
                return struct.pack("=I", flow.connection_mark)
            case "fib saddr type":
                return self._type(flow.source)
            case "fib daddr type":
                return self._type(flow.destination)
            case "fib saddr . iif oif" | "fib saddr . mark . iif oif":
                return self._way_back(flow)
        return None

    def _index(self, name: str | None) -> bytes | None:
        if name == "":
            return bytes(4)
        index = next((number for number, each in self._interfaces.items() if each == name), None)
        return None if index is None else struct.pack("=I", index)

    def _type(self, address: str) -> bytes | None:
        if not address:
            return None
        return struct.pack("=I", _LOCAL if self._routing.is_local(address) else _UNICAST)

    def _way_back(self, flow: Flow) -> bytes | None:
        """The device to which answers go if it is the one that the packet came from, else none (rpfilter)."""
        if flow.incoming is None or not flow.source:
            return None
        if flow.incoming == "":
            return bytes(4)
        route = self._routing.route(flow.source)
        if route is None or (route.interface and route.interface != flow.incoming and not route.local):
            return bytes(4)
        return self._index(flow.incoming) if route.interface else None

    @staticmethod
    def _compare(
        state: _State, register: int, operator: str, value: bytes
    ) -> list[tuple[_State, "Target | str | None"]]:
        word = state.registers.get(register)
        if isinstance(word, Drawn):
            share = word.share(operator, value)
            if share is None:
                return [(state, "forks")]
            rest = _State(state.branch.share(1 - share), state.registers)
            return [(_State(state.branch.share(share)), None), (rest, "misses")]
        held = state.value(register, len(value))
        return [(state, "forks" if held is None else _hit(_holds(held, operator, value)))]

    def _lookup(self, operation: Lookup, state: _State) -> list[tuple[_State, "Target | str | None"]]:
        elements = self._table.sets.get(operation.name)
        if elements is None:
            return [(state, "forks")]
        words = state.words(operation.source, elements.key_length)
        place = next((at for at, word in enumerate(words) if isinstance(word, Drawn)), None)
        if place is None:
            return [self._found(operation, elements, words, state)]
        drawn = words[place]
        assert isinstance(drawn, Drawn)  # noqa: S101 - chosen above
        found = []
        for value in drawn.values():
            one = _State(state.branch.share(1 / drawn.modulus), state.registers)
            words[place] = value
            found.append(self._found(operation, elements, words, one))
        return found

    @staticmethod
    def _found(
        operation: Lookup, elements: SomeElements, words: Sequence[Cell], state: _State
    ) -> tuple[_State, "Target | str | None"]:
        known = [word for word in words if isinstance(word, bytes)]
        if len(known) < len(words):
            return state, "forks"
        value = elements.find(b"".join(known)[: elements.key_length])
        if operation.verdict:
            return state, value if isinstance(value, Target) else "misses"
        if operation.target is None or value is None:
            return state, _hit((value is not None) != operation.inverted)
        assert isinstance(value, bytes)  # noqa: S101 - only verdict maps have targets
        return state.holding(operation.target, _cells(value, len(value))), None

    def _translated(self, operation: Translate, state: _State) -> list[tuple[_State, "Target | str | None"]]:
        flow = state.branch.flow
        port = flow.port if operation.destination else flow.source_port
        address: bytes | None = _packed(flow.destination if operation.destination else flow.source)
        if operation.address is not None:
            address = state.value(operation.address, operation.length)
        if operation.port is not None:
            packed = state.value(operation.port, 2)
            if packed is None:
                return [(state, "unknown")]
            port = int.from_bytes(packed, "big")
        if address is None:
            return [(state, "unknown")]
        if operation.destination:
            changed = msgspec.structs.replace(flow, destination=_text(address), port=port, translated=True)
        else:
            changed = msgspec.structs.replace(flow, source=_text(address), source_port=port, masqueraded=True)
        return [(_State(state.branch.to(changed)), "accepts")]

    def _redirected(self, state: _State, register: int | None) -> list[tuple[_State, "Target | str | None"]]:
        flow = state.branch.flow
        port = flow.port
        if register is not None:
            packed = state.value(register, 2)
            if packed is None:
                return [(state, "unknown")]
            port = int.from_bytes(packed, "big")
        changed = redirected(flow, port, self._family, self._routing)
        return [(_State(state.branch.to(changed)), "accepts" if changed.destination else "unknown")]

    def _masqueraded(self, flow: Flow) -> Flow:
        route = self._routing.route(flow.destination)
        source = "" if route is None else route.source
        return msgspec.structs.replace(flow, source=source, source_port=0, masqueraded=True)

    @staticmethod
    def _stored(state: _State, what: str, source: int) -> _State:
        value = state.value(source, 4)
        flow = state.branch.flow
        if what in {"meta mark", "ct mark"} and value is not None:
            number = struct.unpack("=I", value)[0]
            field = {"mark": number} if what == "meta mark" else {"connection_mark": number}
            return _State(state.branch.to(msgspec.structs.replace(flow, **field)), state.registers)
        return state


def redirected(flow: Flow, port: int, family: Family, routing: Routing) -> Flow:
    """The flow after a redirection to the node; the address is "" where it is not known."""
    if flow.incoming == "":
        address = "127.0.0.1" if family is Family.IPV4 else "::1"
    else:
        route = routing.route(flow.source)
        address = "" if route is None else route.source
    return msgspec.structs.replace(flow, destination=address, port=port, translated=True)


def _foreign(state: _State, words: str) -> tuple[_State, "Target | str | None"]:
    if words in _HARMLESS:
        return state, None
    if words in _LOADING:
        return _State(state.branch), None
    if words in _FINAL or words.startswith("xt target"):
        return state, "unknown"
    return _State(state.branch), "forks"


def _acts(rule: Sequence[Operation]) -> bool:
    """Whether a rule that went on to the next one has changed something that the explanation shows."""
    return any(isinstance(operation, Store | Untrack) for operation in rule)


def _hit(matches: bool) -> str | None:
    return None if matches else "misses"


def _last(branch: Branch) -> str:
    return branch.steps[-1] if branch.steps else ""


def _cells(value: bytes | None, length: int) -> list[Cell]:
    if value is None:
        return [None] * ((length + 3) // 4)
    padded = value[:length].ljust((length + 3) & ~3, b"\0")
    return [padded[at : at + 4] for at in range(0, len(padded), 4)]


def _holds(held: bytes, operator: str, value: bytes) -> bool:
    return {
        "==": held == value,
        "!=": held != value,
        "<": held < value,
        "<=": held <= value,
        ">": held > value,
        ">=": held >= value,
    }[operator]


def _masked(held: bytes, mask: bytes, xor: bytes) -> bytes:
    return bytes(value & kept ^ flipped for value, kept, flipped in zip(held, mask, xor, strict=True))


def _swapped(word: Cell, size: int) -> Cell:
    if isinstance(word, Drawn):
        return word.swapped()
    if word is None:
        return None
    return word[::-1] if size >= 4 else b"".join(word[at : at + size][::-1] for at in range(0, 4, size))


def _packed(address: str) -> bytes | None:
    if not address:
        return None
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def _text(packed: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)
