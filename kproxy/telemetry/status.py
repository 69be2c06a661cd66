"""What /status answers and `kproxy status` reads: what runs, since when, and what is wrong with it.

What is wrong with the agent on this node (`conditions`) is kept apart from what is wrong with single objects
(`findings`), which it cannot mend and which every node reports alike.
"""

from datetime import datetime

import msgspec

from kproxy.addresses import Family
from kproxy.config.reload import RefusedMode, RejectedConfiguration
from kproxy.state.problems import Problem
from kproxy.telemetry.verdict import State
from kproxy.text import clean_all

HEALTHY, UNHEALTHY, FINDINGS = 0, 1, 3
"""Exit codes of `kproxy status`.

Healthy; not healthy, or cannot be asked (as with any error); healthy, but something is wrong with objects.
"""

BEING_DELETED = "node is being deleted"
"""The usual reason why a node is not eligible for new traffic."""


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
    """Objects of kproxy's that others changed: how many were found and repaired, when last, which.

    `outstanding` of them no sync has repaired; `returning` are those found changed after each repair.
    """

    found: int = 0
    repaired: int = 0
    last_found: datetime | None = None
    last_objects: tuple[str, ...] = ()
    outstanding: int = 0
    returning: tuple[str, ...] = ()


class FamilyStatus(_Camel, frozen=True):
    """One IP family. `degraded` services work, but not in the respect that is said of each.

    `failing_since`: when the first of the last syncs in a row failed; None if the last one succeeded.
    `comparison_failure`: since when and why the kernel cannot be compared with what was applied.
    """

    services: int
    last_success: datetime | None
    last_failure: Failure | None
    quarantined: list[ServiceTrouble]
    degraded: dict[str, str]
    drift: Repair
    failing_since: datetime | None = None
    comparison_failure: Failure | None = None


class Condition(_Camel, frozen=True):
    """One thing that is wrong with the agent: a reason in one word, in full, and since when."""

    reason: str
    message: str
    since: datetime


class Pending(_Camel, frozen=True):
    """Services with changes that wait: of their own, of endpoints; seconds since the oldest came."""

    services: int
    endpoints: int
    oldest_seconds: float | None


class Watch(_Camel, frozen=True):
    """How the watch of one kind is doing; `connected_since` is None while it is not.

    `down_since`: since when no watch holds; connections that break at once do not end it.
    """

    kind: str
    synced: bool
    connected_since: datetime | None
    consecutive_failures: int
    last_error: str | None
    down_since: datetime | None = None


class Status(_Camel, frozen=True):
    """Everything. `node_eligible` is what /healthz says beyond /livez, and `node_reason` why it is not.

    `state` is the verdict in one word, with the reasons in `conditions`; `healthy` says whether it is that of
    `healthy`; `live` is what /livez says, which allows changes to wait for some time.
    """

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
    state: State | None = None
    live: bool = True
    conditions: list[Condition] = []
    rejected_configuration: RejectedConfiguration | None = None
    node_reason: str = ""

    @property
    def findings(self) -> int:
        """How many things are wrong with single objects."""
        families = self.families.values()
        return (
            len(self.problems)
            + len(self.rejected)
            + sum(len(each.quarantined) + len(each.degraded) for each in families)
        )

    @property
    def exit_code(self) -> int:
        """What `kproxy status` exits with."""
        if not self.healthy or self.refused_mode is not None or self.rejected_configuration is not None:
            return UNHEALTHY
        return FINDINGS if self.findings else HEALTHY

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return self.exit_code == HEALTHY


def encode(status: Status) -> bytes:
    """JSON, indented: people read it too, in terminals."""
    return msgspec.json.format(msgspec.json.encode(clean_all(msgspec.to_builtins(status))), indent=2) + b"\n"
