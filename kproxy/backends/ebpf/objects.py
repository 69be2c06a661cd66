"""The frontends of one family, as operations of the reconciler.

A service whose write the kernel refused is taken out of the maps with all its frontends: its packets are then
translated one by one, and no connection goes to an endpoint that is gone. What leaves the maps leaves them
before anything else is written.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

from kproxy.addresses import Family
from kproxy.backends.core.base import Difference, Drift
from kproxy.backends.core.work import Changes, Comparison, DesiredChange, Failure, Observation, SyncWork
from kproxy.backends.ebpf.config import SocketConfig
from kproxy.backends.ebpf.desired import DesiredFrontends
from kproxy.backends.ebpf.record import Standing, differences
from kproxy.backends.ebpf.render import Frontend, render_service
from kproxy.backends.ebpf.shared import SharedTable
from kproxy.backends.ebpf.writer import FrontendWriter
from kproxy.kernel.bpf.types import BpfError, BpfFailure
from kproxy.plan.model import ServicePlan


class SocketObjects:
    """The desired frontends of all services, and those in the maps."""

    errors = (BpfError,)
    degraded: Mapping[str, str] = {}

    def __init__(
        self,
        family: Family,
        shared: SharedTable,
        config: SocketConfig,
        clock: Callable[[], float],
        wait: Callable[[float], None],
    ) -> None:
        self.writer = FrontendWriter(family, shared, clock, wait)
        self._family = family
        self._shared = shared
        self._config = config
        self._clock = clock
        self._desired = DesiredFrontends()
        self._next_check = 0.0

    def set_desired(self, changes: Changes, plans: Mapping[str, ServicePlan]) -> DesiredChange:  # noqa: ARG002
        """Render some services."""
        put, config = self._desired.put, self._config
        return DesiredChange([plan.key for _, plan in changes if put(plan.key, render_service(plan, config))])

    def use_config(self, config: SocketConfig) -> SocketConfig:
        """Change to other settings of the same family; return the former ones."""
        before, self._config = self._config, config
        return before

    def explain(self, error: Exception) -> Failure:
        """After any failure the maps are read again."""
        assert isinstance(error, BpfError)  # noqa: S101 - `errors` has no other
        return Failure(error.message, error.kind.value)

    def foreign_writes(self) -> None:
        """The kernel does not count changes of maps."""

    def observe(self, work: SyncWork, *, compare: bool) -> Observation:  # noqa: ARG002
        """Read the maps."""
        before, unsure = self.writer.standing, self.writer.unsure
        self.writer.read()
        drifts = self._differences(before, unsure) if compare else ()
        return Observation(self._compare(), drifts)

    def apply(self, work: SyncWork, keys: Sequence[str]) -> tuple[str, ...]:
        """Delete frontends that no service has any more, then write these services; then let them serve."""
        desired, writer = self._desired, self.writer
        for service in keys:
            desired.touched.update(dict.fromkeys(desired.keys_of(service)))
        touched, desired.touched = desired.touched, {}
        if touched:
            self._write(work, touched)
        self._shared.settle(self._family)
        if writer.slots_written:
            work.written["slots"] += writer.slots_written
            writer.slots_written = 0
        return ()

    def prune(self, work: SyncWork) -> Mapping[str, str]:  # noqa: ARG002
        """Do nothing: `apply` deletes."""
        return {}

    def drift(self, *, quiet: bool, full: bool) -> Comparison | None:  # noqa: ARG002 - writes are not counted
        """Compare links and pins, and from time to time the maps."""
        drifts = tuple(
            Drift(kind, name, Difference(each.change.value), each.detail)
            for each in self._shared.problems(self._family)
            for kind, _, name in [each.object.partition(" ")]
        )
        due = full or self._clock() >= self._next_check
        if not due and not drifts:
            return None
        if due:
            self._next_check = self._clock() + self._config.drift_check_interval
        if not due or self.writer.is_as_recorded():
            return Comparison(drifts, ())
        before = self.writer.standing
        self.writer.read()
        return Comparison(drifts + self._differences(before), self._compare())

    def refresh(self) -> None:
        """Try again to make the maps larger."""
        self.writer.try_growth_again()

    def frontends(self) -> Sequence[tuple[bytes, Frontend]]:
        """The frontends that services want, by key. May be called from any thread."""
        return tuple(self._desired.wanted.items())

    def _write(self, work: SyncWork, touched: Mapping[bytes, None]) -> None:
        desired, writer, held = self._desired, self.writer, work.held
        gone: list[bytes] = []
        wrong: list[Frontend] = []
        for key in touched:
            want, have = desired.wanted.get(key), writer.standing.get(key)
            if want is None or (held and desired.owner(key) in held):
                gone.append(key)
            elif have is None or have.slots != want.slots:
                wrong.append(want)
        deleted = writer.delete(gone) if gone else 0
        refused: dict[bytes, str] = {}
        moved: list[Frontend] = []
        for want in wrong:
            try:
                if not writer.change(want):
                    moved.append(want)
            except BpfError as error:
                if error.kind not in {BpfFailure.FULL, BpfFailure.INTERRUPTED}:
                    raise
                refused[want.key] = error.message
        if moved:
            refused |= writer.place(moved)
        written = deleted + len(wrong) - len(refused)
        if refused:
            written += self._refuse(work, refused)
        if written:
            work.written["frontends"] += written

    def _refuse(self, work: SyncWork, refused: Mapping[bytes, str]) -> int:
        """Take services out of the maps; return the number of frontends deleted."""
        deleted = 0
        services = {self._desired.owner(key): reason for key, reason in refused.items()}
        for service, reason in services.items():
            if service is not None:
                deleted += self.writer.delete(self._desired.keys_of(service))
                work.refuse([service], reason)
        return deleted

    def _compare(self) -> set[str]:
        """Mark all frontends as touched that differ; return their services."""
        desired, standing = self._desired, self.writer.standing
        pending: set[str] = set()
        for key, want in desired.wanted.items():
            have = standing.get(key)
            if have is not None and have.slots == want.slots:
                have.slots = want.slots  # one object in memory instead of two
                continue
            desired.touched[key] = None
            owner = desired.owner(key)
            if owner is not None:
                pending.add(owner)
        desired.touched.update(dict.fromkeys(standing.keys() - desired.wanted.keys()))
        return pending

    def _differences(
        self, before: Mapping[bytes, Standing], unsure: Collection[bytes] = ()
    ) -> tuple[Drift, ...]:
        after, owner = self.writer.standing, self._desired.owner
        return tuple(differences(self._family, before, after, owner, unsure))
