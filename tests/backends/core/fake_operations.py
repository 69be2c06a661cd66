"""A mode in memory for the reconciler: a value per service, written in batches refused as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from kproxy.addresses import Family
from kproxy.backends.core.base import Difference, Drift
from kproxy.backends.core.work import Changes, Comparison, DesiredChange, Failure, Observation, SyncWork
from kproxy.plan.model import PortPlan, Protocol, ServicePlan


class KernelError(Exception):
    """An error of the kernel in memory; see Failure for the fields."""

    def __init__(self, message: str, *, refused: bool = False, stale: bool = True) -> None:
        super().__init__(message)
        self.refused = refused
        self.stale = stale


def plan(key: str, number: int = 1, *, affinity: bool = False, gone: bool = False) -> ServicePlan:
    """A service whose value in the kernel is `number`; those with affinity have rules of another kind."""
    port = PortPlan(
        key, Protocol.TCP, "10.96.0.1", number, affinity_seconds=10 if affinity else None, has_endpoints=True
    )
    return ServicePlan(key, Family.IPV4, ports=() if gone else (port,))


class FakeOperations:
    """Operations on `kernel`, which maps services to values, and the kernel's behaviour.

    `no_affinity`: it refuses services with affinity. `bad`: it refuses these. `in_use`: it does not delete
    these. `fail`: called before (False) and after (True) each write, and may raise. `attempts` are the
    batches that were tried.
    """

    errors = (KernelError,)
    degraded: Mapping[str, str] = {}

    def __init__(self) -> None:
        self.kernel: dict[str, tuple[int, bool]] = {}
        self.no_affinity = False
        self.bad: set[str] = set()
        self.in_use: set[str] = set()
        self.fail: Callable[[bool], None] = lambda _: None
        self.writes_by_others = 0
        self.attempts: list[tuple[str, ...]] = []
        self.reads = 0
        self.wanted = 0
        self.cost: Callable[[], None] = lambda: None
        self._desired: dict[str, tuple[int, bool]] = {}
        self._applied: dict[str, tuple[int, bool]] = {}
        self._unsure: set[str] = set()

    @property
    def desired(self) -> dict[str, tuple[int, bool]]:
        return dict(self._desired)

    @property
    def applied(self) -> dict[str, tuple[int, bool]]:
        """The record of the kernel."""
        return dict(self._applied)

    def refuses(self, key: str) -> bool:
        wanted = self._desired.get(key)
        return wanted is not None and (key in self.bad or (self.no_affinity and wanted[1]))

    def explain(self, error: Exception) -> Failure:
        assert isinstance(error, KernelError)
        return Failure(str(error), refused=error.refused, stale=error.stale)

    def set_desired(self, changes: Changes, plans: Mapping[str, ServicePlan]) -> DesiredChange:
        changed = set()
        for _, new in changes:
            self.wanted += 1
            value = (new.ports[0].port, new.ports[0].affinity_seconds is not None) if new.ports else None
            if self._desired.get(new.key) == value:
                continue
            changed.add(new.key)
            if value is None:
                del self._desired[new.key]
            else:
                self._desired[new.key] = value
        return DesiredChange(changed)

    def foreign_writes(self) -> int:
        return self.writes_by_others

    def observe(self, work: SyncWork, *, compare: bool) -> Observation:
        self.reads += 1
        drifts = self._drifts() if compare else ()
        self._adopt()
        return Observation(self._pending(), drifts)

    def apply(self, work: SyncWork, keys: Sequence[str]) -> Sequence[str]:
        wanted = [key for key in keys if key in self._desired]
        size = 2 if work.limited else 64
        for start in range(0, len(wanted), size):
            work.bisect(wanted[start : start + size], lambda some: self._write(work, some))
            if work.expired:
                return wanted[start + size :]
        return ()

    def prune(self, work: SyncWork) -> Mapping[str, str]:
        unneeded = {f"value {key}": key for key in self._applied if key not in self._desired}
        left = {name: work.postponed[name] for name in unneeded if name in work.postponed}
        doomed = sorted(unneeded.keys() - left.keys())
        return left | work.bisect_leftovers(doomed, lambda some: self._delete([unneeded[n] for n in some]))

    def drift(self, *, quiet: bool, full: bool) -> Comparison | None:
        if quiet and not full:
            return None
        drifts = self._drifts()
        if drifts:
            self._adopt()
        return Comparison(drifts, self._pending())

    def refresh(self) -> None:
        pass

    def _write(self, work: SyncWork, keys: Sequence[str]) -> None:
        self.attempts.append(tuple(keys))
        self.cost()
        self._may_fail(keys, applied=False)
        for key in keys:
            if key in self.bad:
                raise KernelError(f"the value of {key.partition('/')[2]} is refused", refused=True)
            if self.refuses(key):
                raise KernelError(f"no match recent, rule of {key}", refused=True)
        written = {key: self._desired[key] for key in keys}
        self.kernel |= written
        self._may_fail(keys, applied=True)
        self._applied |= written
        work.written["values"] += len(keys)

    def _delete(self, keys: Sequence[str]) -> None:
        self._may_fail(keys, applied=False)
        for key in keys:
            if key in self.in_use:
                raise KernelError(f"{key} is in use", refused=True)
            if key not in self.kernel:
                raise KernelError(f"{key} does not exist", refused=True)
        for key in keys:
            del self.kernel[key]
        self._may_fail(keys, applied=True)
        for key in keys:
            del self._applied[key]

    def _may_fail(self, keys: Sequence[str], *, applied: bool) -> None:
        try:
            self.fail(applied)
        except KernelError:
            self._unsure.update(keys)
            raise

    def _drifts(self) -> tuple[Drift, ...]:
        named = []
        for key in sorted(self._applied.keys() | self.kernel.keys()):
            if key not in self.kernel:
                found = Difference.MISSING
            elif key not in self._applied:
                found = Difference.UNEXPECTED
            elif self.kernel[key] != self._applied[key]:
                found = Difference.MODIFIED
            else:
                continue
            if key not in self._unsure:
                named.append(Drift("value", key, found))
        return tuple(named)

    def _adopt(self) -> None:
        self._applied = dict(self.kernel)
        self._unsure.clear()

    def _pending(self) -> set[str]:
        return {key for key, value in self._desired.items() if self._applied.get(key) != value}
