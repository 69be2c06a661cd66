"""The nftables mode of one family: reconciles elements and chains, by one transaction per batch.

The applied state is read from the kernel once, updated by every committed transaction, and compared with the
kernel after any failure of unknown outcome. A refused transaction is bisected to find the service at fault;
it is quarantined and keeps its former elements, and all other services are written.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
import structlog

from kproxy.addresses import Family
from kproxy.backends.core.base import CheckError, Drift, PortTraffic, SyncReport
from kproxy.backends.core.bisect import StaleStateError, bisect_refused
from kproxy.backends.core.foreign_writes import ForeignWrites
from kproxy.backends.nftables import names
from kproxy.backends.nftables.config import NftablesConfig
from kproxy.backends.nftables.desired import LEADING, DesiredElements
from kproxy.backends.nftables.render import NOTHING, ServiceObjects, render_service
from kproxy.backends.nftables.script import rules_of
from kproxy.backends.nftables.table import AppliedTable
from kproxy.backends.nftables.traffic import Traffic, port_of
from kproxy.kernel.nft.types import Nft, NftError, NftFailure
from kproxy.plan.model import PortPlan, ServicePlan

log = structlog.stdlib.get_logger(__name__)

BATCH_SIZE = 10000
"""Elements per transaction of a big change; the kernel's commit lock is then held for about 30 ms."""


