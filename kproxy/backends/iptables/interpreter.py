"""Walk a packet through the tables of iptables, as iptables-save prints them: the rules of every program."""

from collections.abc import Mapping, Sequence

import msgspec

from kproxy.addresses import Family, split_host_port
from kproxy.backends.core.packets import IGNORED, Branch, Flow, Hook
from kproxy.backends.iptables.matching import Surroundings, probability
from kproxy.backends.iptables.parsed import Rule, Tables
from kproxy.plan.outcomes import PacketVerdict, Routing

_MOST_JUMPS = 64
_ALL = 0xFFFFFFFF
_PRIORITIES = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}
"""enum nf_ip_hook_priorities; the hooks decide about that of nat."""
_HARMLESS = frozenset(
    {
        "",
        "LOG",
        "NFLOG",
        "ULOG",
        "TRACE",
        "AUDIT",
        "CLASSIFY",
        "DSCP",
        "TOS",
        "TCPMSS",
        "SET",
        "CHECKSUM",
    }
)
"""Targets after which the next rule follows, and which never change a packet's way."""


class BuiltInChain:
    """A built-in chain of a table, with all that its rules lead to; see HookChain."""

    translates = False

    def __init__(self, tables: Tables, table: str, hook: Hook, around: Surroundings) -> None:
        self.hook = hook
        self.table = f"{'ip' if around.family is Family.IPV4 else 'ip6'} {table}"
        self.priority = _PRIORITIES[table]
        self.translates = table == "nat"
        self._tables = tables
        self._name = table
        self._around = around

    def walk(self, branch: Branch, routing: Routing) -> Sequence[Branch]:
        """See HookChain.walk."""
        found = []
        walk = _Walk(self._tables, self._name, self._around, routing)
        for each, accepted in walk.chain(self.hook.name, branch, 0):
            if each.verdict is None and not accepted and self._tables.drops(self._name, self.hook.name):
                step = f"{self._name} {self.hook.name}: policy DROP"
                found.append(each.step(step).end(PacketVerdict.DROP, step))
            else:
                found.append(each)
        return found


def built_in_chains(tables: Tables, around: Surroundings) -> tuple[BuiltInChain, ...]:
    """The built-in chains of all tables that packets meet."""
    return tuple(
        BuiltInChain(tables, table, hook, around)
        for table in _PRIORITIES
        for hook in Hook
        if tables.has(table, hook.name)
    )


