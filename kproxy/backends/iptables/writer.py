"""Write differences by restores, and update the applied state after each.

Every restore covers one table, so it is applied as a whole or not at all. For a group of services the order
is: add REJECT and DROP rules (filter), change translation (nat), remove REJECT and DROP rules (filter). So an
address is translated or refused at any moment.
"""

import enum
import re
from collections import Counter
from collections.abc import Iterable, Mapping

from kproxy.backends.core.foreign_writes import ForeignWrites
from kproxy.backends.iptables.cleanup import Removal, remove_in_parts
from kproxy.backends.iptables.hairpin import ipvs_loop_backs
from kproxy.backends.iptables.kernel_state import NO_RULES, UNOWNED, AppliedState
from kproxy.backends.iptables.layout import Layout
from kproxy.backends.iptables.names import ChainId
from kproxy.backends.iptables.restore import edit, restore_text
from kproxy.backends.iptables.rules import ServiceRules
from kproxy.backends.iptables.shared import Entry, Placement, changed_chains, entries_of, replaced
from kproxy.kernel.xtables.types import FailureKind, RestoreError, Xtables

_OUTCOME_UNKNOWN = frozenset({FailureKind.INTERRUPTED, FailureKind.OTHER})
"""Failures after which the restore may or may not have been applied."""

_CHAIN = re.compile(r"^(?::|-[AIDX] )(\S+)", re.MULTILINE)
"""Matches the chain that a line of a restore makes, changes or deletes."""


class Part(enum.Flag):
    """Parts of a service's rules to write; a big change writes one part of all services after the other."""

    REJECTS = enum.auto()
    CHAINS = enum.auto()
    SHARED = enum.auto()
    DELETIONS = enum.auto()
    ALL = REJECTS | CHAINS | SHARED | DELETIONS


class _Step:
    """One restore under construction, and the changes of the applied state once it succeeds."""

    def __init__(self, table: str) -> None:
        self.table = table
        self.declare: list[str] = []
        self.rules: list[str] = []
        self.gone: list[str] = []
        self.reached: dict[ChainId, tuple[str, ...]] = {}
        self.entries: dict[str, list[Entry]] = {}


