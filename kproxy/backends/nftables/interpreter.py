"""Walk a packet through nftables as the kernel holds them: the rules of every table, not only kproxy's.

A rule is a program on registers, and runs here as in the kernel (net/netfilter/nf_tables_core.c): an
expression that does not match ends the rule, and the next rule of the chain follows. A value that chance
draws stays open until it is compared or looked up, and divides the branch there.
"""

from collections.abc import Iterator, Mapping, Sequence

from kproxy.addresses import Family
from kproxy.backends.core.packets import Branch, Hook
from kproxy.backends.nftables.machine import Machine
from kproxy.backends.nftables.packet_data import Surroundings
from kproxy.backends.nftables.registers import State
from kproxy.kernel.nft.describe import describe
from kproxy.kernel.nft.held_elements import Target
from kproxy.kernel.nft.operations import Operation, Store, Untrack
from kproxy.kernel.nft.ruleset import Chain, Table
from kproxy.plan.outcomes import PacketVerdict, Routing

_MOST_JUMPS = 16
"""NFT_JUMP_STACK_SIZE."""


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
        around = Surroundings(self._family, self._interfaces, routing)
        walk = _Walk(self._table, self._keys, around)
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


class SingleRules:
    """Rules of all tables by their handles, for a reader that knows no more of them; see RulesByHandle."""

    def __init__(self, tables: Sequence[Table], family: Family, interfaces: Mapping[int, str]) -> None:
        self._tables = {str(table): table for table in tables}
        self._family = family
        self._interfaces = interfaces

    def mixed(self, table: str, chain: str) -> Sequence[int]:
        """See RulesByHandle.mixed."""
        held = self._chain(table, chain)
        return held.handles if held is not None and held.mixed else ()

    def run(
        self, table: str, chain: str, handle: int, branch: Branch, routing: Routing
    ) -> list[tuple[Branch, str, str]] | None:
        """See RulesByHandle.run."""
        held, at = self._tables.get(table), self._chain(table, chain)
        if held is None or at is None or handle not in at.handles:
            return None
        rule = at.rules[at.handles.index(handle)]
        keys = {name: each.key_length for name, each in held.sets.items()}
        walk = _Walk(held, keys, Surroundings(self._family, self._interfaces, routing))
        return [
            (each, "" if target is None else target.word, "" if target is None else target.chain)
            for each, target in walk.rule(chain, rule, branch)
        ]

    def _chain(self, table: str, chain: str) -> Chain | None:
        held = self._tables.get(table)
        return None if held is None else held.chains.get(chain)


class _Walk:
    """One packet in one table."""

    def __init__(self, table: Table, keys: Mapping[str, int], around: Surroundings) -> None:
        self._table = table
        self._keys = keys
        self._machine = Machine(table, around)

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
                for each, target in self.rule(name, rule, branch):
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

    def rule(
        self, chain: str, rule: Sequence[Operation], start: Branch
    ) -> Iterator[tuple[Branch, Target | None]]:
        """Run a rule: the branches that follow, each with its verdict, None for the next rule."""
        text = ""
        states = [State(start)]
        for operation in rule:
            after: list[State] = []
            for state in states:
                for each, result in self._machine.run(operation, state):
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
    def _forked(state: State, rule: str, after: list[State]) -> Iterator[tuple[Branch, Target | None]]:
        """Go both ways from an expression that is not modelled."""
        known = state.branch.assumption(rule)
        if known is None and not state.branch.may_fork():
            yield state.branch.step(rule).end(PacketVerdict.UNKNOWN, f"not modelled: {rule}"), None
            return
        matches, misses = state.branch.fork(rule)
        if known is not False:
            after.append(State(matches if known is None else state.branch, state.registers))
        if known is not True:
            yield misses if known is None else state.branch, None

    def _text(self, chain: str, rule: Sequence[Operation]) -> str:
        return f"{self._table} {chain}: {describe(rule, self._keys)}"

    def _ended(self, branch: Branch, text: str, result: Target | str) -> tuple[Branch, Target | None]:
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
            case "holds":
                reason = f"held by {text}: the program that reads the queue decides"
                return branch.step(text).end(PacketVerdict.UNKNOWN, reason), None
        return branch.step(text).end(PacketVerdict.UNKNOWN, f"not modelled: {text}"), None


def _acts(rule: Sequence[Operation]) -> bool:
    """Whether a rule that went on to the next one has changed something that the explanation shows."""
    return any(isinstance(operation, Store | Untrack) for operation in rule)


def _last(branch: Branch) -> str:
    return branch.steps[-1] if branch.steps else ""