class _Walk:
    """One packet in one table."""

    def __init__(self, tables: Tables, table: str, around: Surroundings, routing: Routing) -> None:
        self._tables = tables
        self._table = table
        self._around = around
        self._routing = routing

    def chain(self, name: str, start: Branch, depth: int) -> list[tuple[Branch, bool]]:
        """The ways out of a chain: ended ones, accepted ones (True), and those that return."""
        out: list[tuple[Branch, bool]] = []
        if depth > _MOST_JUMPS:
            return [(start.end(PacketVerdict.UNKNOWN, f"{self._table}: too many jumps"), False)]
        going = [start]
        if handles := self._around.shared.handles(self._full_name, name):
            return self._mixed(name, handles, going, depth)
        for rule in self._tables.rules(self._table, name, start.flow.destination):
            after: list[Branch] = []
            handle = rule.handle
            for branch in going:
                if handle is not None and (ways := self._native(name, handle, branch)) is not None:
                    out += self._applied(ways, depth, after)
                    continue
                for matching in self._matching(name, rule, branch, after, out):
                    out += self._target(name, rule, matching, depth, after)
            going = after
            if not going:
                break
        return out + [(branch, False) for branch in going]

    def _matching(
        self, chain: str, rule: Rule, branch: Branch, missing: list[Branch], out: list[tuple[Branch, bool]]
    ) -> list[Branch]:
        """The branches that match a rule; those that do not are added to `missing`."""
        share = probability(rule, branch.flow, self._around, self._routing)
        if share is None:
            text = self._text(chain, rule)
            if rule.target in _HARMLESS and rule.handle is None:
                missing.append(branch)
                return []
            known = branch.assumption(text)
            if known is None and not branch.may_fork():
                out.append((branch.step(text).end(PacketVerdict.UNKNOWN, f"not modelled: {text}"), False))
                return []
            matches, misses = branch.fork(text)
            if known is not True:
                missing.append(branch if known is False else misses)
            return [] if known is False else [branch if known else matches]
        if share < 1:
            rest = branch if share == 0 else branch.share(1 - share)
            if rest.probability > IGNORED:
                missing.append(rest)
        return [branch if share == 1 else branch.share(share)] if share > 0 else []

    def _target(
        self, chain: str, rule: Rule, matching: Branch, depth: int, after: list[Branch]
    ) -> list[tuple[Branch, bool]]:
        """Apply a rule's target; branches that go on with the next rule are added to `after`."""
        text = self._text(chain, rule)
        branch = matching.step(text)
        if rule.handle is not None:
            return [(branch.end(PacketVerdict.UNKNOWN, f"not modelled: {text}"), False)]
        match rule.target:
            case target if target in _HARMLESS:
                after.append(matching)
            case "ACCEPT":
                return [(branch, True)]
            case "DROP":
                return [(branch.end(PacketVerdict.DROP, text), False)]
            case "REJECT":
                return [(branch.end(PacketVerdict.REJECT, text), False)]
            case "RETURN":
                return [(branch, False)]
            case "MARK" | "CONNMARK" | "CT" | "NOTRACK":
                changed = _changed(rule, branch.flow)
                if changed is None:
                    return [(branch.end(PacketVerdict.UNKNOWN, f"not modelled: {text}"), False)]
                after.append(branch.to(changed))
            case "DNAT" | "SNAT" | "MASQUERADE" | "REDIRECT":
                translated = self._translated(rule, branch.flow)
                if translated is None:
                    return [(branch.end(PacketVerdict.UNKNOWN, f"not modelled: {text}"), False)]
                return [(branch.to(translated), True)]
            case target if self._tables.has(self._table, target):
                return self._entered(target, branch, depth, None if rule.goto else after)
            case _:
                return [(branch.end(PacketVerdict.UNKNOWN, f"not modelled: {text}"), False)]
        return []

    def _entered(
        self, chain: str, branch: Branch, depth: int, after: list[Branch] | None
    ) -> list[tuple[Branch, bool]]:
        """Pass another chain; with `after`, branches that return from it go on there."""
        ways = self.chain(chain, branch, depth + 1)
        if after is None:
            return ways
        after += [each for each, accepted in ways if each.verdict is None and not accepted]
        return [way for way in ways if way[0].verdict is not None or way[1]]

    def _native(self, chain: str, handle: int, branch: Branch) -> Sequence[tuple[Branch, str, str]] | None:
        """Run a rule that was written with nft; None if it cannot be read."""
        return self._around.shared.run(self._full_name, chain, handle, branch, self._routing)

    @property
    def _full_name(self) -> str:
        return f"{'ip' if self._around.family is Family.IPV4 else 'ip6'} {self._table}"

    def _mixed(
        self, name: str, handles: Sequence[int], going: list[Branch], depth: int
    ) -> list[tuple[Branch, bool]]:
        """Pass a chain that has rules written with nft: iptables-nft-save misprints some of them."""
        out: list[tuple[Branch, bool]] = []
        for handle in handles:
            after: list[Branch] = []
            for branch in going:
                ways = self._native(name, handle, branch) or ((branch, "", ""),)
                out += self._applied(ways, depth, after)
            going = after
        return out + [(branch, False) for branch in going]

    def _applied(
        self, ways: Sequence[tuple[Branch, str, str]], depth: int, after: list[Branch]
    ) -> list[tuple[Branch, bool]]:
        """Apply the verdicts of such a rule."""
        out: list[tuple[Branch, bool]] = []
        for branch, verdict, chain in ways:
            match verdict:
                case "jump" | "goto" if self._tables.has(self._table, chain):
                    out += self._entered(chain, branch, depth, None if verdict == "goto" else after)
                case "" | "continue" if branch.verdict is None:
                    after.append(branch)
                case "drop":
                    out.append((branch.end(PacketVerdict.DROP, branch.steps[-1]), False))
                case _:
                    out.append((branch, verdict == "accept"))
        return out

    def _text(self, chain: str, rule: Rule) -> str:
        return f"{self._table} {chain}: {rule.text}".rstrip()

    def _translated(self, rule: Rule, flow: Flow) -> Flow | None:
        """The flow after a translation; None for one that is not modelled, such as to a range."""
        held = {each.option: each.values for each in rule.options}
        if rule.target == "MASQUERADE":
            route = self._routing.route(flow.destination)
            source = "" if route is None else route.source
            return msgspec.structs.replace(flow, source=source, source_port=0, masqueraded=True)
        if rule.target == "REDIRECT":
            port = (held.get("--to-ports") or (str(flow.port),))[0]
            return _redirected(flow, port, self._around.family, self._routing)
        option = "--to-destination" if rule.target == "DNAT" else "--to-source"
        address, number = _destination((held.get(option) or ("",))[0])
        if address is None:
            return None
        if rule.target == "SNAT":
            return msgspec.structs.replace(
                flow, source=address or flow.source, source_port=number or 0, masqueraded=True
            )
        return msgspec.structs.replace(
            flow, destination=address or flow.destination, port=number or flow.port, translated=True
        )


