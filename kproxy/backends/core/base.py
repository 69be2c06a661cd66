"""The interface between plans and kernel that every proxy mode implements.

One backend serves one IP family. The agent passes plans to it and calls sync; services that failed are in the
report and stay pending, so the agent counts only those as applied that the kernel has accepted.
"""

from collections.abc import Iterable, Mapping
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


class SyncReport(msgspec.Struct, frozen=True):
    """Result of one sync.

    All services are applied as planned, except those in `failed`, which maps services to the reason.
    `error` is set if the sync failed as a whole; then the state of no service is known.
    `changes` counts written objects by kind, and `rules` the iptables rules among them by table.
    `degraded` maps services that are served with a part missing to that part. `leftovers` counts objects that
    no service needs and that the kernel would not delete yet; deletion is tried again. `full`: the kernel was
    read first and compared with the desired state completely.
    `drifts` are changes by others that were found because the kernel refused something, or when it was first
    read after a failed sync.
    """

    failed: Mapping[str, str] = {}
    error: str | None = None
    changes: Mapping[str, int] = {}
    degraded: Mapping[str, str] = {}
    rules: Mapping[str, int] = {}
    full: bool = False
    leftovers: int = 0
    drifts: tuple["Drift", ...] = ()


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


class Measurement(msgspec.Struct, frozen=True):
    """Counts of kproxy's objects in the kernel, of one family.

    Traffic per service port, iptables rules per table, and nftables objects by kind.
    """

    traffic: tuple[PortTraffic, ...] = ()
    rules: Mapping[str, int] = {}
    objects: Mapping[str, int] = {}


class MeasureError(Exception):
    """The kernel's counters could not be read."""


class CheckError(Exception):
    """The kernel could not be compared with what was applied."""


class Drift(msgspec.Struct, frozen=True, order=True):
    """A kernel object of kproxy that others changed: its kind and name, and the difference found."""

    object: str
    found: str

    def __str__(self) -> str:
        return f"{self.object} {self.found}"


class Backend(Protocol):
    """A proxy mode for one family."""

    family: Family

    def update(self, plans: Iterable[ServicePlan]) -> None:
        """Replace the desired state of the plans' services; a plan without ports removes its service."""

    def sync(self) -> SyncReport:
        """Bring the kernel to the desired state; write only the difference from the applied state."""

    def invalidate(self) -> None:
        """Mark the applied state as stale; the next sync reads the kernel first."""

    def retry(self) -> None:
        """Make the next sync retry the quarantined services although their plans did not change."""

    def check(self, *, full: bool = False) -> tuple[Drift, ...]:
        """Compare the kernel with the applied state; return the drift and mark it as pending.

        Unless `full`, it is cheap while nothing indicates a change. Raises CheckError.
        """

    def run_timers(self) -> float | None:
        """Run due periodic work; return the seconds until the next call is due, or None."""
