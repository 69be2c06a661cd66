"""The half of the mode that is optional: the socket table of this node, while it can be had.

The nftables table holds every service, so that this half may fail at any moment and in any way. What must not
be is a table that serves and is not kept up to date. So one that cannot be written is taken away, and one
that cannot be published, or that has no effect, is kept up to date and tried again.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime

import msgspec
import structlog

from kproxy.addresses import Family
from kproxy.backends.core.base import CheckError, Drift, SyncReport
from kproxy.backends.ebpf.backend import PortConnections, SocketBackend
from kproxy.backends.ebpf.config import SocketConfig
from kproxy.kernel.bpf.types import BpfError, BpfFailure, SocketTable
from kproxy.modes.base import SocketTableState
from kproxy.modes.ebpf.kernel import (
    TableSettings,
    foreign_programs,
    open_table,
    remove_table,
    serves_this_process,
)
from kproxy.modes.ebpf.reports import joined
from kproxy.modes.ebpf.self_test import self_test
from kproxy.modes.ebpf.watched import WatchedTable
from kproxy.plan.model import ServicePlan

log = structlog.stdlib.get_logger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 5.0, 300.0
"""Seconds until a table that failed is tried again; they double with every failure."""

_EFFECT = "every service is served by the nftables table"


class Kernel(msgspec.Struct, frozen=True):
    """What this half needs of the kernel; tests replace it."""

    open: Callable[[TableSettings], SocketTable] = open_table
    withdraw: Callable[[TableSettings], object] = lambda settings: remove_table(settings.pins)
    can_test: Callable[[TableSettings], bool] = serves_this_process
    test: Callable[[SocketBackend], str | None] = self_test


class _Part(msgspec.Struct):
    """One family: its settings, where its plans are, and its backend while there is a table."""

    config: SocketConfig
    plans: Callable[[], Iterable[ServicePlan]]
    backend: SocketBackend | None = None
    report: SyncReport | None = None


class Sockets:
    """Used by the run loop's thread, except `state`, `frontends` and `connections`."""

    def __init__(
        self,
        families: Collection[Family],
        settings: TableSettings,
        kernel: Kernel | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state = SocketTableState()
        self._families = families
        self._settings = settings
        self._kernel = kernel or Kernel()
        self._clock = clock
        self._parts: dict[Family, _Part] = {}
        self._shared: WatchedTable | None = None
        self._lock = threading.Lock()
        self._tested = 0
        self._pause = FIRST_PAUSE
        self._retry_at: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is a table that is kept up to date."""
        return self._shared is not None

    def open(self) -> None:
        """Open the table; a failure is noted, and tried again later."""
        try:
            table = self._kernel.open(self._settings)
        except BpfError as error:
            if error.kind is not BpfFailure.OCCUPIED:
                # What a former process left would serve endpoints of that time.
                self._kernel.withdraw(self._settings)
            self._degrade(error.message)
            return
        self._shared = WatchedTable(table, self._families, FIRST_PAUSE, self._clock)
        self._tested = 0
        for family in self._parts:
            self._begin(family)

    def configure(
        self, family: Family, config: SocketConfig, plans: Callable[[], Iterable[ServicePlan]]
    ) -> None:
        """Use these settings for a family; `plans` returns those of all services with ports."""
        part = self._parts.get(family)
        if part is None:
            self._parts[family] = _Part(config, plans)
            self._begin(family)
            return
        part.config = config
        if part.backend is not None:
            part.backend.reconfigure(config)

    def use_settings(self, settings: TableSettings) -> None:
        """Move the table to where the settings want it; without a change, do nothing."""
        before, self._settings = self._settings, settings
        if settings == before:
            return
        if (settings.cgroup_root, settings.pins) == (before.cgroup_root, before.pins):
            self.close()
        else:
            self._remove()
            self._kernel.withdraw(before)
        self._forgive()
        self.open()

    def update(self, family: Family, plans: Iterable[ServicePlan]) -> None:
        """Replace the desired state of services."""
        backend = self._backend(family)
        if backend is not None:
            backend.update(plans)

    def write(self) -> None:
        """Bring the maps of all families to the desired state, and see whether they serve."""
        for family, part in self._parts.items():
            if part.backend is None:
                continue
            report = part.backend.sync()
            if report.error is not None:
                report = part.backend.sync()  # it reads the maps again
            part.report = report if part.report is None else joined(part.report, report)
            if report.error is not None:
                self._take_away(f"{family}: the maps cannot be written: {report.error}")
                return
        if self._shared is not None:
            self._judge(self._shared)

    def take_report(self, family: Family) -> SyncReport | None:
        """What was written for a family since the last call; None if nothing was tried."""
        part = self._parts.get(family)
        if part is None:
            return None
        report, part.report = part.report, None
        return report

    def invalidate(self, family: Family) -> None:
        """Read a family's maps again in the next sync."""
        backend = self._backend(family)
        if backend is not None:
            backend.invalidate()

    def retry(self, family: Family) -> None:
        """Try again in the next sync what failed, due or not."""
        backend = self._backend(family)
        if backend is not None:
            backend.retry()
        if self._retry_at is not None:
            self._forgive()

    def check(self, family: Family, *, full: bool) -> tuple[Drift, ...]:
        """Compare maps, links and pins with what was applied; a table that cannot be read is taken away."""
        backend, shared = self._backend(family), self._shared
        if backend is None or shared is None:
            return ()
        try:
            if family == shared.families[0] and (reason := foreign_programs(shared.table)) is not None:
                self._take_away(reason)
                return ()
            return backend.check(full=full)
        except (BpfError, CheckError) as error:
            self._take_away(f"{family}: the table cannot be read: {error}")
            return ()

    def run_timers(self) -> float | None:
        """Try a table again whose time has come; return the seconds until the next time."""
        if self._retry_at is not None and self._clock() >= self._retry_at:
            self._retry_at = None
            if self._shared is None:
                self.open()
            else:
                self._shared.not_before = 0.0
                self._tested = 0
            if self._shared is not None:
                self.write()
        return None if self._retry_at is None else max(0.0, self._retry_at - self._clock())

    def frontends(self, family: Family) -> int | None:
        """The number of frontends in the maps; None without a table."""
        backend = self._backend(family)
        return None if backend is None else backend.counts()["frontends"]

    def connections(self, family: Family) -> Mapping[str, int]:
        """The connections of service ports by the table. Raises BpfError."""
        with self._lock:
            backend = self._backend(family)
            found: tuple[PortConnections, ...] = () if backend is None else backend.connections()
        return {each.name: each.connections for each in found}

    def close(self) -> None:
        """Close the table; what is published serves on."""
        with self._lock:
            shared, self._shared = self._shared, None
            for part in self._parts.values():
                part.backend = None
            if shared is not None:
                shared.table.close()

    def _backend(self, family: Family) -> SocketBackend | None:
        part = self._parts.get(family)
        return None if part is None else part.backend

    def _begin(self, family: Family) -> None:
        part = self._parts[family]
        if self._shared is not None:
            part.backend = SocketBackend(family, self._shared, part.config, self._clock)
            part.backend.update(part.plans())

    def _judge(self, shared: WatchedTable) -> None:
        """Say whether the table serves, after a write that succeeded."""
        if shared.failure is not None:
            if self._retry_at is None:
                self._degrade(shared.failure.message)
            return
        if not shared.serves or shared.publications == self._tested:
            return
        reason = self._test()
        # A test may have published itself.
        self._tested = shared.publications
        if reason is not None:
            self._degrade(reason)
            return
        self._pause, self._retry_at = FIRST_PAUSE, None
        if not self.state.serving:
            frontends = {family.value: self.frontends(family) for family in self._parts}
            log.info("socket_table_serves", pins=str(self._settings.pins), frontends=frontends)
            self.state = SocketTableState(serving=True)

    def _test(self) -> str | None:
        if not self._kernel.can_test(self._settings):
            log.info("socket_table_not_tested", reason="this process is not in the cgroup of the settings")
            return None
        for family, part in self._parts.items():
            may_hold = part.config.enabled and not part.config.masquerade_all
            if part.backend is None or not may_hold:
                continue
            reason = self._kernel.test(part.backend)
            if reason is not None:
                return f"{family}: {reason}"
        return None

    def _take_away(self, reason: str) -> None:
        self._remove()
        self._degrade(reason)

    def _remove(self) -> None:
        """Detach the programs, so that no connection goes by maps that are not kept up to date."""
        with self._lock:
            shared, self._shared = self._shared, None
            for part in self._parts.values():
                part.backend = None
            if shared is None:
                return
            try:
                shared.table.remove()
            except BpfError as error:
                log.error("socket_table_not_removed", reason=error.message, pins=str(self._settings.pins))

    def _degrade(self, reason: str) -> None:
        now = self._clock()
        self._retry_at, self._pause = now + self._pause, min(2 * self._pause, LONGEST_PAUSE)
        if self.state.reason == reason:
            return
        since = self.state.since or datetime.now(UTC)
        self.state = SocketTableState(serving=False, reason=reason, since=since)
        log.warning("socket_table_degraded", reason=reason, effect=_EFFECT)

    def _forgive(self) -> None:
        self._pause, self._retry_at = FIRST_PAUSE, None if self._retry_at is None else self._clock()
