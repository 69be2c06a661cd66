"""The seam between plans and kernels: what every proxy mode offers to the agent.

One backend serves one IP family. The agent hands it plans and asks it to sync; what failed stays pending
inside the backend's report, so the agent never believes more than what the kernel has taken.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec

from kproxy.addresses import Family
from kproxy.plan.model import ServicePlan


class LocalTraffic(msgspec.Struct, frozen=True):
    """How traffic of this cluster's (or node's) pods is told from all other: by source CIDR or by interface.

    Exactly one is set; `interface` is an iptables interface match (`cbr0`, or `veth+` for a prefix).
    """

    cidr: str | None = None
    interface: str | None = None


class SyncReport(msgspec.Struct, frozen=True):
    """What one sync did.

    All services are now in the kernel as planned, but for those that `failed` maps to the reason why not.
    `error` is set if the sync as a whole could not be done: then nothing is known of any service.
    `changes` counts what was written, by name of the object kind, and `rules` the iptables rules among it by
    table. `degraded` services work, but not in every respect as they were asked for; it says in which.
    `leftovers` counts objects that nobody needs any more and the kernel would not let go: they harm nobody,
    and are tried again. `full`: the kernel was read first, and all of it was compared with what is desired.
    `drifts` is what others were found to have changed: when the kernel refused something because of it, or
    when it was first read after a sync that could not be done.
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
    """What its counters say of one service port: `name` is PortPlan's, `protocol` TCP, UDP or SCTP.

    `sent` and `answered` are (packets, bytes) from and to clients. Where the kernel looks at the first packet
    of a connection only, `sent` holds just those, and `answered` is None.
    """

    name: str
    protocol: str
    connections: int
    sent: tuple[int, int]
    answered: tuple[int, int] | None = None


class Measurement(msgspec.Struct, frozen=True):
    """What one family's kernel holds of ours.

    Traffic per service port, iptables rules per table, and objects of nftables by kind.
    """

    traffic: tuple[PortTraffic, ...] = ()
    rules: Mapping[str, int] = {}
    objects: Mapping[str, int] = {}


class MeasureError(Exception):
    """The kernel's counters could not be read."""


class CheckError(Exception):
    """The kernel could not be compared with what was applied."""


class Drift(msgspec.Struct, frozen=True, order=True):
    """One object of ours that somebody else changed: its kind and name, and what was found."""

    object: str
    found: str

    def __str__(self) -> str:
        return f"{self.object} {self.found}"


class Backend(Protocol):
    """A proxy mode for one family."""

    family: Family

    def update(self, plans: Iterable[ServicePlan]) -> None:
        """Take new desired states; a plan without ports removes its service."""

    def sync(self) -> SyncReport:
        """Bring the kernel to the desired state, writing only what differs from what it is known to hold."""

    def invalidate(self) -> None:
        """Forget what the kernel is known to hold, for others have written; the next sync looks first."""

    def retry(self) -> None:
        """Let the next sync try again the services that failed although nothing about them changed."""

    def check(self, *, full: bool = False) -> tuple[Drift, ...]:
        """Compare the kernel with what was applied; what drifted is pending again and named here.

        Costs next to nothing while nothing suggests a change, unless `full`. Raises CheckError.
        """

    def run_timers(self) -> float | None:
        """Do what time asks for; return the seconds until this wants to be called again, None if never."""
