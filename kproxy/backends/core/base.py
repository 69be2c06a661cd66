"""The interface between plans and kernel that every proxy mode implements, and the result of a sync.

One backend serves one IP family. The agent passes plans to it and calls sync; services that failed are in the
report and stay pending, so the agent counts only those as applied that the kernel has accepted. The types of
the result are the same in all modes; telemetry/observer.py turns them into log lines, /status and metrics.
"""

import enum
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import msgspec

from kproxy.addresses import Family
from kproxy.plan.model import ServicePlan


class LocalTraffic(msgspec.Struct, frozen=True):
    """How local pod traffic is detected: by source CIDR or by interface.

    Exactly one is set; `interface` is an iptables interface match (`cbr0`, or `veth+` for a prefix).
    """

    cidr: str | None = None
    interface: str | None = None


class ServiceState(enum.StrEnum):
    """The state of a service that is not applied as planned.

    DEGRADED: it is served with a part missing. QUARANTINED: the kernel refused it; it keeps its former
    objects and is tried again.
    """

    DEGRADED = "degraded"
    QUARANTINED = "quarantined"


class ServiceStatus(msgspec.Struct, frozen=True):
    """The state of one service, and the reason."""

    state: ServiceState
    reason: str


class Difference(enum.StrEnum):
    """How an object in the kernel differs from the applied state."""

    MISSING = "missing"
    UNEXPECTED = "unexpected"
    MODIFIED = "modified"


class Drift(msgspec.Struct, frozen=True, order=True):
    """A kernel object of kproxy that others changed, such as ("chain", "nat/KUBE-SERVICES", MISSING).

    `detail` says what is different in a modified object.
    """

    kind: str
    name: str
    found: Difference
    detail: str = ""

    @property
    def object(self) -> str:
        """Kind and name."""
        return f"{self.kind} {self.name}"

    def __str__(self) -> str:
        return f"{self.object} is {self.found}" + (f": {self.detail}" if self.detail else "")


class SyncReport(msgspec.Struct, frozen=True):
    """Result of one sync.

    All services are applied as planned, except those in `services`. `error` is set if the sync failed as a
    whole; then the state of no service is known. `changes` counts written objects by kind, and `rules` the
    iptables rules among them by table. `full`: the kernel was read first and compared with the desired state
    completely.

    `leftovers` maps objects ("chain nat/KUBE-SVC-...") that no service needs and that the kernel would not
    delete to the reason; deletion is tried again. `drifts` are changes by others that were found because the
    kernel refused something, or when it was first read after a failed sync. `resynced` says why the kernel
    was read a second time.

    `refusals` counts services that were refused in this sync, and `kept` leftovers that could not be deleted
    in it; what waits for its retry is in neither. `retry_in`: seconds until something refused is due to be
    tried again, None if there is nothing.

    `unfinished`: services that are not applied yet, or in part, because the time of the sync was over. The
    next sync goes on with them.
    """

    services: Mapping[str, ServiceStatus] = {}
    error: str | None = None
    changes: Mapping[str, int] = {}
    rules: Mapping[str, int] = {}
    full: bool = False
    leftovers: Mapping[str, str] = {}
    drifts: tuple[Drift, ...] = ()
    resynced: str | None = None
    refusals: int = 0
    kept: int = 0
    retry_in: float | None = None
    unfinished: frozenset[str] = frozenset()

    @property
    def failed(self) -> dict[str, str]:
        """Quarantined services, with the reason."""
        return self._in_state(ServiceState.QUARANTINED)

    @property
    def incomplete(self) -> bool:
        """Whether a later sync has work left: after a failure, a refused service, or a leftover."""
        return self.error is not None or bool(self.failed or self.leftovers)

    @property
    def degraded(self) -> dict[str, str]:
        """Degraded services, with the reason."""
        return self._in_state(ServiceState.DEGRADED)

    def _in_state(self, state: ServiceState) -> dict[str, str]:
        return {key: status.reason for key, status in self.services.items() if status.state is state}


def quarantined(reasons: Mapping[str, str]) -> dict[str, ServiceStatus]:
    """The status of services that were refused for these reasons."""
    return {key: ServiceStatus(ServiceState.QUARANTINED, reason) for key, reason in reasons.items()}


class PortTraffic(msgspec.Struct, frozen=True, gc=False):
    """Traffic counters of one service port: `name` is that of PortPlan, `protocol` TCP, UDP or SCTP.

    `sent` and `answered` are (packets, bytes) from and to clients. Where the kernel counts only the first
    packet of a connection, `sent` holds only those, and `answered` is None.
    """

    name: str
    protocol: str
    connections: int
    sent: tuple[int, int]
    answered: tuple[int, int] | None = None


class PortAffinity(msgspec.Struct, frozen=True):
    """The clients that session affinity remembers for a service port, and the most that it can."""

    name: str
    protocol: str
    clients: int
    limit: int


class Measurement(msgspec.Struct, frozen=True):
    """Counts of kproxy's objects in the kernel, of one family.

    Traffic per service port, iptables rules per table, and nftables objects by kind. `affinity`: where the
    mode has a limit for it, how many clients are remembered by service port. `frontends`: how many service
    addresses the table at the sockets has, None without one.
    """

    traffic: tuple[PortTraffic, ...] = ()
    rules: Mapping[str, int] = {}
    objects: Mapping[str, int] = {}
    affinity: tuple[PortAffinity, ...] = ()
    frontends: int | None = None


class MeasureError(Exception):
    """The kernel's counters could not be read."""


class CheckError(Exception):
    """The kernel could not be compared with what was applied."""


class CheckPostponed(CheckError):
    """The comparison gave way to a change."""


class Backend(Protocol):
    """A proxy mode for one family. `on_progress` is called after each write of a sync; it must be quick.

    `on_timed_sync` is called with the report of a sync that `run_timers` made, and its duration in seconds.
    `gives_way` is asked during a check whether something more urgent waits.
    """

    family: Family
    on_progress: Callable[[], None]
    on_timed_sync: Callable[[SyncReport, float], None]
    gives_way: Callable[[], bool]

    def update(self, plans: Iterable[ServicePlan]) -> None:
        """Replace the desired state of the plans' services; a plan without ports removes its service."""

    def sync(self, budget: float | None = None) -> SyncReport:
        """Bring the kernel to the desired state; write only the difference from the applied state.

        After `budget` seconds a mode that writes in parts may leave the rest to the next sync.
        """

    def invalidate(self) -> None:
        """Mark the applied state as stale; the next sync reads the kernel first."""

    def retry(self) -> None:
        """Make the next sync retry all quarantined services and leftovers, due or not."""

    def check(self, *, full: bool = False) -> tuple[Drift, ...]:
        """Compare the kernel with the applied state; return the drift and mark it as pending.

        Unless `full`, it is cheap while nothing indicates a change. Raises CheckError, and CheckPostponed if
        it gave way.
        """

    def run_timers(self) -> float | None:
        """Run due periodic work; return the seconds until the next call is due, or None."""
