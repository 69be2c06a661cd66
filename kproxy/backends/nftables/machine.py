"""Run the expressions of a rule one by one, as the kernel does (net/netfilter/nft_*.c)."""

import struct
from collections.abc import Sequence

import msgspec

from kproxy.backends.core.packets import Flow
from kproxy.backends.nftables.drawn import Drawn
from kproxy.backends.nftables.packet_data import Surroundings, packed, redirected, unpacked
from kproxy.backends.nftables.registers import Cell, State, cells_of, holds, masked, swapped
from kproxy.kernel.nft.held_elements import SomeElements, Target
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
from kproxy.kernel.nft.ruleset import Table

_HARMLESS = frozenset({"xt target LOG", "xt target NFLOG", "xt target TRACE", "dup", "flow_offload"})
"""Statements that are not modelled and do not change the packet's way."""
_LOADING = frozenset({"hash", "exthdr", "osf", "rt", "socket", "xfrm", "tunnel", "payload", "bitwise"})
"""Expressions that are not modelled and load a register."""
_FINAL = frozenset({"tproxy", "synproxy", "queue", "fwd", "nat"})
"""Statements that are not modelled and decide."""

_XT_NEW, _XT_SNAT, _XT_DNAT, _XT_UNTRACKED = 8, 64, 128, 256

Result = Target | str | None
"""None to go on, a verdict, `misses`, `forks` (both ways), or how the rule ends."""


class Machine:
    """Runs expressions of rules of a table."""

    def __init__(self, table: Table, around: Surroundings) -> None:
        self._table = table
        self._around = around

    def run(self, operation: Operation, state: State) -> list[tuple[State, Result]]:
        """Run an expression: None to go on, a Target, `misses`, `forks`, or how the rule ends."""
        flow = state.branch.flow
        match operation:
            case Load(what=what) if flow.untracked and what.startswith("ct ") and what != "ct state":
                return [(state, "misses")]
            case Load(register, what, length):
                value = self._around.load(flow, what, length)
                return [(state.holding(register, cells_of(value, length)), None)]
            case Numgen(register, _, modulus, offset):
                drawn: Cell = Drawn(modulus, offset) if modulus > 1 else struct.pack("=I", offset)
                return [(state.holding(register, [drawn]), None)]
            case Constant(register, value):
                return [(state.holding(register, cells_of(value, len(value))), None)]
            case Bitwise(source, target, mask, xor):
                held = state.value(source, len(mask))
                value = None if held is None else masked(held, mask, xor)
                return [(state.holding(target, cells_of(value, len(mask))), None)]
            case Byteorder(source, target, length, size):
                words = [swapped(word, size) for word in state.words(source, length)]
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
                return [(State(state.branch.to(self._masqueraded(flow))), "accepts")]
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
                return [(State(state.branch.to(changed), state.registers), None)]
            case HasState(states, inverted):
                return [(state, _hit(bool(_states(flow) & states) != inverted))]
            case HasType(what, types, inverted):
                packed_type = self._around.load(flow, f"fib {what} type", 4)
                if packed_type is None:
                    return [(state, "forks")]
                kind = 1 << struct.unpack("=I", packed_type)[0]
                return [(state, _hit(bool(kind & types) != inverted))]
            case Foreign(words):
                return [_foreign(state, words)]
            case Queue():
                return [(state, "holds")]
            case Note():
                pass
        return [(state, None)]

    @staticmethod
    def _compare(state: State, register: int, operator: str, value: bytes) -> list[tuple[State, Result]]:
        word = state.registers.get(register)
        if isinstance(word, Drawn):
            share = word.share(operator, value)
            if share is None:
                return [(state, "forks")]
            rest = State(state.branch.share(1 - share), state.registers)
            return [(State(state.branch.share(share)), None), (rest, "misses")]
        held = state.value(register, len(value))
        return [(state, "forks" if held is None else _hit(holds(held, operator, value)))]

    def _lookup(self, operation: Lookup, state: State) -> list[tuple[State, Result]]:
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
            one = State(state.branch.share(1 / drawn.modulus), state.registers)
            words[place] = value
            found.append(self._found(operation, elements, words, one))
        return found

    @staticmethod
    def _found(
        operation: Lookup, elements: SomeElements, words: Sequence[Cell], state: State
    ) -> tuple[State, Result]:
        known = [word for word in words if isinstance(word, bytes)]
        if len(known) < len(words):
            if elements.may_find([word if isinstance(word, bytes) else None for word in words]):
                return state, "forks"
            return state, "misses" if operation.verdict or not operation.inverted else None
        value = elements.find(b"".join(known)[: elements.key_length])
        if operation.verdict:
            return state, value if isinstance(value, Target) else "misses"
        if operation.target is None or value is None:
            return state, _hit((value is not None) != operation.inverted)
        assert isinstance(value, bytes)  # noqa: S101 - only verdict maps have targets
        return state.holding(operation.target, cells_of(value, len(value))), None

    def _translated(self, operation: Translate, state: State) -> list[tuple[State, Result]]:
        flow = state.branch.flow
        port = flow.port if operation.destination else flow.source_port
        address: bytes | None = packed(flow.destination if operation.destination else flow.source)
        if operation.address is not None:
            address = state.value(operation.address, operation.length)
        if operation.port is not None:
            held = state.value(operation.port, 2)
            if held is None:
                return [(state, "unknown")]
            port = int.from_bytes(held, "big")
        if address is None:
            return [(state, "unknown")]
        if operation.destination:
            changed = msgspec.structs.replace(flow, destination=unpacked(address), port=port, translated=True)
        else:
            source = unpacked(address)
            changed = msgspec.structs.replace(flow, source=source, source_port=port, masqueraded=True)
        return [(State(state.branch.to(changed)), "accepts")]

    def _redirected(self, state: State, register: int | None) -> list[tuple[State, Result]]:
        flow = state.branch.flow
        port = flow.port
        if register is not None:
            held = state.value(register, 2)
            if held is None:
                return [(state, "unknown")]
            port = int.from_bytes(held, "big")
        changed = redirected(flow, port, self._around)
        return [(State(state.branch.to(changed)), "accepts" if changed.destination else "unknown")]

    def _masqueraded(self, flow: Flow) -> Flow:
        route = self._around.routing.route(flow.destination)
        source = "" if route is None else route.source
        return msgspec.structs.replace(flow, source=source, source_port=0, masqueraded=True)

    @staticmethod
    def _stored(state: State, what: str, source: int) -> State:
        value = state.value(source, 4)
        flow = state.branch.flow
        if what in {"meta mark", "ct mark"} and value is not None:
            number = struct.unpack("=I", value)[0]
            field = {"mark": number} if what == "meta mark" else {"connection_mark": number}
            return State(state.branch.to(msgspec.structs.replace(flow, **field)), state.registers)
        return state


def _states(flow: Flow) -> int:
    """The states of a connection in the bits of iptables."""
    if flow.untracked:
        return _XT_UNTRACKED
    by_rules = flow.translated and not flow.scheduled
    return _XT_NEW | _XT_DNAT * by_rules | _XT_SNAT * flow.masqueraded


def _foreign(state: State, words: str) -> tuple[State, Result]:
    if words in _HARMLESS:
        return state, None
    if words in _LOADING:
        return State(state.branch), None
    if words in _FINAL or words.startswith("xt target"):
        return state, "unknown"
    return State(state.branch), "forks"


def _hit(matches: bool) -> str | None:
    return None if matches else "misses"
