"""The nftables mode of one family: elements and chains brought into step, one transaction a sync.

The record of what the kernel holds is read from it once, moved forward by every transaction that it took, and
compared with the kernel after any failure that leaves doubt. A transaction is refused as a whole; it is then
halved until the service at fault is found, which keeps what it had while all others get theirs.
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
"""Elements per transaction of a big change: for as many, the kernel's commit lock is held about 30 ms."""


class NftablesBackend:
    """One family's table."""

    def __init__(
        self, config: NftablesConfig, nft: Nft, watch: ForeignWrites, *, piece: int = BATCH_SIZE
    ) -> None:
        self.family: Family = config.family
        self._config = config
        self._nft = nft
        self._watch = watch
        self._batch_size = piece
        self._plans: dict[str, ServicePlan] = {}
        self._desired = DesiredElements()
        self._quarantine: dict[str, str] = {}
        self._kept: set[str] = set()
        self._table: AppliedTable | None = None
        self._stale: AppliedTable | None = None
        self._sweep = False
        self._seen_writes = 0
        self._looked_again = False
        self._immovable = 0
        self._traffic = Traffic()

    def update(self, plans: Iterable[ServicePlan]) -> None:
        """Take new desired states; a plan without ports removes its service."""
        for plan in plans:
            if plan.ports:
                self._plans[plan.key] = plan
                self._want(plan.key, render_service(plan, self._config))
            else:
                self._plans.pop(plan.key, None)
                self._want(plan.key, NOTHING)

    def reconfigure(self, config: NftablesConfig) -> None:
        """Take new settings of the same family; the next sync writes what they change."""
        if config == self._config:
            return
        before, self._config = self._config, config
        if self._table is not None:
            self._table.based = False
        if msgspec.structs.replace(before, service_cidrs=config.service_cidrs) == config:
            return  # only the fixed chains name them
        for plan in self._plans.values():
            self._want(plan.key, render_service(plan, config))

    def invalidate(self) -> None:
        """Let the next sync read the table first, and compare all of it."""
        self._table = self._stale = None

    def retry(self) -> None:
        """Let the next sync try again the services that were refused, and chains that could not go."""
        self._quarantine.clear()
        self._kept.clear()

    def sync(self) -> SyncReport:
        """Bring the kernel to the desired state, writing only what differs."""
        written: Counter[str] = Counter()
        drifts: list[Drift] = []
        self._looked_again = False
        full, self._immovable = self._table is None, 0
        try:
            try:
                self._write(written, drifts)
            except StaleStateError:
                self._table, self._stale = None, self._table
                self._looked_again = full = True
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
            leftovers=self._immovable,
            drifts=tuple(drifts),
        )

    def check(self, *, full: bool = False) -> tuple[Drift, ...]:
        """Compare the kernel with the record; what differs is named, and written by the next sync.

        Raises CheckError if the table cannot be read.
        """
        table = self._table
        if table is None:
            return ()
        foreign = self._watch.foreign_writes
        calm = foreign == self._seen_writes
        if calm and table.remembers and not full:
            return ()
        try:
            if calm and not full:
                table.remember()
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
        """Nothing here depends on time: the kernel itself forgets clients."""
        return None

    def objects(self) -> dict[str, int]:
        """How many elements and chains the kernel is known to hold. May be called from any thread."""
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

    def _port_at(self, asked: str) -> PortPlan | None:
        plan = self._plans.get(self._desired.owner((names.SERVICES, asked)) or "")
        return None if plan is None else port_of(plan, asked)

    def _want(self, key: str, new: ServiceObjects) -> None:
        if self._desired.want(key, new) and self._quarantine.pop(key, None) is not None:
            self._kept.clear()

    def _known_table(self, written: Counter[str], drifts: list[Drift]) -> AppliedTable:
        """The table; read if it is not known, and made anew where it cannot be kept.

        After a failure `drifts` is given what others have changed since the last record.
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
        """Put a complete table in the place of one that cannot be kept.

        False if it was refused: then the service at fault must be found first, on a table without services.
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
        """Let the next sync bring everything in step with what the table was found to hold."""
        self._sweep = True
        self._kept.clear()
        self._desired.compare(table.held, table.chains)

    def _write(self, written: Counter[str], drifts: list[Drift]) -> None:
        table = self._known_table(written, drifts)
        if not table.based:
            table.base(self._config, self._desired.classes(table.chains))
        if self._sweep:
            self._remove_strangers(table, names.FRONTENDS)
        keys = sorted(self._desired.pending.keys() - self._quarantine.keys())
        for group in self._desired.pieces(keys, self._batch_size):
            bisect_refused(
                group,
                lambda some: self._group(table, some),
                self._refuse,
                refusal=NftError,
                classify_refusal=self._classify_refusal,
            )
        if self._sweep:
            self._remove_strangers(table, tuple(table.held))
            self._sweep = False
        self._remove_chains(table)

    def _group(self, table: AppliedTable, keys: Sequence[str]) -> None:
        """Write a group of services as one transaction."""
        change = self._desired.change(keys, table.held, table.chains)
        table.apply(change.chains, change.doomed, change.fresh)
        for key in keys:
            del self._desired.pending[key]

    def _remove_strangers(self, table: AppliedTable, containers: Iterable[str]) -> None:
        """Delete elements that no service wants, such as those of services that went while nobody looked.

        Their frontends go before anything is written; endpoints only when nothing leads to them any more.
        """
        for container in containers:
            extra = self._desired.strangers(container, table.held, self._quarantine)
            for start in range(0, len(extra), self._batch_size):
                table.apply({}, {container: extra[start : start + self._batch_size]}, {})

    def _remove_chains(self, table: AppliedTable) -> None:
        """Delete chains that nothing leads to any more; one that is still in use is left for a later sync."""
        fixed = rules_of(self._config).keys()
        idle = [
            name
            for name in table.chains
            if name not in self._desired.chains and name not in fixed and name not in self._kept
        ]

        def keep(name: str, error: NftError) -> None:
            self._kept.add(name)
            self._immovable += 1
            log.info("chain_delete_failed", family=self.family.value, chain=name, reason=error.message)

        # What leads to others goes first, so that one that must stay holds back only what it leads to.
        idle.sort(key=lambda name: not name.startswith(LEADING))
        bisect_refused(
            idle, table.delete_chains, keep, refusal=NftError, classify_refusal=self._classify_refusal
        )

    def _refuse(self, key: str, error: NftError) -> None:
        self._quarantine[key] = error.message
        log.error("service_quarantined", family=self.family.value, service=key, reason=error.message)

    def _classify_refusal(self, error: NftError) -> None:
        """Return if what was written is at fault; raise the error if not, or StaleStateError if in doubt."""
        if error.kind is not NftFailure.REFUSED:
            raise error
        if not self._looked_again and self._watch.foreign_writes != self._seen_writes:
            raise StaleStateError from error


def _nonzero(written: Counter[str]) -> dict[str, int]:
    return {name: count for name, count in written.items() if count}
