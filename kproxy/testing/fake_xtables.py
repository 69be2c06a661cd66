"""An in-memory stand-in for one family's iptables that obeys the kernel's rules.

Tests of everything above the kernel edge run against it by the thousand.  It refuses what the kernel
refuses (unknown chains and tables, removal of chains in use, loops, bad rule numbers), applies each table
section as a whole or not at all, and can be told to fail in the ways a node fails.  A differential test holds
it to both real variants.

Rules are kept as the text they were given: `save` prints what iptables-save would print if they were given in
iptables-save's form.  What a rule matches is not checked; use `refuse_rules_matching` for that.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from kproxy.addresses import Family
from kproxy.backends.iptables.canonical import canonical_rule, tokenize
from kproxy.kernel.xtables.types import FailureKind, RestoreError, Stamp, Variant

BUILT_IN = {
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "raw": ("PREROUTING", "OUTPUT"),
    "security": ("INPUT", "FORWARD", "OUTPUT"),
}
_NFT_ORDER = ("mangle", "security", "raw", "filter", "nat")
_VERDICTS = frozenset({"ACCEPT", "DROP", "RETURN", "QUEUE"})
_EXTENSIONS = frozenset({
    "AUDIT", "CHECKSUM", "CLASSIFY", "CONNMARK", "CT", "DNAT", "DSCP", "HL", "LOG", "MARK", "MASQUERADE",
    "NETMAP", "NFLOG", "NFQUEUE", "NOTRACK", "REDIRECT", "REJECT", "SET", "SNAT", "TCPMSS", "TEE", "TPROXY",
    "TRACE", "TTL",
})  # fmt: skip
_CHAIN_NAME_MAX = 28  # XT_EXTENSION_MAXNAMELEN less the terminating NUL
_POLICIES = frozenset({"ACCEPT", "DROP"})
_LONG_COMMANDS = {
    "--append": "-A", "--insert": "-I", "--delete": "-D", "--delete-chain": "-X", "--flush": "-F",
    "--new-chain": "-N", "--new": "-N", "--policy": "-P",
}  # fmt: skip


class _RefusedError(Exception):
    """A line, or the section at its COMMIT, is not acceptable."""


@dataclass(slots=True)
class _Table:
    """Chains of one table: name -> rules in the form `-A CHAIN ...`; built-in chains in hook order first."""

    name: str
    policies: dict[str, str]
    chains: dict[str, list[str]]
    references: Counter[str] = field(default_factory=Counter)
    hooked: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Fault:
    kind: FailureKind
    message: str
    line: int | None
    after_tables: int | None


class FakeXtables:
    """The Xtables protocol over dictionaries, with faults to order.

    `restores` holds the inputs of all restores that were attempted, newest last.
    """

    def __init__(
        self, family: Family = Family.IPV4, variant: Variant = Variant.NFT, *, random_fully: bool = True
    ) -> None:
        self.family = family
        self.variant = variant
        self.random_fully = random_fully
        self.restores: list[bytes] = []
        self.saves = 0
        self._tables: dict[str, _Table] = {}
        self._generation = 1
        self._faults: list[_Fault] = []
        self._refusals: list[re.Pattern[str]] = []

    # The protocol ------------------------------------------------------------------------------------

    def restore(self, text: bytes) -> None:
        """Apply a restore input as iptables-restore --noflush does.  Raises RestoreError."""
        self.restores.append(text)
        fault = self._faults.pop(0) if self._faults else None
        if fault is not None and fault.after_tables is None:
            raise RestoreError(fault.kind, fault.message, fault.line)
        self._apply(text.decode("utf-8", "surrogateescape"), fault)

    def save(self, table: str | None = None) -> bytes:
        """The dump iptables-save would print, without comments."""
        self.saves += 1
        if table is not None and table not in BUILT_IN:
            raise RestoreError(FailureKind.MISSING, f"table '{table}' does not exist")
        if table is not None and self.variant is Variant.LEGACY:
            self._table(table)
        order = _NFT_ORDER if self.variant is Variant.NFT else tuple(reversed(self._tables))
        wanted = [name for name in order if name in self._tables and table in (None, name)]
        return "".join(_printed(self._tables[name]) for name in wanted).encode("utf-8", "surrogateescape")

    def counters(self, table: str) -> bytes:
        """The rules of one table; no packet ever met one of them."""
        return b"".join(
            b"[0:0] " + line if line.startswith(b"-A ") else line
            for line in self.save(table).splitlines(keepends=True)
        )

    def stamp(self) -> Stamp:
        """A stamp that differs from an earlier one exactly if something was changed in between."""
        return Stamp((str(self.variant), self._generation))

    # Faults ------------------------------------------------------------------------------------------

    def fail_next(
        self, kind: FailureKind, *, times: int = 1, message: str = "injected failure", line: int | None = None
    ) -> None:
        """Let the next `times` restores fail with `kind` before they change anything."""
        self._faults += [_Fault(kind, message, line, None)] * times

    def lock_for(self, attempts: int) -> None:
        """Let the next `attempts` restores find the xtables lock held."""
        message = "Another app is currently holding the xtables lock. Stopped waiting after 5s."
        self.fail_next(FailureKind.LOCKED, times=attempts, message=message)

    def kill_after_tables(self, tables: int) -> None:
        """Let the next restore be killed after `tables` COMMITs: those are applied, the rest is not."""
        self._faults.append(_Fault(FailureKind.INTERRUPTED, "killed by signal 9", None, tables))

    def refuse_rules_matching(self, pattern: str) -> None:
        """Refuse every rule whose line the regular expression finds, as a kernel without the match would."""
        self._refusals.append(re.compile(pattern))

    def accept_all_rules(self) -> None:
        """Take back every refuse_rules_matching."""
        self._refusals.clear()

    def edit(self, text: str) -> None:
        """Change the rules as another program would: a restore input, past all faults and uncounted."""
        refusals, self._refusals = self._refusals, []
        try:
            self._apply(text, None)
        finally:
            self._refusals = refusals

    def flush_table(self, table: str) -> None:
        """Lose a whole table with all chains, as `nft flush ruleset` or a firewall's restart does it."""
        if self._tables.pop(table, None) is not None:
            self._generation += 1

    def chains(self, table: str) -> dict[str, list[str]]:
        """A copy of the table's chains and rules; empty if the table was never used."""
        found = self._tables.get(table)
        return {name: list(rules) for name, rules in found.chains.items()} if found else {}

    # Working -----------------------------------------------------------------------------------------

    def _apply(self, text: str, fault: _Fault | None) -> None:
        section: _Section | None = None
        committed = 0
        number = 0
        for number, line in enumerate(text.split("\n"), 1):
            try:
                if section is not None and line.startswith(("-", ":", "[")):
                    section.line(line, number)
                elif not line or line[0] == "#":
                    continue
                elif section is not None and line.rstrip() == "COMMIT":
                    if fault is not None and committed == fault.after_tables:
                        raise RestoreError(fault.kind, fault.message)
                    self._commit(section)
                    section, committed = None, committed + 1
                elif section is None and line[0] == "*":
                    section = _Section(self._peek(line[1:].strip()), self._refusals, self.variant)
                else:
                    raise _RefusedError(f"Bad argument `{line}'")
            except _RefusedError as error:
                self._refused(error, number)
        if section is not None:
            self._refused(_RefusedError("COMMIT expected"), number)
        if fault is not None:
            raise RestoreError(fault.kind, fault.message)

    def _refused(self, error: _RefusedError, number: int) -> None:
        raise RestoreError(FailureKind.RULE, f"line {number} failed: {error}", number) from error

    def _peek(self, name: str) -> _Table:
        if name not in BUILT_IN:
            raise _RefusedError(f"table name '{name}' invalid")
        if self.variant is Variant.LEGACY:
            return self._table(name)
        return self._tables.get(name) or _new_table(name)

    def _table(self, name: str) -> _Table:
        return self._tables.setdefault(name, _new_table(name))

    def _commit(self, section: _Section) -> None:
        if section.commit():
            self._tables[section.table.name] = section.table
            self._generation += 1


