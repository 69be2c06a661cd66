"""One sync as the operations of a mode see it: counters, and where refusals go."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from kproxy.backends.core.base import Drift
from kproxy.backends.core.bisect import bisect_refused
from kproxy.backends.core.quarantine import Cause, Quarantine
from kproxy.backends.core.shapes import Shape, Shapes, error_kind
from kproxy.backends.core.work import KernelObjects, StaleStateError


class WriteCounter(Counter[str]):
    """Counts what a sync has written, by kind. Each write calls `progress`, which must be quick."""

    def __init__(self, progress: Callable[[], None]) -> None:
        super().__init__()
        self._progress = progress

    def __setitem__(self, kind: str, count: int) -> None:
        super().__setitem__(kind, count)
        self._progress()


class Sync:
    """A SyncWork. It adds refused services to `quarantine` and `pending`, which the reconciler owns.

    `expires`: tells whether the time of the sync is over; None if that has no limit. `expected`: kinds of
    errors for which the services that are tried now were refused before. `resynced`: why the kernel was
    read a second time in this sync. `shapes`: those of the services, if an error that was proven for some is
    assumed for others. `kept`: leftovers that could not be deleted in it. `unfinished`: services
    that wait for the next sync because the time was over.
    """

    def __init__(
        self,
        operations: KernelObjects,
        pending: set[str],
        quarantine: Quarantine,
        *,
        seen_writes: int | None,
        shapes: Shapes | None = None,
        progress: Callable[[], None] = lambda: None,
        expires: Callable[[], bool] | None = None,
    ) -> None:
        self.written: Counter[str] = WriteCounter(progress)
        self.rules: Counter[str] = Counter()
        self.drifts: list[Drift] = []
        self.full = False
        self.resynced: str | None = None
        self.refusals = 0
        self.kept = 0
        self.postponed: Mapping[str, str] = {}
        self.expected: frozenset[str] = frozenset()
        self.seen_writes = seen_writes
        self._operations = operations
        self._pending = pending
        self._quarantine = quarantine
        self._shapes = shapes
        self.expires = expires
        self.unfinished: frozenset[str] = frozenset()

    @property
    def limited(self) -> bool:
        """Whether the sync has a limited time."""
        return self.expires is not None

    @property
    def expired(self) -> bool:
        """Whether that time is over."""
        return self.expires is not None and self.expires()

    @property
    def held(self) -> Collection[str]:
        """The services that are quarantined and not tried now."""
        return self._quarantine.keys

    def refuse(self, keys: Iterable[str], reason: str) -> None:
        """Quarantine services; as the error names the request, each is tried again by itself."""
        for key in keys:
            self._refuse(key, reason, Cause(reason))

    def bisect(
        self,
        keys: Sequence[str],
        attempt: Callable[[Sequence[str]], None],
        write_otherwise: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """Write a batch of services; find and quarantine those at fault if the kernel refuses it."""

        def give_up(key: str, error: Exception) -> None:
            if write_otherwise(key):
                return
            reason = self._operations.explain(error).message
            cause = Cause(error_kind(reason), self._shape(key))
            self._refuse(key, reason, cause)
            self._quarantine.prove(cause, self._is_applied)

        bisect_refused(
            keys,
            attempt,
            give_up,
            refusal=self._operations.errors,
            classify_refusal=self._classify,
            left=self.without_assumed,
        )

    def bisect_leftovers(
        self, names: Sequence[str], attempt: Callable[[Sequence[str]], None]
    ) -> dict[str, str]:
        """Delete a batch of objects; return those that the kernel would not delete, with the reason."""
        kept: dict[str, str] = {}

        def give_up(name: str, error: Exception) -> None:
            kept[name] = self._operations.explain(error).message

        errors = self._operations.errors
        bisect_refused(names, attempt, give_up, refusal=errors, classify_refusal=self._classify)
        return kept

    def without_assumed(self, keys: Sequence[str]) -> Sequence[str]:
        """Quarantine those services for which a cause is proven; return the others.

        A service that is tried again is always tried.
        """
        if self.expected or not self._quarantine.assumes:
            return keys
        left = []
        for key in keys:
            shape = self._shape(key)
            if shape is None or not self._quarantine.assume(key, shape):
                left.append(key)
        return left

    def check_refusal(self, reason: str) -> None:
        """Raise StaleStateError if a refusal may only mean that the applied state is stale."""
        if error_kind(reason) in self.expected:
            return
        writes = self._operations.foreign_writes()
        if writes is None or writes != self.seen_writes:
            self.resync(reason)

    def resync(self, reason: str) -> None:
        """Raise StaleStateError, unless the kernel was read a second time in this sync."""
        if self.resynced is None:
            raise StaleStateError(reason)

    def _refuse(self, key: str, reason: str, cause: Cause) -> None:
        self.refusals += 1
        self._pending.add(key)
        self._quarantine.add(key, reason, cause)

    def _classify(self, error: Exception) -> None:
        failure = self._operations.explain(error)
        if not failure.refused:
            raise error
        self.check_refusal(failure.message)

    def _is_applied(self, shape: Shape) -> bool:
        """Whether the kernel holds any service with rules of a kind."""
        pending, shapes = self._pending, self._shapes
        return shapes is not None and any(key not in pending for key in shapes.having(shape))

    def _shape(self, key: str) -> Shape | None:
        return None if self._shapes is None else self._shapes.shape(key)
