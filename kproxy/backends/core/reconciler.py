"""The one owner of a sync's bookkeeping in all modes: what is pending, stale, refused, and left over.

A mode gives operations in batch form (work.py); this module decides in which order they run and what their
outcome means:

- The applied state is read at the start, after a failure whose outcome is unknown, and a second time in a
  sync if changes by others may have caused a refusal. So a lost write is found, and changes by others are
  named.
- Pending services become applied by success only. A service that the kernel refuses is quarantined and keeps
  its former objects; all others are written.
- What was refused is tried again at growing intervals, after the healthy work of a sync and within a small
  share of time (quarantine.py, retries.py).

A sync without changes costs nothing that grows with the number of services.
"""

import enum
import time
from collections.abc import Callable, Collection
from typing import Generic, TypeVar

import msgspec

from kproxy.addresses import Family
from kproxy.backends.core.base import (
    CheckError,
    Drift,
    ServiceState,
    ServiceStatus,
    SyncReport,
    quarantined,
)
from kproxy.backends.core.quarantine import Cause, Quarantine
from kproxy.backends.core.retries import Leftovers
from kproxy.backends.core.shapes import Shapes, error_kind
from kproxy.backends.core.sync import Sync
from kproxy.backends.core.work import DesiredChange, KernelObjects, StaleStateError

RETRY_SECONDS = 0.1
"""Seconds of retries in a sync after which no further one begins; so a change waits little longer."""

RETRY_SHARE = 0.1
"""Retries take at most this share of time: after t seconds of them, none begins for 9 t."""

AnyOperations = TypeVar("AnyOperations", bound=KernelObjects)


class _Applied(enum.Enum):
    """Whether the applied state is unknown, was known before a failure, or is known."""

    UNKNOWN = enum.auto()
    BEFORE_FAILURE = enum.auto()
    KNOWN = enum.auto()