class _Section:
    """One table section: changes gathered on the side until COMMIT."""

    def __init__(self, table: _Table, refusals: list[re.Pattern[str]], variant: Variant) -> None:
        self.table = table
        self._refusals = refusals
        self._variant = variant
        self._chains: dict[str, list[str] | None] = {}  # None: removed
        self._references: defaultdict[str, int] = defaultdict(int)
        self._policies: dict[str, str] = {}
        self._jumped: set[str] = set()
        self._hooked: set[str] = set()
        self._written: set[str] = set()  # chains with rules added or deleted since they were last flushed
        self._changed = False

    def line(self, line: str, number: int) -> None:
        """Take one line of the section.  Raises _RefusedError."""
        if line.startswith("-A "):
            self._append(line[3:])
            return
        if line[0] == ":":
            self._declare(line)
            return
        if line[0] == "[":
            line = line.partition("] ")[2]
        command, _, rest = line.partition(" ")
        command = _LONG_COMMANDS.get(command, command)
        handler = self._HANDLERS.get(command)
        if handler is None:
            raise _RefusedError(f"unknown option {command!r} in line {number}")
        handler(self, rest)

    def commit(self) -> bool:
        """Write the changes to the table; whether there were any.  Raises _RefusedError, changing nothing."""
        if self._jumped:
            self._refuse_loops()
        for name, rules in self._chains.items():
            if rules is None:
                self.table.chains.pop(name, None)
            else:
                self.table.chains[name] = rules
        self.table.references.update(self._references)
        self.table.policies.update(self._policies)
        self.table.hooked.update(self._hooked)
        return self._changed or bool(self._written)

    def _declare(self, line: str) -> None:
        name, _, rest = line[1:].partition(" ")
        policy = rest.partition(" ")[0]
        if not policy:
            raise _RefusedError("policy invalid")
        if name in self.table.policies:
            if self._variant is Variant.NFT:  # sent to the kernel as an update, whatever the policy was
                self._hooked.add(name)
                self._changed = True
            if policy in _POLICIES and self._policies.get(name, self.table.policies[name]) != policy:
                self._policies[name] = policy
                self._changed = True
            return
        if policy != "-" and self._variant is Variant.LEGACY:
            raise _RefusedError(f"Can't set policy `{policy}' on `{name}': Bad built-in chain name")
        written = name in self._written
        if self._rules(name) is None:
            self._create(name)
        else:
            self._flush_chain(name)
            self._changed = self._changed or written

    def _create(self, name: str) -> None:
        if len(name) > _CHAIN_NAME_MAX:
            raise _RefusedError(f"Invalid chain name `{name}' ({_CHAIN_NAME_MAX} chars max)")
        if not name or name[0] in "-!" or name in _VERDICTS:
            raise _RefusedError(f"chain name `{name}' not allowed")
        self._chains[name] = []
        self._changed = True

    def _new(self, rest: str) -> None:
        name = rest.strip()
        if self._rules(name) is not None:
            raise _RefusedError("Chain already exists.")
        self._create(name)

    def _flush(self, rest: str) -> None:
        name = rest.strip()
        if name:
            self._flush_chain(name)
            return
        for chain in [*self.table.chains, *self._chains]:
            if self._rules(chain) is not None:
                self._flush_chain(chain)

    def _hook(self, name: str) -> None:
        if self._variant is Variant.NFT and name in self.table.policies and name not in self.table.hooked:
            self._hooked.add(name)
            self._changed = True

    def _flush_chain(self, name: str) -> None:
        rules = self._existing(name)
        self._hook(name)
        if rules:
            self._unreference(rules)
            self._chains[name] = []
        self._written.discard(name)
        self._changed = self._changed or bool(self.table.chains.get(name))

    def _remove(self, rest: str) -> None:
        name = rest.strip()
        if not name:
            raise _RefusedError("-X without a chain is not supported here")
        rules = self._existing(name)
        if name in self.table.policies:
            raise _RefusedError("a built-in chain cannot be deleted")
        if rules:
            raise _RefusedError(f"CHAIN_DEL failed (Device or resource busy): chain {name}")
        if self.table.references[name] + self._references.get(name, 0) > 0:
            raise _RefusedError(f"CHAIN_DEL failed (Device or resource busy): chain {name}")
        self._chains[name] = None
        self._changed = True

    def _policy(self, rest: str) -> None:
        name, _, policy = rest.strip().partition(" ")
        if name not in self.table.policies or policy not in _POLICIES:
            raise _RefusedError("Bad built-in chain name")
        if self._policies.get(name, self.table.policies[name]) != policy:
            self._policies[name] = policy
            self._changed = True

    def _append(self, rest: str) -> None:
        name = rest[: rest.find(" ")] if " " in rest else rest
        rules = self._writable(name)
        rule = f"-A {rest}"
        self._check(name, rule)
        rules.append(rule)
        self._hook(name)
        self._written.add(name)

    def _insert(self, rest: str) -> None:
        name, _, spec = rest.partition(" ")
        position = 1
        first, _, others = spec.partition(" ")
        if first.isdigit():
            position, spec = int(first), others
        rules = self._existing(name)
        if not 1 <= position <= len(rules) + 1:
            raise _RefusedError("Index of insertion too big.")
        rule = f"-A {name} {spec}".rstrip()
        self._check(name, rule)
        self._writable(name).insert(position - 1, rule)
        self._hook(name)
        self._written.add(name)

    def _delete(self, rest: str) -> None:
        name, _, spec = rest.partition(" ")
        rules = self._existing(name)
        if spec.strip().isdigit():
            position = int(spec)
            if not 1 <= position <= len(rules):
                raise _RefusedError("Index of deletion too big.")
        else:
            position = _position(rules, f"-A {rest}")
        self._unreference([self._writable(name).pop(position - 1)])
        self._jumped.add(name)  # what the rule kept the kernel from seeing may be a loop
        self._written.add(name)

    def _check(self, chain: str, rule: str) -> None:
        for pattern in self._refusals:
            if pattern.search(rule):
                raise _RefusedError(f"RULE_APPEND failed (No such file or directory): rule in chain {chain}")
        target = _target(rule)
        if target is None:
            return
        if target in _VERDICTS:
            if target == "DROP" and self.table.name == "nat":
                raise _RefusedError('The "nat" table is not intended for filtering')
            return
        if self._rules(target) is None:
            if target in _EXTENSIONS:
                return
            raise _RefusedError(f"Chain '{target}' does not exist")
        if target in self.table.policies:
            raise _RefusedError(f"RULE_APPEND failed (Operation not supported): rule in chain {chain}")
        self._references[target] += 1
        self._jumped.add(chain)

    def _unreference(self, rules: list[str]) -> None:
        for rule in rules:
            target = _target(rule)
            if target is not None and target not in _VERDICTS:
                self._references[target] -= 1

    def _rules(self, name: str) -> list[str] | None:
        return self._chains[name] if name in self._chains else self.table.chains.get(name)

    def _existing(self, name: str) -> list[str]:
        rules = self._rules(name)
        if rules is None:
            raise _RefusedError("No chain/target/match by that name.")
        return rules

    def _writable(self, name: str) -> list[str]:
        rules = self._chains.get(name)
        if rules is None:
            rules = list(self._existing(name))
            self._chains[name] = rules
        return rules

    def _refuse_loops(self) -> None:
        """The kernel walks from the built-in chains; a loop nothing leads to is none of its business."""
        if self._has_loop(self._jumped) and self._has_loop(set(self.table.policies)):
            raise _RefusedError("RULE_APPEND failed (Too many links)")

    def _has_loop(self, roots: set[str]) -> bool:
        done: set[str] = set()
        for root in roots:
            if root in done:
                continue
            path = {root}
            stack = [(root, self._targets(root))]
            while stack:
                chain, targets = stack[-1]
                if not targets:
                    stack.pop()
                    path.discard(chain)
                    done.add(chain)
                    continue
                target = targets.pop()
                if target in path:
                    return True
                if target not in done:
                    path.add(target)
                    stack.append((target, self._targets(target)))
        return False

    def _targets(self, chain: str) -> list[str]:
        rules = self._rules(chain) or []
        if self._variant is Variant.LEGACY:
            # x_tables does not look past a rule that always decides (mark_source_chains)
            final = [rules.index(f"-A {chain} -j {v}") for v in _VERDICTS if f"-A {chain} -j {v}" in rules]
            rules = rules[: min(final, default=len(rules))]
        found = {_target(rule) for rule in rules}
        return [name for name in found if name is not None and self._rules(name) is not None]

    _HANDLERS: dict[str, Callable[[_Section, str], None]] = {  # noqa: RUF012  (a constant of the class)
        "-A": _append,
        "-I": _insert,
        "-D": _delete,
        "-F": _flush,
        "-N": _new,
        "-P": _policy,
        "-X": _remove,
    }