class NftablesBackend:
    """One family's table."""

    def __init__(
        self, config: NftablesConfig, nft: Nft, watch: ForeignWrites, *, batch_size: int = BATCH_SIZE
    ) -> None:
        self.family: Family = config.family
        self._config = config
        self._nft = nft
        self._watch = watch
        self._batch_size = batch_size
        self._plans: dict[str, ServicePlan] = {}
        self._desired = DesiredElements()
        self._quarantine: dict[str, str] = {}
        self._kept: set[str] = set()
        self._table: AppliedTable | None = None
        self._stale: AppliedTable | None = None
        self._sweep = False
        self._seen_writes = 0
        self._resynced = False
        self._leftovers = 0
        self._traffic = Traffic()

    def update(self, plans: Iterable[ServicePlan]) -> None:
        """Replace the desired state of the plans' services; a plan without ports removes its service."""
        for plan in plans:
            if plan.ports:
                self._plans[plan.key] = plan
                self._want(plan.key, render_service(plan, self._config))
            else:
                self._plans.pop(plan.key, None)
                self._want(plan.key, NOTHING)

    def reconfigure(self, config: NftablesConfig) -> None:
        """Change to other settings of the same family; the next sync writes the differences."""
        if config == self._config:
            return
        before, self._config = self._config, config
        if self._table is not None:
            self._table.based = False
        if msgspec.structs.replace(before, service_cidrs=config.service_cidrs) == config:
            return  # only the fixed chains depend on service CIDRs
        for plan in self._plans.values():
            self._want(plan.key, render_service(plan, config))

    def invalidate(self) -> None:
        """Mark the applied state as stale: the next sync reads and compares the table."""
        self._table = self._stale = None

    def retry(self) -> None:
        """Make the next sync retry quarantined services and leftover chains."""
        self._quarantine.clear()
        self._kept.clear()

    def sync(self) -> SyncReport:
        """Bring the kernel to the desired state; write only differences."""
        written: Counter[str] = Counter()
        drifts: list[Drift] = []
        self._resynced = False
        full, self._leftovers = self._table is None, 0
        try:
            try:
                self._write(written, drifts)
            except StaleStateError:
                self._table, self._stale = None, self._table
                self._resynced = full = True
                self._write(written, drifts)
        except NftError as error:
            self._table, self._stale = None, self._table or self._stale
            return SyncReport(
                error=f"{error.kind}: {error.message}",
                changes=_nonzero(written),
                full=full,
                drifts=tuple(drifts),
            )
        return SyncReport(
            dict(self._quarantine),
            changes=_nonzero(written),
            full=full,
            leftovers=self._leftovers,
            drifts=tuple(drifts),
        )

    def check(self, *, full: bool = False) -> tuple[Drift, ...]:
        """Compare the kernel with the applied state; return the drift, which the next sync corrects.

        Raises CheckError if the table cannot be read.
        """
        table = self._table
        if table is None:
            return ()
        foreign = self._watch.foreign_writes
        unchanged = foreign == self._seen_writes
        if unchanged and table.has_baseline and not full:
            return ()
        try:
            if unchanged and not full:
                table.read_baseline()
                return ()
            drifts, whole = table.compare()
        except NftError as error:
            raise CheckError(error.message) from error
        if not whole:
            self._table = None
        elif drifts:
            self._invalidate_all(table)
        self._seen_writes = foreign
        return drifts

    def run_timers(self) -> float | None:
        """Return None: there is no periodic work; the kernel expires affinity entries."""
        return None

    def objects(self) -> dict[str, int]:
        """Number of elements and chains in the applied state. May be called from any thread."""
        table = self._table
        if table is None:
            return {}
        elements = sum(map(len, tuple(table.held.values())))
        return {"elements": elements, "chains": len(table.chains)}

    def traffic(self) -> tuple[PortTraffic, ...]:
        """The traffic of every service port that has endpoints. Raises NftError.

        May be called from any thread, but from one at a time.
        """
        counts = self._nft.counts(self.family, names.TABLE, names.SERVICES)
        return self._traffic.read(counts or {}, self._port_at)

    def _port_at(self, frontend: str) -> PortPlan | None:
        plan = self._plans.get(self._desired.owner((names.SERVICES, frontend)) or "")
        return None if plan is None else port_of(plan, frontend)

    def _want(self, key: str, new: ServiceObjects) -> None:
        if self._desired.want(key, new) and self._quarantine.pop(key, None) is not None:
            self._kept.clear()

    def _known_table(self, written: Counter[str], drifts: list[Drift]) -> AppliedTable:
        """Return the table; read it if it is stale, and make it again if it cannot be kept.

        After a failure, changes by others since the last record are added to `drifts`.
        """
        table = self._table
        if table is not None:
            table.written = written
            return table
        self._seen_writes = self._watch.foreign_writes
        table, whole = self._stale, False
        if table is not None:
            found, whole = table.compare(trust=False)
            drifts += found
            self._stale = None
        if table is None or not whole:
            table = AppliedTable(self._config, self._nft, self._watch)
            whole = table.observe()
        table.written = written
        if whole:
            self._invalidate_all(table)
        elif not (table.exists and self._exchange(table)):
            table.make()
            self._invalidate_all(table)
        self._table = table
        return table

    def _exchange(self, table: AppliedTable) -> bool:
        """Replace a table that cannot be kept by a complete new one.

        False if it was refused: then the service at fault is to be found first, from a table without
        services.
        """
        try:
            table.exchange(self._desired.chains, self._desired.elements)
        except NftError as error:
            if error.kind is not NftFailure.REFUSED:
                raise
            return False
        self._desired.pending.clear()
        self._quarantine.clear()
        self._kept.clear()
        self._sweep = False
        return True

    def _invalidate_all(self, table: AppliedTable) -> None:
        """Mark all services as pending that differ from the table as read, and all unneeded elements."""
        self._sweep = True
        self._kept.clear()
        self._desired.compare(table.held, table.chains)

    def _write(self, written: Counter[str], drifts: list[Drift]) -> None:
        table = self._known_table(written, drifts)
        if not table.based:
            table.base(self._config, self._desired.classes(table.chains))
        if self._sweep:
            self._remove_unowned(table, names.FRONTENDS)
        keys = sorted(self._desired.pending.keys() - self._quarantine.keys())
        for group in self._desired.batches(keys, self._batch_size):
            bisect_refused(
                group,
                lambda some: self._group(table, some),
                self._refuse,
                refusal=NftError,
                classify_refusal=self._classify_refusal,
            )
        if self._sweep:
            self._remove_unowned(table, tuple(table.held))
            self._sweep = False
        self._remove_chains(table)

    def _group(self, table: AppliedTable, keys: Sequence[str]) -> None:
        """Write a group of services as one transaction."""
        change = self._desired.change(keys, table.held, table.chains)
        table.apply(change.chains, change.doomed, change.fresh)
        for key in keys:
            del self._desired.pending[key]

    def _remove_unowned(self, table: AppliedTable, containers: Iterable[str]) -> None:
        """Delete elements that no service wants, such as those of services deleted while kproxy did not run.

        Frontends are deleted before anything is written; endpoints after nothing refers to them any more.
        """
        for container in containers:
            extra = self._desired.unowned(container, table.held, self._quarantine)
            for start in range(0, len(extra), self._batch_size):
                table.apply({}, {container: extra[start : start + self._batch_size]}, {})

    def _remove_chains(self, table: AppliedTable) -> None:
        """Delete chains that no service needs any more; one that is still in use is left for a later sync."""
        fixed = rules_of(self._config).keys()
        idle = [
            name
            for name in table.chains
            if name not in self._desired.chains and name not in fixed and name not in self._kept
        ]

        def keep(name: str, error: NftError) -> None:
            self._kept.add(name)
            self._leftovers += 1
            log.info("chain_delete_failed", family=self.family.value, chain=name, reason=error.message)

        # Referring chains first, so that one that cannot be deleted keeps only the chains that it refers to.
        idle.sort(key=lambda name: not name.startswith(LEADING))
        bisect_refused(
            idle, table.delete_chains, keep, refusal=NftError, classify_refusal=self._classify_refusal
        )

    def _refuse(self, key: str, error: NftError) -> None:
        self._quarantine[key] = error.message
        log.error("service_quarantined", family=self.family.value, service=key, reason=error.message)

    def _classify_refusal(self, error: NftError) -> None:
        """Return if the batch is at fault; else raise the error, or StaleStateError after foreign writes."""
        if error.kind is not NftFailure.REFUSED:
            raise error
        if not self._resynced and self._watch.foreign_writes != self._seen_writes:
            raise StaleStateError from error


def _nonzero(written: Counter[str]) -> dict[str, int]:
    return {name: count for name, count in written.items() if count}
