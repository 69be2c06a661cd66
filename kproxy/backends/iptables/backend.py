"""Reconcile one family's rules: render changed services, write differences, record what was accepted.

The applied state is read from the kernel, updated by each successful restore, and marked as stale after any
failure with an unknown outcome. So a lost write is found, and changes by others are reported when the rules
are read again. A refused restore is bisected to find the service at fault; it is quarantined and keeps its
former rules, and all other services are written.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import structlog

from kproxy.addresses import Family
from kproxy.backends.core.base import CheckError, Drift, SyncReport
from kproxy.backends.core.bisect import StaleStateError, bisect_refused
from kproxy.backends.core.foreign_writes import ForeignWrites
from kproxy.backends.iptables import names
from kproxy.backends.iptables.cleanup import plan_removal
from kproxy.backends.iptables.kernel_state import NO_RULES, AppliedState, drift_between, from_observation
from kproxy.backends.iptables.layout import Layout
from kproxy.backends.iptables.layout_selection import select_layout
from kproxy.backends.iptables.observed import Observed, read
from kproxy.backends.iptables.rules import ServiceRules
from kproxy.backends.iptables.writer import Part, Writer
from kproxy.kernel.xtables.types import FailureKind, RestoreError, Variant, Xtables
from kproxy.plan.model import ServicePlan

log = structlog.stdlib.get_logger(__name__)


class IptablesBackend:
    """One family's KUBE-* rules; a `larger` layout, if not None, is used while the cluster is large.

    `prepare` restores what rules depend on besides other rules: sysctls and, if called with True because
    rules are about to be written, the objects that rules name.
    """

    def __init__(
        self,
        layout: Layout,
        xtables: Xtables,
        watch: ForeignWrites,
        *,
        larger: Layout | None = None,
        batch_size: int | None = None,
        prepare: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self._prepare = prepare
        self.family: Family = layout.family
        self._layout = self._smaller = layout
        self._larger = larger
        self._xtables = xtables
        self._watch = watch
        self._fixed_batch_size = batch_size
        self._plans: dict[str, ServicePlan] = {}
        self._desired: dict[str, ServiceRules] = {}
        self._pending: set[str] = set()
        self._quarantine: dict[str, str] = {}
        self._endpoints = 0
        self._ports = 0
        self._comments = True
        self._kernel: AppliedState | None = None
        self._stale: AppliedState | None = None
        self._first_sync_done = False
        self._kept: set[str] = set()
        self._told: set[str] = set()
        self._seen_writes = 0
        self._resynced = False

    def update(self, plans: Iterable[ServicePlan]) -> None:
        """Replace the desired state of the plans' services; a plan without ports removes its service."""
        changed = list(plans)
        for plan in changed:
            old = self._plans.get(plan.key)
            self._endpoints += _endpoints(plan) - _endpoints(old)
            self._ports += len(plan.ports) - (len(old.ports) if old is not None else 0)
            if plan.ports:
                self._plans[plan.key] = plan
            else:
                self._plans.pop(plan.key, None)
                self._quarantine.pop(plan.key, None)
                if self._desired.pop(plan.key, None) is not None:
                    self._pending.add(plan.key)
        if self._choose() or self._comments != self._wants_comments():
            self._render_all()
        else:
            for plan in changed:
                if plan.ports:
                    self._desire(plan)

    def reconfigure(self, layout: Layout, larger: Layout | None = None) -> None:
        """Change to other layouts of the same family; the next sync writes the differences."""
        if (layout, larger) == (self._smaller, self._larger):
            return
        was_larger = self._layout == self._larger
        self._smaller, self._larger = layout, larger
        self._layout = larger if was_larger and larger is not None else layout
        self._choose()
        self.invalidate()
        self._render_all()

    def invalidate(self) -> None:
        """Mark the applied state as stale: the next sync reads and compares all rules."""
        self._kernel = self._stale = None

    def retry(self) -> None:
        """Make the next sync retry quarantined services and leftover chains."""
        self._quarantine.clear()
        self._kept.clear()
        if self._kernel is not None and self._kernel.emptied:
            self._first_sync_done = False

    def sync(self, *, retire: bool = True) -> SyncReport:
        """Bring the kernel to the desired state, writing only what differs.

        Without `retire`, chains of a former mode stay until `retire()` is called.
        """
        return self._guarded(lambda writer: self._write(writer, retire=retire))

    def retire(self) -> SyncReport:
        """Delete the chains of a former mode, once this mode serves all traffic."""
        return self._guarded(self._sweep)

    def _guarded(self, work: Callable[[Writer], None]) -> SyncReport:
        written: Counter[str] = Counter()
        rules: Counter[str] = Counter()
        full = self._kernel is None
        drifts: tuple[Drift, ...] = ()
        self._resynced = False
        try:
            self._prepare(True)  # noqa: FBT003
            try:
                if full:
                    drifts = self._look()
                work(self._writer(written, rules))
            except StaleStateError:
                drifts += self._look()
                self._resynced = full = True
                work(self._writer(written, rules))
        except RestoreError as error:
            self._first_sync_done = False
            # If the lock was not granted, nothing was written; after other failures the state is unknown.
            if error.kind is not FailureKind.LOCKED:
                self._kernel, self._stale = None, self._kernel or self._stale
            message = f"{error.kind}: {error.message}"
            return SyncReport(
                error=message, changes=dict(written), rules=dict(rules), full=full, drifts=drifts
            )
        return SyncReport(
            dict(self._quarantine),
            None,
            dict(written),
            rules=dict(rules),
            full=full,
            leftovers=len(self._kept) + (len(self._kernel.emptied) if self._kernel is not None else 0),
            drifts=drifts,
        )

    def _look(self) -> tuple[Drift, ...]:
        """Read the kernel into the applied state; return changes by others since the last record."""
        expected = self._kernel or self._stale
        observed = self._observe()
        self._adopt(observed)
        self._stale = None
        return drift_between(expected, observed, self._layout) if expected is not None else ()

    def check(self, *, full: bool = False) -> tuple[Drift, ...]:
        """Compare the kernel with the applied state; return the drift, which the next sync corrects.

        Raises CheckError if the rules cannot be read.
        """
        expected = self._kernel
        if expected is None:
            return ()
        self._prepare(False)  # noqa: FBT003
        foreign = self._watch.foreign_writes
        if foreign == self._seen_writes and not full:
            return ()
        try:
            observed = self._observe()
        except RestoreError as error:
            raise CheckError(error.message) from error
        drifts = drift_between(expected, observed, self._layout)
        if drifts:
            self._adopt(observed)
        return drifts

    def run_timers(self) -> float | None:
        """Return None: there is no periodic work."""
        return None

    def _choose(self) -> bool:
        """Select the layout for the number of service ports and endpoints; True if it changed."""
        size = self._ports + self._endpoints
        wanted = select_layout(self._smaller, self._larger, size, self._layout)
        if wanted is self._layout:
            return False
        self._layout = wanted
        if self._kernel is not None:
            log.info("layout_changed", family=self.family.value, scalable=wanted is self._larger, size=size)
        self.invalidate()
        return True

    def rules(self) -> dict[str, int]:
        """Number of kproxy's rules in the applied state, by table. May be called from any thread."""
        kernel = self._kernel
        return kernel.rules() if kernel is not None else {}

    @property
    def _batch_size(self) -> int | None:
        """Services per restore of a big change; None: all, as with iptables-legacy each copies the table."""
        if self._fixed_batch_size is None and self._xtables.variant is Variant.NFT:
            return self._layout.batch_size
        return self._fixed_batch_size

    def _wants_comments(self) -> bool:
        return self._endpoints <= self._layout.large_cluster_endpoints

    def _render_all(self) -> None:
        self._comments = self._wants_comments()
        for plan in self._plans.values():
            self._desire(plan)

    def _desire(self, plan: ServicePlan) -> None:
        rules = self._layout.render(plan, comments=self._comments)
        if self._desired.get(plan.key) == rules:
            return
        self._desired[plan.key] = rules
        self._pending.add(plan.key)
        self._quarantine.pop(plan.key, None)

    def _observe(self) -> Observed:
        self._seen_writes = self._watch.foreign_writes
        try:
            return read(self._xtables.save(), self._layout.jumps)
        except ValueError as error:
            raise RestoreError(FailureKind.OTHER, f"the rules cannot be read: {error}") from error

    def _writer(self, written: Counter[str], rules: Counter[str]) -> Writer:
        assert self._kernel is not None, "the kernel is read first"  # noqa: S101
        return Writer(self._xtables, self._watch, self._layout, self._kernel, written, rules)

    def _adopt(self, observed: Observed) -> None:
        kernel = from_observation(observed, self._desired, self._layout)
        self._kernel = kernel
        self._first_sync_done = False
        self._kept.clear()
        self._pending = {key for key, rules in self._desired.items() if kernel.services[key] is not rules}

    def _write(self, writer: Writer, *, retire: bool) -> None:
        writer.base(keep_outgoing=True)
        keys = sorted(self._pending - self._quarantine.keys())
        quarantined = len(self._quarantine)
        if self._batch_size is None or len(keys) <= self._batch_size:
            self._group(writer, keys, Part.ALL)
        else:
            for part in (Part.REJECTS, Part.CHAINS, Part.SHARED, Part.DELETIONS):
                size = len(keys) if part in Part.REJECTS | Part.SHARED else self._batch_size
                for start in range(0, len(keys), size or 1):
                    self._group(writer, keys[start : start + size], part)
                keys = [key for key in keys if key not in self._quarantine]
            self._first_sync_done = False
        if not self._first_sync_done or len(self._quarantine) > quarantined:
            self._settle(writer)
            self._first_sync_done = True
        writer.base(keep_outgoing=False)
        if retire:
            self._sweep(writer)
        self._pending = set(self._quarantine)

    def _settle(self, writer: Writer) -> None:
        """Write the shared chains; one to delete that foreign rules refer to is emptied instead."""
        try:
            writer.settle()
        except RestoreError as error:
            self._classify_refusal(error)
            writer.settle(delete=False)

    def _group(self, writer: Writer, keys: Sequence[str], part: Part) -> None:
        """Write a group of services; if the kernel refuses it, bisect it to find the services at fault."""
        desired = self._desired

        def attempt(some: Sequence[str]) -> None:
            writer.group({key: desired.get(key, NO_RULES) for key in some}, part)

        def give_up(key: str, error: RestoreError) -> None:
            new = desired.get(key, NO_RULES)
            if Part.DELETIONS in part:
                # A foreign rule may refer to a chain to be deleted; the service is written nevertheless.
                try:
                    writer.group({key: new}, part & ~Part.DELETIONS)
                except RestoreError as again:
                    if again.kind is not FailureKind.RULE:
                        raise
                else:
                    writer.defer_delete(key, new)
                    return
            self._quarantine[key] = error.message
            log.error("service_quarantined", family=self.family.value, service=key, reason=error.message)

        bisect_refused(keys, attempt, give_up, refusal=RestoreError, classify_refusal=self._classify_refusal)

    def _sweep(self, writer: Writer) -> None:
        """Delete chains of former modes and of deleted services.

        A chain that foreign rules refer to is emptied, stays and is logged.
        """
        if writer.kernel.retired:
            for removal in plan_removal(self._xtables.save(), only=writer.kernel.retired):
                for chain, rule in writer.remove(removal).kept.items():
                    log.warning(
                        "stale_chain_delete_failed", family=self.family.value, chain=chain, reason=rule
                    )
            writer.kernel.retired.clear()

        def give_up(chain: str, error: RestoreError) -> None:
            self._kept.add(chain)
            if chain not in self._told:
                self._told.add(chain)
                log.warning(
                    "stale_chain_delete_failed", family=self.family.value, chain=chain, reason=error.message
                )

        self._told &= writer.kernel.stale
        stale = sorted(writer.kernel.stale - self._kept, key=names.referrers_first)
        size = len(stale) if self._batch_size is None else self._batch_size * 4
        for start in range(0, len(stale), size or 1):
            some = stale[start : start + size]
            try:
                writer.delete_stale(some)
            except RestoreError as error:
                self._classify_refusal(error)
                writer.empty_stale(some)
                bisect_refused(
                    some,
                    writer.delete_stale,
                    give_up,
                    refusal=RestoreError,
                    classify_refusal=self._classify_refusal,
                )

    def _classify_refusal(self, error: RestoreError) -> None:
        """Return if a rule is at fault; else raise the error, or StaleStateError after foreign writes.

        StaleStateError is raised once per sync, so that a bad rule is found even if others write constantly.
        """
        if error.kind is not FailureKind.RULE:
            raise error
        if not self._resynced and self._watch.foreign_writes != self._seen_writes:
            raise StaleStateError from error


def _endpoints(plan: ServicePlan | None) -> int:
    return sum(port.endpoints for port in plan.ports) if plan is not None else 0
