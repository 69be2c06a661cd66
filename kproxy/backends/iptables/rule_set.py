"""The iptables rules of one family, as operations of the reconciler.

Services are rendered into rules; the record of the kernel is read from a dump, and updated by each successful
restore. A restore that the kernel refuses is bisected by the reconciler.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog

from kproxy.addresses import Family
from kproxy.backends.core.foreign_writes import ForeignWrites
from kproxy.backends.core.work import Changes, Comparison, DesiredChange, Failure, Observation, SyncWork
from kproxy.backends.iptables import names
from kproxy.backends.iptables.cleanup import plan_removal
from kproxy.backends.iptables.kernel_state import NO_RULES, AppliedState, drift_between, from_observation
from kproxy.backends.iptables.layout import Layout
from kproxy.backends.iptables.layout_selection import Dwell, select_layout
from kproxy.backends.iptables.names import ChainId
from kproxy.backends.iptables.observed import Observed, read
from kproxy.backends.iptables.pieces import is_large, steps
from kproxy.backends.iptables.rules import ServiceRules
from kproxy.backends.iptables.writer import Part, Writer
from kproxy.kernel.xtables.types import FailureKind, RestoreError, Variant, Xtables
from kproxy.plan.model import ServicePlan

log = structlog.stdlib.get_logger(__name__)


class RuleSet:
    """One family's KUBE-* rules; a `larger` layout, if not None, is used while the cluster is large.

    `prepare` restores what rules depend on besides other rules: sysctls and, if called with True because
    rules are about to be written, the objects that rules name.
    """

    errors = (RestoreError,)
    degraded: Mapping[str, str] = {}

    def __init__(
        self,
        layout: Layout,
        xtables: Xtables,
        watch: ForeignWrites,
        *,
        larger: Layout | None = None,
        batch_size: int | None = None,
        prepare: Callable[[bool], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.family: Family = layout.family
        self._layout = self._smaller = layout
        self._larger = larger
        self._xtables = xtables
        self._watch = watch
        self._fixed_batch_size = batch_size
        self._prepare = prepare
        self._dwell = Dwell(clock)
        self._desired: dict[str, ServiceRules] = {}
        self._endpoints = 0
        self._ports = 0
        self._comments = True
        self._kernel: AppliedState | None = None
        self._settled = False
        self._emptied: set[str] = set()

    def set_desired(self, changes: Changes, plans: Mapping[str, ServicePlan]) -> DesiredChange:
        """Render some services; all of them if another layout, or rules without comments, are to be used."""
        changed: set[str] = set()
        for old, new in changes:
            self._endpoints += _endpoints(new) - _endpoints(old)
            self._ports += len(new.ports) - (len(old.ports) if old is not None else 0)
            if not new.ports and self._desired.pop(new.key, None) is not None:
                changed.add(new.key)
        stale = self._choose()
        rendered: Iterable[ServicePlan] = (new for _, new in changes if new.ports)
        if stale or self._comments != self._wants_comments():
            self._comments = self._wants_comments()
            rendered = plans.values()
        for plan in rendered:
            rules = self._layout.render(plan, comments=self._comments)
            if self._desired.get(plan.key) != rules:
                self._desired[plan.key] = rules
                changed.add(plan.key)
        return DesiredChange(changed, stale)

    def use_layout(self, layout: Layout, larger: Layout | None = None) -> bool:
        """Change to other layouts of the same family; False if they are equal. Then all is to be rendered."""
        if (layout, larger) == (self._smaller, self._larger):
            return False
        was_larger = self._layout == self._larger
        self._smaller, self._larger = layout, larger
        self._layout = larger if was_larger and larger is not None else layout
        self._choose()
        return True

    def explain(self, error: Exception) -> Failure:
        """If the lock was not granted, nothing was written; after other failures the state is unknown."""
        assert isinstance(error, RestoreError)  # noqa: S101 - `errors` has no other
        return Failure(
            error.message,
            error.kind.value,
            refused=error.kind is FailureKind.RULE,
            stale=error.kind is not FailureKind.LOCKED,
        )

    def foreign_writes(self) -> int:
        """The number of writes by others so far."""
        return self._watch.foreign_writes

    def observe(self, work: SyncWork, *, compare: bool) -> Observation:  # noqa: ARG002 - nothing is written
        """Read the kernel into the applied state."""
        expected = self._kernel if compare else None
        observed = self._observe()
        drifts = drift_between(expected, observed, self._layout) if expected is not None else ()
        return Observation(self._adopt(observed), drifts)

    def apply(self, work: SyncWork, keys: Sequence[str]) -> tuple[str, ...]:
        """Write the base chains, then the services, a big change in parts, each in batches.

        If the time is limited, large services come last and step by step; what is left is returned.
        """
        self._prepare(True)  # noqa: FBT003
        writer = self._writer(work)
        writer.base(keep_transitional=True)
        settled, self._settled = self._settled, False
        refusals, size = work.refusals, self._batch_size
        large = self._large(keys) if work.limited and size is not None else []
        keys = [key for key in keys if key not in large]
        if size is None or len(keys) <= size:
            self._group(work, writer, keys, Part.ALL)
        else:
            settled = False
            for part in (Part.REJECTS, Part.CHAINS, Part.SHARED, Part.DELETIONS):
                step = len(keys) if part in Part.REJECTS | Part.SHARED else size
                for start in range(0, len(keys), step or 1):
                    self._group(work, writer, keys[start : start + step], part)
                keys = [key for key in keys if key not in work.held]
        left = tuple(key for key in large if not self._in_steps(work, writer, key))
        if not settled:
            self._settle(work, writer)
        elif work.refusals > refusals:
            writer.narrow()
        self._settled = True
        writer.base(keep_transitional=False)
        return left

    def prune(self, work: SyncWork) -> Mapping[str, str]:
        """Delete chains of former modes and of deleted services; one that others refer to is emptied."""
        writer = self._writer(work)
        kernel = writer.kernel
        left = self._prune_emptied(work, writer)
        left |= self._prune_retired(work, writer)
        named = {_object(("nat", chain)): chain for chain in kernel.stale}
        left |= {name: work.postponed[name] for name in named if name in work.postponed}
        stale = sorted(named.keys() - left.keys(), key=lambda name: names.referrers_first(named[name]))
        size = len(stale) if self._batch_size is None else self._batch_size * 4

        def delete(some: Sequence[str]) -> None:
            writer.delete_stale([named[name] for name in some])

        for start in range(0, len(stale), size or 1):
            some = stale[start : start + size]
            try:
                delete(some)
            except RestoreError as error:
                if error.kind is not FailureKind.RULE:
                    raise
                work.check_refusal(error.message)
                writer.empty_stale([named[name] for name in some])
                left |= work.bisect_leftovers(some, delete)
        return left

    def drift(self, *, quiet: bool, full: bool) -> Comparison | None:
        """Compare the kernel with the applied state."""
        self._prepare(False)  # noqa: FBT003
        if self._kernel is None or (quiet and not full):
            return None
        observed = self._observe()
        drifts = drift_between(self._kernel, observed, self._layout)
        return Comparison(drifts, self._adopt(observed) if drifts else None)

    def refresh(self) -> None:
        """Do nothing: no ability of the kernel is remembered."""

    def rules(self) -> dict[str, int]:
        """Number of kproxy's rules in the applied state, by table. May be called from any thread."""
        kernel = self._kernel
        return kernel.rules() if kernel is not None else {}

    def _choose(self) -> bool:
        """Select the layout for the number of service ports and endpoints; True if it changed."""
        size = self._ports + self._endpoints
        wanted = select_layout(self._smaller, self._larger, size, self._layout)
        in_use = self._kernel is not None
        if wanted is self._layout or (in_use and not self._dwell.allows(size)):
            return False
        self._layout = wanted
        if in_use:
            self._dwell.changed()
            log.info("layout_changed", family=self.family.value, scalable=wanted is self._larger, size=size)
        return True

    @property
    def _batch_size(self) -> int | None:
        """Services per restore of a big change; None: all, as with iptables-legacy each copies the table."""
        if self._fixed_batch_size is None and self._xtables.variant is Variant.NFT:
            return self._layout.batch_size
        return self._fixed_batch_size

    def _wants_comments(self) -> bool:
        return self._endpoints <= self._layout.large_cluster_endpoints

    def _observe(self) -> Observed:
        try:
            return read(self._xtables.save(), self._layout.jumps)
        except ValueError as error:
            raise RestoreError(FailureKind.OTHER, f"the rules cannot be read: {error}") from error

    def _adopt(self, observed: Observed) -> set[str]:
        """Replace the record by what was observed; return the services that are not as desired."""
        kernel = self._kernel = from_observation(observed, self._desired, self._layout)
        self._settled = False
        return {key for key, rules in self._desired.items() if kernel.services[key] is not rules}

    def _writer(self, work: SyncWork) -> Writer:
        assert self._kernel is not None, "the kernel is read first"  # noqa: S101
        return Writer(self._xtables, self._watch, self._layout, self._kernel, work.written, work.rules)

    def _group(self, work: SyncWork, writer: Writer, keys: Sequence[str], part: Part) -> None:
        desired = self._desired

        def attempt(some: Sequence[str]) -> None:
            writer.group({key: desired.get(key, NO_RULES) for key in some}, part)

        def write_otherwise(key: str) -> bool:
            """Write a service without deletions: a foreign rule may refer to one of its former chains."""
            if Part.DELETIONS not in part:
                return False
            new = desired.get(key, NO_RULES)
            try:
                writer.group({key: new}, part & ~Part.DELETIONS)
            except RestoreError as error:
                if error.kind is not FailureKind.RULE:
                    raise
                return False
            writer.defer_delete(key, new)
            return True

        work.bisect(keys, attempt, write_otherwise)

    def _large(self, keys: Iterable[str]) -> list[str]:
        """The services whose changes are written step by step."""
        assert self._kernel is not None, "the kernel is read first"  # noqa: S101
        applied, desired = self._kernel.services, self._desired
        return [key for key in keys if is_large(applied.get(key, NO_RULES), desired.get(key, NO_RULES))]

    def _in_steps(self, work: SyncWork, writer: Writer, key: str) -> bool:
        """Write a large service step by step; False if the time is over before the last one."""
        old, new = writer.kernel.services.get(key, NO_RULES), self._desired.get(key, NO_RULES)
        for state in steps(old, new):

            def attempt(_: Sequence[str], state: ServiceRules = state) -> None:
                writer.group({key: state})

            def write_otherwise(_: str, state: ServiceRules = state) -> bool:
                """Leave chains to be deleted later: a foreign rule may refer to one of them."""
                deletes = state.shared == new.shared and state.chains.keys() >= new.chains.keys()
                if deletes:
                    writer.group({key: new}, Part.ALL & ~Part.DELETIONS)
                    writer.defer_delete(key, new)
                return deletes

            work.bisect([key], attempt, write_otherwise)
            if key in work.held or writer.kernel.services.get(key, NO_RULES) == new:
                return True
            if work.expired:
                return False
        return True

    def _settle(self, work: SyncWork, writer: Writer) -> None:
        """Write the shared chains; one to delete that foreign rules refer to is emptied instead."""
        try:
            writer.settle()
        except RestoreError as error:
            if error.kind is not FailureKind.RULE:
                raise
            work.check_refusal(error.message)
            writer.settle(delete=False)

    def _prune_emptied(self, work: SyncWork, writer: Writer) -> dict[str, str]:
        """Delete shared chains that an earlier sync emptied instead, once their retry is due."""
        emptied = set(map(_object, writer.kernel.emptied))
        if emptied & self._emptied - work.postponed.keys():
            self._settle(work, writer)
            emptied = set(map(_object, writer.kernel.emptied))
        self._emptied = emptied
        return {name: work.postponed.get(name, _IN_USE) for name in emptied}

    def _prune_retired(self, work: SyncWork, writer: Writer) -> dict[str, str]:
        """Delete the chains of a former mode, now that this mode serves all traffic."""
        kernel = writer.kernel
        named = {_object(chain_id): chain_id for chain_id in kernel.retired}
        left = {name: work.postponed[name] for name in named if name in work.postponed}
        if len(left) < len(named):
            only = {chain_id for name, chain_id in named.items() if name not in left}
            for removal in plan_removal(self._xtables.save(), only=only):
                table = removal.table
                left |= {_object((table, chain)): rule for chain, rule in writer.remove(removal).kept.items()}
            kernel.retired.intersection_update(named[name] for name in left if name in named)
        return left


_IN_USE = "a rule of another program refers to it"


def _object(chain_id: ChainId) -> str:
    return f"chain {chain_id[0]}/{chain_id[1]}"


def _endpoints(plan: ServicePlan | None) -> int:
    return sum(port.endpoints for port in plan.ports) if plan is not None else 0