class Reconciler(Generic[AnyOperations]):
    """Brings the objects of one family to the desired state; a subclass says what is desired.

    It knows what it writes by keys only: those of services (service_reconciler.py), or of groups of network
    policies. `clock` returns monotonic seconds.
    """

    family: Family
    on_progress: Callable[[], None]
    gives_way: Callable[[], bool]
    on_timed_sync: Callable[[SyncReport, float], None]

    def __init__(
        self,
        family: Family,
        operations: AnyOperations,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.family = family
        self.on_progress = lambda: None
        self.on_timed_sync = lambda _, __: None
        self.gives_way = lambda: False
        self.operations = operations
        self._clock = clock
        self._pending: set[str] = set()
        self._quarantine = Quarantine(clock)
        self._leftovers = Leftovers(clock)
        self._applied = _Applied.UNKNOWN
        self._seen_writes: int | None = None
        self._next_retry = clock()

    @property
    def in_step(self) -> bool:
        """Whether the applied state is known, not stale."""
        return self._applied is _Applied.KNOWN

    def invalidate(self) -> None:
        """Mark the applied state as stale: the next sync reads and compares the kernel."""
        self._applied = _Applied.UNKNOWN

    def retry(self) -> None:
        """Make the next sync retry all quarantined services and leftovers."""
        self._quarantine.clear()
        self._leftovers.retry()
        self._refresh()

    def sync(self, budget: float | None = None) -> SyncReport:
        """Bring the kernel to the desired state, writing only what differs; see Backend for `budget`."""
        ends = None if budget is None else self._clock() + budget
        sync = Sync(
            self.operations,
            self._pending,
            self._quarantine,
            seen_writes=self._seen_writes,
            shapes=self._shapes(),
            progress=self.on_progress,
            expires=None if ends is None else lambda: self._clock() >= ends,
        )
        error = None
        try:
            try:
                self._run(sync)
            except StaleStateError as stale:
                sync.resynced = str(stale)
                self._fail()
                self._run(sync)
        except self.operations.errors as failed:
            failure = self.operations.explain(failed)
            error = failure.text
            if failure.stale:
                self._fail()
        except StaleStateError as stale:
            error = str(stale)
            self._fail()
        return self._report(sync, error)

    def check(self, *, full: bool = False) -> tuple[Drift, ...]:
        """Compare the kernel with the applied state; return the drift, which the next sync corrects.

        Raises CheckError if the kernel cannot be read.
        """
        if self._applied is not _Applied.KNOWN:
            return ()
        writes = self.operations.foreign_writes()
        quiet = writes is not None and writes == self._seen_writes
        try:
            found = self.operations.drift(quiet=quiet, full=full)
        except self.operations.errors as error:
            raise CheckError(self.operations.explain(error).message) from error
        if found is None:
            return ()
        self._seen_writes = writes
        if found.drifts:
            self._leftovers.retry()
            if found.pending is None:
                self.invalidate()
            else:
                self._pending.update(found.pending)
        return found.drifts

    def run_timers(self) -> float | None:
        """Return None: there is no periodic work."""
        return None

    def _run(self, sync: Sync) -> None:
        operations = self.operations
        if self._applied is not _Applied.KNOWN:
            writes = operations.foreign_writes()
            seen = operations.observe(sync, compare=self._applied is _Applied.BEFORE_FAILURE)
            self._seen_writes = sync.seen_writes = writes
            self._applied = _Applied.KNOWN
            sync.full = True
            sync.drifts += seen.drifts
            if seen.rewritten:
                self._quarantine.clear()
            self._set_pending(seen.pending)
            self._leftovers.retry()
        sync.postponed = self._leftovers.postponed()
        retries = self._retries_due()
        if retries:
            self._refresh()
        fresh = sync.without_assumed(sorted(self._pending - self._quarantine.keys))
        left = frozenset(operations.apply(sync, fresh))
        self._pending.intersection_update(self._quarantine.keys | left)
        sync.unfinished = left - self._quarantine.keys
        if sync.unfinished:
            return  # what these services still use is not to be pruned
        self._prune(sync)
        if retries:
            sync.expires = None  # retries have a limit of their own
            self._retry(sync)
            self._prune(sync)

    def _prune(self, sync: Sync) -> None:
        found = self.operations.prune(sync)
        sync.kept += self._leftovers.replace(found, sync.postponed)
        sync.postponed = self._leftovers.postponed()

    def _retries_due(self) -> bool:
        return self._clock() >= self._next_retry and self._quarantine.due() is not None

    def _retry(self, sync: Sync) -> None:
        """Try refused services again whose time has come."""
        began = self._clock()
        while (cause := self._quarantine.due()) is not None:
            self._try_again(sync, cause)
            if self._clock() - began >= RETRY_SECONDS:
                break
        self._next_retry = began + (self._clock() - began) / RETRY_SHARE

    def _try_again(self, sync: Sync, cause: Cause) -> None:
        taken = self._quarantine.take(cause)
        sync.expected = frozenset(map(error_kind, taken.values()))
        done = False
        try:
            self.operations.apply(sync, sorted(taken))
            done = True
        finally:
            sync.expected = frozenset()
            if not done:
                self._quarantine.restore(cause, taken.items())
        refused = taken.keys() & self._quarantine.keys
        self._pending.difference_update(taken.keys() - refused)
        self._quarantine.tried(cause, accepted=len(refused) < len(taken), refused=bool(refused))

    def _adopt(self, wanted: DesiredChange) -> None:
        self._pending.update(wanted.changed)
        for key in wanted.changed:
            if self._quarantine.discard(key):
                self._leftovers.retry()  # it may have kept objects that no other service needs
        if wanted.stale:
            self.invalidate()

    def _refresh(self) -> None:
        self.operations.refresh()

    def _shapes(self) -> Shapes | None:
        """The shapes by which an error is assumed for others; None if nothing is assumed."""
        return None

    def _set_pending(self, pending: Collection[str]) -> None:
        self._pending.clear()
        self._pending.update(pending)
        for key in self._quarantine.keys - self._pending:
            self._quarantine.discard(key)

    def _fail(self) -> None:
        if self._applied is _Applied.KNOWN:
            self._applied = _Applied.BEFORE_FAILURE

    def _report(self, sync: Sync, error: str | None) -> SyncReport:
        result = SyncReport(
            error=error,
            changes={kind: count for kind, count in sync.written.items() if count},
            rules=dict(sync.rules),
            full=sync.full,
            drifts=tuple(sync.drifts),
            resynced=sync.resynced,
            refusals=sync.refusals,
            kept=sync.kept,
            unfinished=sync.unfinished if error is None else frozenset(),
        )
        if error is not None:
            return result
        degraded = self.operations.degraded
        services = {key: ServiceStatus(ServiceState.DEGRADED, part) for key, part in degraded.items()}
        services |= quarantined(self._quarantine.reasons)
        leftovers = self._leftovers.reasons
        return msgspec.structs.replace(
            result, services=services, leftovers=leftovers, retry_in=self._retry_in()
        )

    def _retry_in(self) -> float | None:
        refused, left = self._quarantine.next_due(), self._leftovers.next_due()
        due = [] if refused is None else [max(refused, self._next_retry)]
        due += [] if left is None else [left]
        return max(0.0, min(due) - self._clock()) if due else None