def _new_table(name: str) -> _Table:
    built_in = BUILT_IN[name]
    return _Table(name, dict.fromkeys(built_in, "ACCEPT"), {chain: [] for chain in built_in})


def _target(rule: str) -> str | None:
    """The chain or extension a rule jumps or goes to; None for a rule that only counts."""
    at = max(rule.rfind(" -j "), rule.rfind(" -g "))
    if at >= 0 and rule.find('"', at) < 0:
        end = rule.find(" ", at + 4)
        return rule[at + 4 :] if end < 0 else rule[at + 4 : end]
    words = tokenize(rule)
    for position, (word, quoted) in enumerate(words[:-1]):
        if not quoted and word in ("-j", "-g", "--jump", "--goto"):
            return words[position + 1][0]
    return None


def _position(rules: list[str], wanted: str) -> int:
    try:
        return rules.index(wanted) + 1
    except ValueError:
        form = canonical_rule(wanted)
    for position, rule in enumerate(rules, 1):
        if canonical_rule(rule) == form:
            return position
    raise _RefusedError("Bad rule (does a matching rule exist in that chain?).")


def _printed(table: _Table) -> str:
    names = [*table.policies, *sorted(name for name in table.chains if name not in table.policies)]
    lines = [f"*{table.name}"]
    lines += [f":{name} {table.policies.get(name, '-')} [0:0]" for name in names]
    for name in names:
        lines += table.chains[name]
    lines.append("COMMIT\n")
    return "\n".join(lines)
