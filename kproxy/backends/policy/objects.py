"""The table of one family, as operations of the reconciler: every change is one transaction.

Keys are the names of groups, and ADDRESSES for what belongs to none. The applied state is read from the
kernel once and updated by every committed transaction. If the kernel refuses one, the reconciler finds the
groups at fault; these are closed, so that their pods are denied in that direction, and everything else is
written.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import msgspec

from kproxy.backends.core.base import Drift
from kproxy.backends.core.foreign_writes import ForeignWrites
from kproxy.backends.core.table_drift import Lines
from kproxy.backends.core.work import Comparison, Failure, Observation, SyncWork
from kproxy.backends.policy import names
from kproxy.backends.policy.change import ADDRESSES, Change, difference, idle
from kproxy.backends.policy.config import PolicyConfig
from kproxy.backends.policy.desired import DesiredTable
from kproxy.backends.policy.drift import is_whole, table_drifts, unusable
from kproxy.backends.policy.record import Record, is_listed
from kproxy.backends.policy.script import Script
from kproxy.kernel.nft.types import Nft, NftError, NftFailure, Reading
from kproxy.plan.policy.model import PolicyTable, Touched

TRIAL = f"{names.TABLE}-trial"
"""A table that is made and deleted in one transaction, to find the groups that the kernel refuses."""


class PolicyObjects:
    """The desired table, and the one in the kernel."""

    errors = (NftError,)
    degraded: Mapping[str, str] = {}

    def __init__(self, config: PolicyConfig, nft: Nft, watch: ForeignWrites) -> None:
        self.desired = DesiredTable(config)
        self._family = config.family
        self._nft = nft
        self._watch = watch
        self._record: Record | None = None
        self._baseline: Lines | None = None
        self._unsure: set[str] = set()
        self._unfit = False
        self._lists_alike = False
        """Whether this kernel lists rules in the form that is known; then none have to be read to compare."""

    def update(self, table: PolicyTable, touched: Touched) -> set[str]:
        """Take over what was touched; return the keys of what may have to be written."""
        return {ADDRESSES, *self.desired.update(table, touched)}

    def use_config(self, config: PolicyConfig) -> set[str]:
        """Change to other settings of the same family; return the keys of what may have to be written."""
        if config == self.desired.config:
            return set()
        self.desired.use_config(config)
        if self._record is not None:
            self._mark_all(self._record)
        return {ADDRESSES, *self.desired.groups}

    def explain(self, error: Exception) -> Failure:
        """After any failure but a refusal it is unknown what was applied."""
        assert isinstance(error, NftError)  # noqa: S101 - `errors` has no other
        return Failure(error.message, error.kind.value, refused=error.kind is NftFailure.REFUSED)

    def foreign_writes(self) -> int:
        """The number of writes by others so far."""
        return self._watch.foreign_writes

    def refresh(self) -> None:
        """Do nothing: no ability of the kernel is remembered."""

    def observe(self, work: SyncWork, *, compare: bool) -> Observation:
        """Read the table; replace one that cannot be kept, or that is missing, in one transaction."""
        found = self._nft.reading(self._family, names.TABLE)
        drifts: tuple[Drift, ...] = ()
        known, self._record = self._record, None
        unfit, self._unfit = self._unfit, False
        if found is None or unfit or not self._is_whole(found):
            if compare and known is not None:
                drifts = () if unfit else (unusable(found),)
            self._exchange(work)
            return Observation(frozenset(self.desired.closed), drifts)
        if compare and known is not None:
            drifts = self._drifts(known, found)
        self._adopt(found)
        return Observation({ADDRESSES, *self.desired.groups}, drifts)

    def apply(self, work: SyncWork, keys: Sequence[str]) -> Collection[str]:
        """Write groups; if the kernel refuses some, close these and write the others."""
        record = self._known_record()
        for key in keys:
            self.desired.open(key)

        def attempt(some: Sequence[str]) -> None:
            change = difference(self.desired, record, some)
            if len(some) == len(keys):
                self._write_whole(work, record, change)
            else:
                self._write(work, record, change)

        try:
            work.bisect(keys, attempt, lambda key: self._close(work, record, key))
        except NftError as error:
            # Not even a closed group can be written: others have changed what cannot be read, or only whole.
            self._unfit = error.kind is NftFailure.REFUSED
            raise
        return ()

    def prune(self, work: SyncWork) -> Mapping[str, str]:
        """Delete what is left of what nothing needs."""
        record = self._known_record()
        objects = idle(self.desired, record)
        left = {each: work.postponed[each] for each in objects if each in work.postponed}
        doomed = [each for each in objects if each not in left]
        left |= work.bisect_leftovers(doomed, lambda some: self._write(work, record, Change(idle=some)))
        return left

    def drift(self, *, quiet: bool, full: bool) -> Comparison | None:
        """Compare the table with the applied state; in quiet times only record how the kernel lists rules."""
        record = self._record
        if record is None or (quiet and not full and (self._lists_alike or self._baseline is not None)):
            return None
        if quiet and not full:
            found = self._nft.reading(self._family, names.TABLE, elements=False)
            self._baseline = found.chains if found is not None else {}
            self._lists_alike = record.is_found(self._family, self._baseline, self.desired.hooks)
            return None
        found = self._nft.reading(self._family, names.TABLE)
        if found is None or not self._is_whole(found):
            return Comparison((unusable(found),))
        drifts = self._drifts(record, found)
        if drifts:
            self._adopt(found)
        else:
            self._baseline = found.chains
        return Comparison(drifts, {ADDRESSES, *self.desired.groups} if drifts else ())

    def counts(self) -> dict[str, int]:
        """Number of elements, chains and groups in the applied state. May be called from any thread."""
        record = self._record
        if record is None:
            return {}
        elements = sum(map(len, tuple(record.held.values())))
        return {"elements": elements, "chains": len(record.chains), "groups": len(self.desired.groups)}

    def _known_record(self) -> Record:
        assert self._record is not None, "the kernel is read first"  # noqa: S101
        return self._record

    def _is_whole(self, found: Reading) -> bool:
        return is_whole(found, self.desired.chains, self.desired.hooks)

    def _drifts(self, record: Record, found: Reading) -> tuple[Drift, ...]:
        def is_same(name: str) -> bool:
            rules = record.chains[name]
            hook = self.desired.hooks.get(name, "")
            return rules is None or is_listed(self._family, rules, hook, found.chains[name])

        drifts = table_drifts(record, found, self._baseline, is_same if self._lists_alike else None)
        named = tuple(drift for drift in drifts if drift.object not in self._unsure)
        self._unsure.clear()
        return named

    def _adopt(self, found: Reading) -> None:
        """Replace the record by what was read; everything may differ from it."""
        record = Record.of(found)
        record.recognise(self._family, self.desired.chains, self.desired.hooks)
        self._mark_all(record)
        self._record, self._baseline = record, None

    def _mark_all(self, record: Record) -> None:
        by_address = (names.EGRESS, names.INGRESS, names.KNOWN)
        self.desired.touch_all(address for name in by_address for address in record.held.get(name, ()))

    def _exchange(self, work: SyncWork) -> None:
        """Replace the table, or make it.

        If that is refused, the groups at fault are found in a table of their own and closed, so that packets
        meet no incomplete table.
        """
        desired = self.desired
        for name in tuple(desired.closed):
            desired.open(name)
        try:
            self._replace(work)
        except NftError as error:
            if error.kind is not NftFailure.REFUSED:
                raise
            work.bisect(sorted(desired.groups), self._try, self._close_only)
            self._replace(work)

    def _replace(self, work: SyncWork) -> None:
        record, script = Record(), Script(self._family)
        self.desired.touch_all(())
        script.remove_table()
        script.make_table()
        change = difference(self.desired, record, (*self.desired.groups, ADDRESSES))
        change.write(script, self.desired.hooks, ())
        self._commit(work, script, change)
        self._note(record, change)
        self._record = record

    def _try(self, some: Sequence[str]) -> None:
        """Make groups in a table of their own, without hooks, and delete it in the same transaction."""
        script = Script(self._family, TRIAL)
        script.make_table()
        desired = self.desired
        change = difference(desired, Record(), some)
        base = {name: rules for name, rules in change.chains.items() if name not in desired.hooks}
        script.declare(change.declared)
        script.chains(base, {}, ())
        for name, elements in change.fresh.items():
            script.add_elements(name, elements)
        script.remove_table()
        with self._watch.writing():
            self._nft.commit(script.transaction())

    def _close_only(self, key: str) -> bool:
        self.desired.close(key)
        return False

    def _close(self, work: SyncWork, record: Record, key: str) -> bool:
        """Close a group that the kernel refuses, at once; it stays quarantined."""
        if key in self.desired.groups:
            self.desired.close(key)
            self._write(work, record, difference(self.desired, record, (key,)))
        return False

    def _write_whole(self, work: SyncWork, record: Record, change: Change) -> None:
        """Write a change, and delete what nothing needs any more in the same transaction if possible."""
        objects = [each for each in idle(self.desired, record) if each not in work.postponed]
        if objects:
            try:
                self._write(work, record, msgspec.structs.replace(change, idle=objects))
            except NftError as error:
                if error.kind is not NftFailure.REFUSED:
                    raise
            else:
                return
        self._write(work, record, change)

    def _write(self, work: SyncWork, record: Record, change: Change) -> None:
        script = Script(self._family)
        change.write(script, self.desired.hooks, record.chains.keys())
        if script:
            self._commit(work, script, change)
        self._note(record, change)

    def _note(self, record: Record, change: Change) -> None:
        if change.chains or change.idle:
            self._baseline = None
        change.note(record)
        self.desired.dirty_sets.difference_update(change.sets)
        self.desired.dirty_addresses.difference_update(change.addresses)

    def _commit(self, work: SyncWork, script: Script, change: Change) -> None:
        try:
            with self._watch.writing():
                self._nft.commit(script.transaction())
        except NftError as error:
            if error.kind is NftFailure.INTERRUPTED:
                self._unsure.update(change.objects())
            raise
        _count(work.written, change)


def _count(written: Counter[str], change: Change) -> None:
    written["transactions"] += 1
    written["chains"] += len(change.chains)
    written["elements"] += sum(map(len, change.fresh.values()))
    fresh = change.fresh
    written["elements_deleted"] += sum(
        key not in fresh.get(name, ()) for name, keys in change.doomed.items() for key in keys
    )
    written["chains_deleted"] += sum(each.startswith("chain ") for each in change.idle)
