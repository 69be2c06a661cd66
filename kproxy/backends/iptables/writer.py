"""Turn differences into restores and keep the record of the kernel in step with what they achieved.

Every restore covers one table, so it is applied as a whole or not at all. For a group of services the order
is: verdicts that refuse are added (filter), translation changes (nat), verdicts that refuse are removed
(filter). At no moment is an address neither translated nor refused.
"""

import enum
from collections import Counter
from collections.abc import Iterable, Mapping

from kproxy.backends.iptables.cleanup import Removal
from kproxy.backends.iptables.kernel_state import NO_RULES, KernelState
from kproxy.backends.iptables.layout import Layout
from kproxy.backends.iptables.render import ServiceRules
from kproxy.backends.iptables.restore import edit, restore_text
from kproxy.backends.iptables.static import ChainId
from kproxy.backends.iptables.watch import ChangeWatch
from kproxy.kernel.xtables.types import Xtables


class Part(enum.Flag):
    """Which part of a service's rules to write; a big change takes the parts one after the other."""

    REFUSALS = enum.auto()
    CHAINS = enum.auto()
    SHARED = enum.auto()
    DELETIONS = enum.auto()
    ALL = REFUSALS | CHAINS | SHARED | DELETIONS


class Writer:
    """Writes through `xtables` and moves `kernel` forward. Every method may raise RestoreError."""

    def __init__(
        self,
        xtables: Xtables,
        watch: ChangeWatch,
        layout: Layout,
        kernel: KernelState,
        written: Counter[str],
        rules: Counter[str] | None = None,
    ) -> None:
        self.kernel = kernel
        self.written = written
        self._rules_in: Counter[str] = Counter() if rules is None else rules
        self._xtables = xtables
        self._watch = watch
        self._layout = layout

    def base(self) -> None:
        """Write the fixed chains, create the shared ones and insert the jumps, where any is not right."""
        for table in ("nat", "filter", "mangle"):
            self._base_of(table)

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
        if differs and part & (Part.REFUSALS | Part.SHARED):
            self._filter(changes, keep_old=True)
        self._nat(writes, deletions, shared)
        # What follows may fail: the record has to say by now what stands in table nat.
        kernel.stale.difference_update(writes)
        for key, new in changes.items():
            self._record(key, new, part)
        if shared is not None:
            self._filter({}, keep_old=False)

    def abandon(self, key: str, new: ServiceRules) -> None:
        """Count the chains a service does not need any more as stale instead of deleting them with it."""
        old = self.kernel.services.get(key, NO_RULES)
        self.kernel.stale.update(chain for chain in old.chains if chain not in new.chains)
        self._record(key, new, Part.DELETIONS)

    def settle(self) -> None:
        """Bring the shared chains to what the recorded services need, whatever they hold now."""
        self._filter({}, keep_old=True)
        self._nat({}, (), {})
        self._filter({}, keep_old=False)

    def empty_stale(self, chains: Iterable[str]) -> None:
        """Empty per-service chains that belong to no service, so that they hold no others back."""
        self._restore("nat", declare=chains, rules=[])

    def delete_stale(self, chains: Iterable[str]) -> None:
        """Delete per-service chains that belong to no service."""
        doomed = tuple(chains)
        self._nat({}, doomed, None)
        self.kernel.stale.difference_update(doomed)

    def remove(self, removal: Removal) -> None:
        """Take away fixed chains of a former mode, with the jumps into them."""
        with self._watch.writing():
            self._xtables.restore(removal.text())
        self.written["restores"] += 1
        self.written["chains_deleted"] += len(removal.chains) - len(removal.kept)

    def _base_of(self, table: str) -> None:
        kernel = self.kernel
        declared: dict[ChainId, tuple[str, ...]] = {}
        for chain_id, text in self._layout.fixed.items():
            if chain_id[0] != table:
                continue
            rules = tuple(text.splitlines(keepends=True)) if text is not None else None
            standing = kernel.chains.get(chain_id)
            if standing is None or (rules is not None and standing != rules):
                declared[chain_id] = rules or ()
        for chain_id in self._layout.shared.values():
            if chain_id[0] == table and chain_id not in kernel.chains:
                declared[chain_id] = ()
        jumps = [j for j in self._layout.jumps if j.table == table and j not in kernel.jumps]
        if not declared and not jumps:
            return
        rules_text = [line for lines in declared.values() for line in lines]
        rules_text += [jump.insertion for jump in jumps]
        self._restore(table, declare=[chain for _, chain in declared], rules=rules_text)
        kernel.chains |= declared
        kernel.jumps.update(jumps)

    def _shared_differs(self, changes: Mapping[str, ServiceRules]) -> bool:
        services = self.kernel.services
        return any(services.get(key, NO_RULES).shared != new.shared for key, new in changes.items())

    def _shared_in(self, table: str) -> list[tuple[str, ChainId]]:
        return [(field, chain_id) for field, chain_id in self._layout.shared.items() if chain_id[0] == table]

    def _filter(self, changes: Mapping[str, ServiceRules], *, keep_old: bool) -> None:
        kernel = self.kernel
        declare: list[str] = []
        rules: list[str] = []
        reached: dict[ChainId, tuple[str, ...]] = {}
        for field, chain_id in self._shared_in("filter"):
            old = kernel.chains.get(chain_id)
            new = kernel.shared_lines(field, changes)
            if keep_old:
                wanted = set(new)
                if wanted.issubset(old or ()):
                    continue
                new += [line for line in old or () if line not in wanted]
            self._edit(chain_id, old, new, declare, rules, reached)
        if reached:
            self._restore("filter", declare=declare, rules=rules)
            kernel.chains |= reached

    def _nat(
        self,
        writes: Mapping[str, str],
        deletions: Iterable[str],
        shared: Mapping[str, ServiceRules] | None,
    ) -> None:
        kernel = self.kernel
        declare = list(writes)
        rules = [writes[chain] for chain in sorted(writes)]
        reached: dict[ChainId, tuple[str, ...]] = {}
        doomed = list(deletions)
        if shared is not None:
            for field, chain_id in self._shared_in("nat"):
                new = kernel.shared_lines(field, shared, self._layout.tails.get(field, ()))
                self._edit(chain_id, kernel.chains.get(chain_id), new, declare, rules, reached)
        if declare or rules or doomed:
            self._restore("nat", declare=declare, rules=rules, delete=doomed)
            self.written["chains_deleted"] += len(doomed)
            kernel.chains |= reached

    @staticmethod
    def _edit(
        chain_id: ChainId,
        old: tuple[str, ...] | None,
        new: list[str],
        declare: list[str],
        rules: list[str],
        reached: dict[ChainId, tuple[str, ...]],
    ) -> None:
        change = edit(chain_id[1], old, new)
        if change is None:
            return
        if change.flush:
            declare.append(chain_id[1])
        rules += change.lines
        reached[chain_id] = tuple(new)

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
        with self._watch.writing():
            self._xtables.restore(text)
        self.written["restores"] += 1
        self.written["chains"] += len(chains)
        count = sum(rule.count("\n") for rule in rules)
        self.written["rules"] += count
        self._rules_in[table] += count
