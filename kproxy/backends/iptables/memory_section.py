"""The changes of one section of a restore input, collected until COMMIT so that a section is atomic.

It refuses what iptables-restore or the kernel refuses, with messages that kproxy recognizes. Matches are not
validated, because only a kernel can do that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from kproxy.backends.iptables.canonical import canonical_rule
from kproxy.backends.iptables.memory_table import Table, target_of
from kproxy.kernel.xtables.types import Variant

VERDICTS = frozenset({"ACCEPT", "DROP", "RETURN", "QUEUE"})
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


class RefusedError(Exception):
    """A line, or the section at its COMMIT, is not acceptable."""


class Section:
    """One table section: changes collected until COMMIT.

    `refuses` returns whether a rule is refused. `jumped`: chains with new jumps, or from which a rule was
    deleted.
    """

    def __init__(
        self, table: Table, variant: Variant, refuses: Callable[[str], bool] = lambda _: False
    ) -> None:
        self.table = table
        self.jumped: set[str] = set()
        self._refuses = refuses
        self._variant = variant
        self._chains: dict[str, list[str] | None] = {}  # None: removed
        self._references: defaultdict[str, int] = defaultdict(int)
        self._policies: dict[str, str] = {}
        self._hooked: set[str] = set()
        self._written: set[str] = set()  # chains with rules added or deleted since they were last flushed
        self._changed = False

    def line(self, line: str, number: int) -> None:
        """Take one line of the section.  Raises RefusedError."""
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
            raise RefusedError(f"unknown option {command!r} in line {number}")
        handler(self, rest)

    def commit(self) -> bool:
        """Write the changes to the table; return whether there were any."""
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
            raise RefusedError("policy invalid")
        if name in self.table.policies:
            if self._variant is Variant.NFT:  # sent to the kernel as an update, whatever the policy was
                self._hooked.add(name)
                self._changed = True
            if policy in _POLICIES and self._policies.get(name, self.table.policies[name]) != policy:
                self._policies[name] = policy
                self._changed = True
            return
        if policy != "-" and self._variant is Variant.LEGACY:
            raise RefusedError(f"Can't set policy `{policy}' on `{name}': Bad built-in chain name")
        written = name in self._written
        if self.rules(name) is None:
            self._create(name)
        else:
            self._flush_chain(name)
            self._changed = self._changed or written

    def _create(self, name: str) -> None:
        if len(name) > _CHAIN_NAME_MAX:
            raise RefusedError(f"Invalid chain name `{name}' ({_CHAIN_NAME_MAX} chars max)")
        if not name or name[0] in "-!" or name in VERDICTS:
            raise RefusedError(f"chain name `{name}' not allowed")
        self._chains[name] = []
        self._changed = True

    def _new(self, rest: str) -> None:
        name = rest.strip()
        if self.rules(name) is not None:
            raise RefusedError("Chain already exists.")
        self._create(name)

    def _flush(self, rest: str) -> None:
        name = rest.strip()
        if name:
            self._flush_chain(name)
            return
        for chain in [*self.table.chains, *self._chains]:
            if self.rules(chain) is not None:
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
            raise RefusedError("-X without a chain is not supported here")
        rules = self._existing(name)
        if name in self.table.policies:
            raise RefusedError("a built-in chain cannot be deleted")
        if rules:
            raise RefusedError(f"CHAIN_DEL failed (Device or resource busy): chain {name}")
        if self.table.references[name] + self._references.get(name, 0) > 0:
            raise RefusedError(f"CHAIN_DEL failed (Device or resource busy): chain {name}")
        self._chains[name] = None
        self._changed = True

    def _policy(self, rest: str) -> None:
        name, _, policy = rest.strip().partition(" ")
        if name not in self.table.policies or policy not in _POLICIES:
            raise RefusedError("Bad built-in chain name")
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
            raise RefusedError("Index of insertion too big.")
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
                raise RefusedError("Index of deletion too big.")
        else:
            position = _position(rules, f"-A {rest}")
        self._unreference([self._writable(name).pop(position - 1)])
        self.jumped.add(name)  # what the rule kept the kernel from seeing may be a loop
        self._written.add(name)

    def _check(self, chain: str, rule: str) -> None:
        if self._refuses(rule):
            raise RefusedError(f"RULE_APPEND failed (No such file or directory): rule in chain {chain}")
        target = target_of(rule)
        if target is None:
            return
        if target in VERDICTS:
            if target == "DROP" and self.table.name == "nat":
                raise RefusedError('The "nat" table is not intended for filtering')
            return
        if self.rules(target) is None:
            if target in _EXTENSIONS:
                return
            raise RefusedError(f"Chain '{target}' does not exist")
        if target in self.table.policies:
            raise RefusedError(f"RULE_APPEND failed (Operation not supported): rule in chain {chain}")
        self._references[target] += 1
        self.jumped.add(chain)

    def _unreference(self, rules: list[str]) -> None:
        for rule in rules:
            target = target_of(rule)
            if target is not None and target not in VERDICTS:
                self._references[target] -= 1

    def rules(self, name: str) -> list[str] | None:
        """The rules of a chain as of now; None if it does not exist."""
        return self._chains[name] if name in self._chains else self.table.chains.get(name)

    def _existing(self, name: str) -> list[str]:
        rules = self.rules(name)
        if rules is None:
            raise RefusedError("No chain/target/match by that name.")
        return rules

    def _writable(self, name: str) -> list[str]:
        rules = self._chains.get(name)
        if rules is None:
            rules = list(self._existing(name))
            self._chains[name] = rules
        return rules

    _HANDLERS: dict[str, Callable[[Section, str], None]] = {  # noqa: RUF012  (a constant of the class)
        "-A": _append,
        "-I": _insert,
        "-D": _delete,
        "-F": _flush,
        "-N": _new,
        "-P": _policy,
        "-X": _remove,
    }


def _position(rules: list[str], wanted: str) -> int:
    try:
        return rules.index(wanted) + 1
    except ValueError:
        form = canonical_rule(wanted)
    for position, rule in enumerate(rules, 1):
        if canonical_rule(rule) == form:
            return position
    raise RefusedError("Bad rule (does a matching rule exist in that chain?).")