class Writer:
    """Writes through `xtables` and updates the applied state `kernel`. Its methods may raise RestoreError."""

    def __init__(
        self,
        xtables: Xtables,
        watch: ForeignWrites,
        layout: Layout,
        kernel: AppliedState,
        written: Counter[str],
        rules: Counter[str] | None = None,
    ) -> None:
        self.kernel = kernel
        self.written = written
        self._rules_in: Counter[str] = Counter() if rules is None else rules
        self._xtables = xtables
        self._watch = watch
        self._layout = layout

    def base(self, *, keep_transitional: bool) -> None:
        """Write base chains that differ, create missing shared chains and insert missing jumps.

        With `keep_transitional`, rules that services need until their own are written stay: chains of another
        layout that serve this one too, and an IPVS mode's hairpin masquerade.
        """
        for table in ("nat", "filter", "mangle"):
            self._base_of(table, keep_transitional=keep_transitional)

    def group(self, changes: Mapping[str, ServiceRules], part: Part = Part.ALL) -> None:
        """Write a group of services; an empty ServiceRules removes one."""
        kernel = self.kernel
        writes: dict[str, str] = {}
        deletions: list[str] = []
        for key, new in changes.items():
            old = kernel.services.get(key, NO_RULES)
            if Part.CHAINS in part:
                writes |= {c: text for c, text in new.chains.items() if old.chains.get(c) != text}
            if Part.DELETIONS in part:
                deletions += [chain for chain in old.chains if chain not in new.chains]
        differs = self._shared_differs(changes)
        shared = changes if differs and Part.SHARED in part else None
        delete = Part.DELETIONS in part
        if differs and part & (Part.REJECTS | Part.SHARED):
            self._filter(changes, keep_old=True, delete=delete)
        self._nat(writes, deletions, shared, delete=delete)
        # The next restore may fail: table nat is recorded before it.
        kernel.stale.difference_update(writes)
        for key, new in changes.items():
            self._record(key, new, part)
        if shared is not None:
            self._filter({}, keep_old=False, delete=delete)

    def defer_delete(self, key: str, new: ServiceRules) -> None:
        """Record the chains that a service does not need any more as stale, to be deleted later."""
        old = self.kernel.services.get(key, NO_RULES)
        self.kernel.stale.update(chain for chain in old.chains if chain not in new.chains)
        self._record(key, new, Part.DELETIONS)

    def settle(self, *, delete: bool = True) -> None:
        """Write all shared chains for the recorded services, independent of their current rules.

        Chains that are not needed are deleted, or emptied unless `delete`.
        """
        self.kernel.entries.clear()
        self._filter({}, keep_old=True, delete=delete)
        self._nat({}, (), {}, delete=delete)
        self._filter({}, keep_old=False, delete=delete)

    def narrow(self) -> None:
        """Remove the filter lines that a refused group left beside those of the recorded services."""
        self._filter({}, keep_old=False, delete=True)

    def empty_stale(self, chains: Iterable[str]) -> None:
        """Empty per-service chains that belong to no service, so that they refer to no other chains."""
        self._restore("nat", declare=chains, rules=[])

    def delete_stale(self, chains: Iterable[str]) -> None:
        """Delete per-service chains that belong to no service."""
        doomed = tuple(chains)
        self._nat({}, doomed, None, delete=True)
        self.kernel.stale.difference_update(doomed)

    def remove(self, removal: Removal) -> Removal:
        """Remove base chains of a former mode, with the jumps to them; return the removal done."""
        try:
            with self._watch.writing():
                self._xtables.restore(removal.text())
        except RestoreError as error:
            if error.kind is not FailureKind.RULE:
                raise
            removal = remove_in_parts(self._xtables, removal)
        self.written["restores"] += 1
        self.written["chains_deleted"] += len(removal.chains) - len(removal.kept)
        return removal

    def _base_of(self, table: str, *, keep_transitional: bool) -> None:
        kernel = self.kernel
        transitional = self._layout.transitional if keep_transitional else {}
        declared: dict[ChainId, tuple[str, ...]] = {}
        for chain_id, text in self._layout.base.items():
            if chain_id[0] != table:
                continue
            rules = tuple(text.splitlines(keepends=True)) if text is not None else None
            standing = kernel.chains.get(chain_id)
            if standing is not None and "".join(standing) == transitional.get(chain_id):
                continue
            if keep_transitional and rules and standing and not ipvs_loop_backs(rules):
                rules = ipvs_loop_backs(standing) + rules
            if standing is None or (rules is not None and standing != rules):
                declared[chain_id] = rules or ()
        for placement in self._layout.shared.values():
            if placement.root[0] == table and placement.root not in kernel.chains:
                declared[placement.root] = ()
        jumps = [j for j in self._layout.jumps if j.table == table and j not in kernel.jumps]
        if not declared and not jumps:
            return
        rules_text = [line for lines in declared.values() for line in lines]
        inserted: Counter[str] = Counter()
        for jump in jumps:
            place = kernel.places.get(jump)
            # Jumps that were inserted before are first, so the place has moved by their number.
            rules_text.append(jump.insertion_at(1 if place is None else place + inserted[jump.chain]))
            inserted[jump.chain] += 1
        self._restore(table, declare=[chain for _, chain in declared], rules=rules_text)
        kernel.chains |= declared
        kernel.jumps.update(jumps)

    def _shared_differs(self, changes: Mapping[str, ServiceRules]) -> bool:
        services = self.kernel.services
        return any(services.get(key, NO_RULES).shared != new.shared for key, new in changes.items())

    def _filter(self, changes: Mapping[str, ServiceRules], *, keep_old: bool, delete: bool) -> None:
        """Add the filter lines of some services (`keep_old`), or remove those that are not recorded.

        New lines are placed before the old ones of an address, so that they take effect immediately.
        """
        kernel = self.kernel
        step = _Step("filter")
        if keep_old:
            kernel.widened.update(changes)
        for field, placement in self._in_table("filter"):
            if keep_old:
                lines = {}
                for key, new in changes.items():
                    old = getattr(kernel.services.get(key, NO_RULES).shared, field)
                    lines[key] = tuple(dict.fromkeys((*getattr(new.shared, field), *old)))
                if field not in kernel.entries:
                    lines[UNOWNED] = tuple(kernel.unowned(field, placement))
                    kernel.widened.add(UNOWNED)
            else:
                recorded = {key: kernel.services.get(key, NO_RULES) for key in kernel.widened}
                lines = {key: getattr(rules.shared, field) for key, rules in recorded.items()}
            self._place(field, placement, lines, step)
        self._take(step, delete=delete)
        if not keep_old:
            kernel.widened.clear()

    def _nat(
        self,
        writes: Mapping[str, str],
        deletions: Iterable[str],
        shared: Mapping[str, ServiceRules] | None,
        *,
        delete: bool,
    ) -> None:
        step = _Step("nat")
        step.declare += writes
        step.rules += [writes[chain] for chain in sorted(writes)]
        if shared is not None:
            for field, placement in self._in_table("nat"):
                lines = {key: getattr(rules.shared, field) for key, rules in shared.items()}
                self._place(field, placement, lines, step)
        self._take(step, deletions, delete=delete)

    def _in_table(self, table: str) -> list[tuple[str, Placement]]:
        shared = self._layout.shared
        return [(field, placement) for field, placement in shared.items() if placement.root[0] == table]

    def _place(
        self, field: str, placement: Placement, lines: Mapping[str, Iterable[str]], step: _Step
    ) -> None:
        """Add to `step` the edits of the shared chains that give these services these lines."""
        kernel, table = self.kernel, placement.root[0]
        old = kernel.entries.get(field)
        if old is None:
            new, _ = replaced(placement, entries_of(placement, kernel.lines(field)), lines)
            wanted = placement.chains(new)
            standing = {c for t, c in kernel.chains if t == table and placement.contains(c)}
            gone = standing - wanted.keys()
        else:
            new, keys = replaced(placement, old, lines)
            if not keys:
                return
            wanted, gone = changed_chains(
                placement, old, new, keys, lambda chain: bool(kernel.chains.get((table, chain)))
            )
        step.entries[field] = new
        for chain, rules in wanted.items():
            change = edit(chain, kernel.chains.get((table, chain)), rules)
            if change is not None:
                step.reached[table, chain] = rules
                step.rules += change.lines
                if change.flush:
                    step.declare.append(chain)
        step.gone += [chain for chain in gone if (table, chain) in kernel.chains]

    def _take(self, step: _Step, deletions: Iterable[str] = (), *, delete: bool) -> None:
        """Write a step and record it; shared chains not needed any more are deleted, or emptied."""
        kernel = self.kernel
        doomed = list(deletions)
        if delete:
            doomed += step.gone
        else:
            step.declare += step.gone
        if step.declare or step.rules or doomed:
            self._restore(step.table, declare=step.declare, rules=step.rules, delete=doomed)
            self.written["chains_deleted"] += len(doomed)
        kernel.chains |= step.reached
        kernel.emptied.difference_update(step.reached)
        for chain_id in [(step.table, chain) for chain in step.gone]:
            if delete:
                del kernel.chains[chain_id]
                kernel.emptied.discard(chain_id)
            else:
                kernel.chains[chain_id] = ()
                kernel.emptied.add(chain_id)
        kernel.entries |= step.entries

    def _record(self, key: str, new: ServiceRules, part: Part) -> None:
        services = self.kernel.services
        if part is Part.ALL:
            result = new
        else:
            old = services.get(key, NO_RULES)
            chains = old.chains
            if Part.CHAINS in part:
                chains = chains | new.chains
            if Part.DELETIONS in part:
                chains = {c: text for c, text in chains.items() if c in new.chains}
            result = ServiceRules(chains, new.shared if Part.SHARED in part else old.shared)
            if result == new:
                result = new
        if result.empty:
            services.pop(key, None)
        else:
            services[key] = result

    def _restore(
        self, table: str, *, declare: Iterable[str], rules: list[str], delete: Iterable[str] = ()
    ) -> None:
        chains = tuple(declare)
        text = restore_text(table, declare=chains, rules=rules, delete=delete)
        try:
            with self._watch.writing():
                self._xtables.restore(text)
        except RestoreError as error:
            if error.kind in _OUTCOME_UNKNOWN:
                self.kernel.unsure.update((table, chain) for chain in _CHAIN.findall(text.decode()))
            raise
        self.written["restores"] += 1
        self.written["chains"] += len(chains)
        count = sum(rule.count("\n") for rule in rules)
        self.written["rules"] += count
        self._rules_in[table] += count
