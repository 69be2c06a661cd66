"""Keep one family's rules as planned: render what changed, write what differs, believe only what was taken.

The record of the kernel is built from an observation, moved forward by each restore that succeeded, and
put aside after any failure that leaves doubt; so a lost write cannot hide, and what others did meanwhile is
named when the rules are next read. A restore that the kernel
refuses is narrowed down to the service at fault, which keeps the rules it had while all others get theirs.
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
    """One family's KUBE-* rules; where a `larger` layout is given, it is used while there are many.

    `prepare` makes again what rules need besides other rules, where it is gone: kernel parameters and, if it
    is given True, what they name, for rules are about to be written.
    """

    def __init__(
        self,
        layout: Layout,
        xtables: Xtables,
        watch: ForeignWrites,
        *,
        larger: Layout | None = None,
        piece: int | None = None,
        prepare: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self._prepare = prepare
        self.family: Family = layout.family
        self._layout = self._smaller = layout
        self._larger = larger
        self._xtables = xtables
        self._watch = watch
        self._chosen_piece = piece
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
        self._looked_again = False

    def update(self, plans: Iterable[ServicePlan]) -> None:
        """Take new desired states; a plan without ports removes its service."""
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
        """Take other chains or settings of the same family; the next sync writes what they change."""
        if (layout, larger) == (self._smaller, self._larger):
            return
        was_larger = self._layout == self._larger
        self._smaller, self._larger = layout, larger
        self._layout = larger if was_larger and larger is not None else layout
        self._choose()
        self.invalidate()
        self._render_all()

    def invalidate(self) -> None:
        """Let the next sync read the rules first, and compare all of them."""
        self._kernel = self._stale = None

    def retry(self) -> None:
        """Let the next sync try the services again that were refused."""
        self._quarantine.clear()
        self._kept.clear()
        if self._kernel is not None and self._kernel.emptied:
            self._first_sync_done = False

    def sync(self, *, retire: bool = True) -> SyncReport:
        """Bring the kernel to the desired state, writing only what differs.

        Without `retire`, chains that a former mode left stay for now: `retire()` takes them away.
        """
        return self._guarded(lambda writer: self._write(writer, retire=retire))

    def retire(self) -> SyncReport:
        """Take away what a former mode left, once something else does its work."""
        return self._guarded(self._sweep)

    def _guarded(self, work: Callable[[Writer], None]) -> SyncReport:
        written: Counter[str] = Counter()
        rules: Counter[str] = Counter()
        full = self._kernel is None
        drifts: tuple[Drift, ...] = ()
        self._looked_again = False
        try:
            self._prepare(True)  # noqa: FBT003
            try:
                if full:
                    drifts = self._look()
                work(self._writer(written, rules))
            except StaleStateError:
                drifts += self._look()
                self._looked_again = full = True
                work(self._writer(written, rules))
        except RestoreError as error:
            self._first_sync_done = False
            # A lock that was not granted means that nothing happened; anything else leaves doubt.
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
        """Take the kernel as it is now found to be; what others changed since the last record is named."""
        expected = self._kernel or self._stale
        observed = self._observe()
        self._adopt(observed)
        self._stale = None
        return drift_between(expected, observed, self._layout) if expected is not None else ()

    def check(self, *, full: bool = False) -> tuple[Drift, ...]:
        """Compare the kernel with the record; what differs is named, and written by the next sync.

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
        """Nothing here depends on time."""
        return None

    def _choose(self) -> bool:
        """Change over to the layout that the number of service ports and endpoints asks for."""
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
        """How many rules of ours the kernel is known to hold, by table; may be asked from any thread."""
        kernel = self._kernel
        return kernel.rules() if kernel is not None else {}

    @property
    def _batch_size(self) -> int | None:
        """Services per restore of a big change; None: all, for with iptables-legacy each copies the table."""
        if self._chosen_piece is None and self._xtables.variant is Variant.NFT:
            return self._layout.batch_size
        return self._chosen_piece

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
        assert self._kernel is not None, "a look comes first"  # noqa: S101
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
        """Bring the shared chains in order; one that somebody else's rules refer to is emptied and stays."""
        try:
            writer.settle()
        except RestoreError as error:
            self._classify_refusal(error)
            writer.settle(delete=False)

    def _group(self, writer: Writer, keys: Sequence[str], part: Part) -> None:
        """Write a group; where the kernel refuses it, halve it until the services at fault are found."""
        desired = self._desired

        def attempt(some: Sequence[str]) -> None:
            writer.group({key: desired.get(key, NO_RULES) for key in some}, part)

        def give_up(key: str, error: RestoreError) -> None:
            new = desired.get(key, NO_RULES)
            if Part.DELETIONS in part:
                # Somebody else's rule may hold on to a chain of ours: that must not hold back the service.
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
        """Delete chains of former modes and of services that are gone.

        One that somebody else's rules refer to stays, empty, and is reported.
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
        """Return if a rule is at fault; raise the error if not, or StaleStateError if it may not be.

        The latter once a sync: where somebody else writes all the time, a bad rule must still be told from
        the good ones.
        """
        if error.kind is not FailureKind.RULE:
            raise error
        if not self._looked_again and self._watch.foreign_writes != self._seen_writes:
            raise StaleStateError from error


def _endpoints(plan: ServicePlan | None) -> int:
    return sum(port.endpoints for port in plan.ports) if plan is not None else 0
