"""What /status answers and `kproxy status` reads: what runs, since when, and what is wrong with it."""

from datetime import datetime

import msgspec

from kproxy.addresses import Family
from kproxy.state.problems import Problem
from kproxy.text import clean_all


class _Camel(msgspec.Struct, frozen=True, rename="camel", order=True):
    """Base: field names as Kubernetes writes them."""


class Failure(_Camel, frozen=True):
    """A sync that failed as a whole: when, and why."""

    at: datetime
    reason: str


class ServiceTrouble(_Camel, frozen=True):
    """A service that the kernel refused, and since when for this reason; it is tried again."""

    service: str
    reason: str
    since: datetime


class Repair(_Camel, frozen=True):
    """Objects of ours that somebody else changed: how many were found and set right, when last, which."""

    found: int = 0
    repaired: int = 0
    last_found: datetime | None = None
    last_objects: tuple[str, ...] = ()


class FamilyStatus(_Camel, frozen=True):
    """One IP family. `degraded` services work, but not in the respect that is said of each."""

    services: int
    last_success: datetime | None
    last_failure: Failure | None
    quarantined: list[ServiceTrouble]
    degraded: dict[str, str]
    drift: Repair


class RefusedMode(_Camel, frozen=True):
    """A mode that the file asks for and that could not be taken; `kept` works on."""

    at: datetime
    mode: str
    kept: str
    reason: str


class Pending(_Camel, frozen=True):
    """Services with changes that wait: of their own, of endpoints; seconds since the oldest came."""

    services: int
    endpoints: int
    oldest_seconds: float | None


class Watch(_Camel, frozen=True):
    """How the watch of one kind is doing; `connected_since` is None while it is not."""

    kind: str
    synced: bool
    connected_since: datetime | None
    consecutive_failures: int
    last_error: str | None


class Status(_Camel, frozen=True):
    """Everything. `healthy` is that of /livez, `node_eligible` what /healthz says beyond it."""

    version: str
    node: str
    mode: str
    since: datetime
    healthy: bool
    node_eligible: bool
    pending: Pending
    families: dict[Family, FamilyStatus]
    problems: list[Problem]
    rejected: list[Problem]
    watches: list[Watch] = []
    refused_mode: RefusedMode | None = None

    @property
    def good(self) -> bool:
        """Whether nothing needs an operator."""
        wrong = (self.problems, self.rejected, self.refused_mode)
        return self.healthy and not any((*wrong, *(each.quarantined for each in self.families.values())))


def encode(status: Status) -> bytes:
    """JSON, indented: people read it too, in terminals."""
    return msgspec.json.format(msgspec.json.encode(clean_all(msgspec.to_builtins(status))), indent=2) + b"\n"