def _redirected(flow: Flow, port: str, family: Family, routing: Routing) -> Flow | None:
    if not port.isdecimal():
        return None
    if flow.incoming == "":
        address = "127.0.0.1" if family is Family.IPV4 else "::1"
    else:
        route = routing.route(flow.source) if flow.source else None
        if route is None or not route.source:
            return None
        address = route.source
    return msgspec.structs.replace(flow, destination=address, port=int(port), translated=True)


def _destination(text: str) -> tuple[str | None, int | None]:
    """The address ("" for the packet's own) and port of a translation; (None, None) for a range."""
    if not text or "-" in text:
        return None, None
    if text.startswith(":") and text.count(":") == 1:
        return "", int(text[1:])
    if text.startswith("[") or text.count(":") == 1:
        address, port = split_host_port(text)
        return address, port
    return text, None


def _changed(rule: Rule, flow: Flow) -> Flow | None:
    """The flow after a target that changes marks or tracking; None if it is not modelled."""
    options: Mapping[str, Sequence[str]] = {each.option: each.values for each in rule.options}
    if rule.target == "NOTRACK" or (rule.target == "CT" and "--notrack" in options):
        return msgspec.structs.replace(flow, untracked=True)
    if rule.target == "CT":
        return flow
    if "--set-xmark" in options:
        number, _, mask = options["--set-xmark"][0].partition("/")
        kept = ~(int(mask, 0) if mask else _ALL)
        if rule.target == "MARK":
            return msgspec.structs.replace(flow, mark=(flow.mark & kept ^ int(number, 0)) & _ALL)
        changed = (flow.connection_mark & kept ^ int(number, 0)) & _ALL
        return msgspec.structs.replace(flow, connection_mark=changed)
    if rule.target != "CONNMARK" or len(options) == 0:
        return None
    to = int(options.get("--nfmask", options.get("--mask", ("0xffffffff",)))[0], 0)
    of = int(options.get("--ctmask", options.get("--mask", ("0xffffffff",)))[0], 0)
    if "--restore-mark" in options:
        return msgspec.structs.replace(flow, mark=(flow.mark & ~to) ^ (flow.connection_mark & of))
    if "--save-mark" in options:
        return msgspec.structs.replace(flow, connection_mark=(flow.connection_mark & ~of) ^ (flow.mark & to))
    return None
