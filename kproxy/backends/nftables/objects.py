"""The table of one family, as operations of the reconciler: elements and chains, a transaction per batch.

The applied state is read from the kernel once, and updated by every committed transaction. A transaction that
the kernel refuses is bisected by the reconciler.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from kproxy.backends.core.base import Drift
from kproxy.backends.core.foreign_writes import ForeignWrites
from kproxy.backends.core.work import Changes, Comparison, DesiredChange, Failure, Observation, SyncWork
from kproxy.backends.nftables import names
from kproxy.backends.nftables.config import NftablesConfig
from kproxy.backends.nftables.desired import DesiredElements
from kproxy.backends.nftables.render import NOTHING, render_service
from kproxy.backends.nftables.table import AppliedTable
from kproxy.kernel.nft.types import Nft, NftError, NftFailure
from kproxy.plan.model import ServicePlan

PARTS = 4
"""A sync of limited time writes a fourth of a batch at once: about 30 ms of work for 2,500 elements."""


class TableObjects:
    """The desired objects of all services, and the table in the kernel."""

    errors = (NftError,)
    degraded: Mapping[str, str] = {}

    def __init__(self, config: NftablesConfig, nft: Nft, watch: ForeignWrites, batch_size: int) -> None:
        self._config = config
        self._nft = nft
        self._watch = watch
        self._batch_size = batch_size
        self._desired = DesiredElements()
        self._table: AppliedTable | None = None
        self._sweep = False

    def set_desired(self, changes: Changes, plans: Mapping[str, ServicePlan]) -> DesiredChange:  # noqa: ARG002
        """Render some services."""
        desired, config = self._desired, self._config
        return DesiredChange(
            [
                plan.key
                for _, plan in changes
                if desired.replace(plan.key, render_service(plan, config) if plan.ports else NOTHING)
            ]
        )

    def use_config(self, config: NftablesConfig) -> bool:
        """Change to other settings of the same family; return whether all services are to be rendered."""
        before, self._config = self._config, config
        if config == before:
            return False
        if self._table is not None:
            self._table.based = False
        # Only the base chains depend on service CIDRs.
        return msgspec.structs.replace(before, service_cidrs=config.service_cidrs) != config

    def explain(self, error: Exception) -> Failure:
        """After any failure but a refusal it is unknown what was applied."""
        assert isinstance(error, NftError)  # noqa: S101 - `errors` has no other
        return Failure(error.message, error.kind.value, refused=error.kind is NftFailure.REFUSED)

    def foreign_writes(self) -> int:
        """The number of writes by others so far."""
        return self._watch.foreign_writes

    def observe(self, work: SyncWork, *, compare: bool) -> Observation:
        """Read the table, and make it again if it cannot be kept."""
        table, whole = self._table, False
        drifts: tuple[Drift, ...] = ()
        if table is not None and compare:
            drifts, whole = table.compare(trust=False)
        if table is None or not whole:
            table = AppliedTable(self._config, self._nft, self._watch)
            self._table = None
            whole = table.observe()
        table.written = work.written
        rewritten = False
        if whole:
            self._compare_all(table)
        elif not (rewritten := table.exists and self._exchange(table)):
            table.make()
            self._compare_all(table)
        self._table = table
        return Observation(self._desired.pending.keys(), drifts, rewritten)

    def apply(self, work: SyncWork, keys: Sequence[str]) -> Collection[str]:
        """Write the base chains if they differ, then the services.

        If the time is limited, small changes come first; a large one gets at least one transaction.
        """
        table = self._known_table(work)
        if not table.based:
            table.base(self._config, self._desired.classes(table.chains))
        if self._sweep:
            self._remove_unowned(work, table, names.FRONTENDS)
        pending, cost = self._desired.pending, self._desired.size
        differing = [key for key in keys if key in pending]
        if not work.limited:
            self._write(work, table, differing, self._batch_size)
            return ()
        size = self._batch_size // PARTS
        differing.sort(key=cost)
        large = [key for key in differing if cost(key) > size]
        small = differing[: len(differing) - len(large)]
        for some in (small, large):
            self._write(work, table, some, size)
        return [key for key in differing if key in pending]

    def prune(self, work: SyncWork) -> Mapping[str, str]:
        """Delete elements that no service wants, and chains that no service needs any more."""
        table = self._known_table(work)
        if self._sweep:
            self._remove_unowned(work, table, tuple(table.held))
            self._sweep = False
        idle = {each if " " in each else f"chain {each}": each for each in table.idle(self._desired)}
        left = {each: work.postponed[each] for each in idle if each in work.postponed}
        doomed = [each for each in idle if each not in left]
        left |= work.bisect_leftovers(doomed, lambda some: table.delete_idle([idle[each] for each in some]))
        return left

    def drift(self, *, quiet: bool, full: bool) -> Comparison | None:
        """Compare the table with the applied state; in quiet times only record how the kernel lists rules."""
        table = self._table
        if table is None or (quiet and not full and table.has_baseline):
            return None
        if quiet and not full:
            table.read_baseline()
            return None
        drifts, whole = table.compare()
        if not whole:
            return Comparison(drifts)
        if drifts:
            self._compare_all(table)
        return Comparison(drifts, self._desired.pending.keys())

    def refresh(self) -> None:
        """Do nothing: no ability of the kernel is remembered."""

    def owner(self, container: str, key: str) -> str | None:
        """The service whose element a key of a map or set is to be, or None."""
        return self._desired.owner((container, key))

    def counts(self) -> dict[str, int]:
        """Number of elements and chains in the applied state. May be called from any thread."""
        table = self._table
        if table is None:
            return {}
        elements = sum(map(len, tuple(table.held.values())))
        return {"elements": elements, "chains": len(table.chains)}

    def _known_table(self, work: SyncWork) -> AppliedTable:
        assert self._table is not None, "the kernel is read first"  # noqa: S101
        self._table.written = work.written
        return self._table

    def _write(self, work: SyncWork, table: AppliedTable, keys: Iterable[str], size: int) -> None:
        """Write services in transactions of about `size` elements, at least one, until the time is over."""
        for group in self._desired.batches(keys, size):
            work.bisect(group, lambda some: self._group(table, some, size))
            if work.expired:
                break

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
        self._sweep = False
        return True

    def _compare_all(self, table: AppliedTable) -> None:
        """Mark all services as pending that differ from the table as read, and all unneeded elements."""
        self._sweep = True
        table.recognise(self._desired.chains)
        self._desired.compare(table.held, table.chains)

    def _group(self, table: AppliedTable, keys: Sequence[str], size: int) -> None:
        """Write a group of services as one transaction."""
        change = self._desired.change(keys, table.held, table.chains, size)
        table.apply(change.chains, change.doomed, change.fresh)
        self._desired.written(keys, change)

    def _remove_unowned(self, work: SyncWork, table: AppliedTable, containers: Iterable[str]) -> None:
        """Delete elements that no service wants, such as those of services deleted while kproxy did not run.

        Frontends are deleted before anything is written; endpoints after nothing refers to them any more.
        """
        for container in containers:
            extra = self._desired.unowned(container, table.held, work.held)
            for start in range(0, len(extra), self._batch_size):
                table.apply({}, {container: extra[start : start + self._batch_size]}, {})
