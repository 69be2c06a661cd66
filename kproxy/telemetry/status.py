"""The status that /status serves and `kproxy status` reads: version, mode, health and problems.

Problems of the agent on this node (`conditions`) are separate from those of single objects (`findings`),
which the agent cannot fix and which every node reports alike.
"""

from datetime import datetime

import msgspec

from kproxy.addresses import Family
from kproxy.config.refusals import RefusedMode, RefusedSetting, RejectedConfiguration
from kproxy.state.problems import Problem
from kproxy.telemetry.verdict import Cause, State
from kproxy.text import clean_all

HEALTHY, UNHEALTHY, FINDINGS = 0, 1, 3
"""Exit codes of `kproxy status`.

Healthy; not healthy or no answer (as for any error); healthy, but some objects have problems.
"""

_FINDINGS = frozenset(each.value for each in Cause if each.state is State.HEALTHY)
"""The reasons of conditions that a healthy node may have."""

BEING_DELETED = "node is being deleted"
"""The usual reason why a node is not eligible for new traffic."""


class _Camel(msgspec.Struct, frozen=True, rename="camel", order=True):
    """Base: field names as Kubernetes writes them."""


class Failure(_Camel, frozen=True):
    """A sync that failed as a whole: its time and the reason."""

    at: datetime
    reason: str


class QuarantinedService(_Camel, frozen=True):
    """A service that the kernel refused, the reason and its first time; the service is tried again."""

    service: str
    reason: str
    since: datetime


class Repair(_Camel, frozen=True):
    """Drift: the number of objects found and repaired, the time of the last, and their names.

    `outstanding` counts objects that no sync has repaired; `returning` are objects changed after each repair.
    """

    found: int = 0
    repaired: int = 0
    last_found: datetime | None = None
    last_objects: tuple[str, ...] = ()
    outstanding: int = 0
    returning: tuple[str, ...] = ()


class FamilyStatus(_Camel, frozen=True):
    """One IP family. `degraded` services work with a restriction, which each entry names.

    `failing_since`: the time of the first of the latest consecutive failures; None if the last sync
    succeeded. `leftovers` maps objects that no service needs and that the kernel would not delete yet to the
    reason. `comparison_failure`: the time and reason since which the kernel cannot be compared with the
    applied state.
    """

    services: int
    last_success: datetime | None
    last_failure: Failure | None
    quarantined: list[QuarantinedService]
    degraded: dict[str, str]
    drift: Repair
    failing_since: datetime | None = None
    comparison_failure: Failure | None = None
    leftovers: dict[str, str] = {}


class RejectedPolicy(_Camel, frozen=True):
    """A NetworkPolicy that cannot be obeyed, and why; the pods that it selects are closed."""

    policy: str
    reason: str


class QuarantinedPolicy(_Camel, frozen=True):
    """A NetworkPolicy that the kernel refused in a family; its pods are closed, and it is tried again."""

    policy: str
    family: Family
    reason: str
    since: datetime


class PolicyFamilyStatus(_Camel, frozen=True):
    """The policies of one IP family. `groups` counts the groups of rules; see FamilyStatus for the rest."""

    groups: int
    last_success: datetime | None
    last_failure: Failure | None
    drift: Repair
    failing_since: datetime | None = None
    comparison_failure: Failure | None = None
    leftovers: dict[str, str] = {}


class PolicyStatus(_Camel, frozen=True):
    """The enforcement of NetworkPolicies. `policies` counts those of the cluster.

    `isolated_pods` counts the pods of this node that are isolated in a direction, and `isolated` those of
    each direction. `unknown_pods` is the setting. `waits_for` names what the first sync waits for, if it
    has not begun. `gaps` names packets that no policy judges although the settings demand it.
    """

    enabled: bool
    policies: int
    isolated_pods: int
    isolated: dict[str, int]
    rejected: list[RejectedPolicy]
    quarantined: list[QuarantinedPolicy]
    families: dict[Family, PolicyFamilyStatus]
    unknown_pods: str
    waits_for: str | None = None
    gaps: list[str] = []

    @property
    def findings(self) -> int:
        """The number of problems of single policies."""
        return len(self.rejected) + len(self.quarantined)


class Condition(_Camel, frozen=True):
    """One problem of the agent: the reason in one word, the message, and its start."""

    reason: str
    message: str
    since: datetime


class Pending(_Camel, frozen=True):
    """Services with pending changes of their own or of endpoints; the age of the oldest in seconds."""

    services: int
    endpoints: int
    oldest_seconds: float | None


class Watch(_Camel, frozen=True):
    """The state of the watch of one kind; `connected_since` is None while it is not connected.

    `down_since`: the time since which there is no steady watch; connections that break at once do not reset
    it.
    """

    kind: str
    synced: bool
    connected_since: datetime | None
    consecutive_failures: int
    last_error: str | None
    down_since: datetime | None = None


class Status(_Camel, frozen=True):
    """The whole status. /healthz also depends on `node_eligible`; `node_reason` says why it is False.

    `state` is the verdict in one word, with the reasons in `conditions`; `healthy` is True if it is
    "healthy"; `live` is the answer of /livez, which allows changes to wait for some time. `network_policy` is
    None where policies are not enforced.
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
    network_policy: PolicyStatus | None = None
    refused_setting: RefusedSetting | None = None

    @property
    def findings(self) -> int:
        """The number of problems of single objects, and of conditions that leave a node healthy."""
        families = self.families.values()
        return (
            sum(each.reason in _FINDINGS for each in self.conditions)
            + len(self.problems)
            + len(self.rejected)
            + sum(len(each.quarantined) + len(each.degraded) for each in families)
            + (self.network_policy.findings if self.network_policy is not None else 0)
        )

    @property
    def exit_code(self) -> int:
        """The exit code of `kproxy status`."""
        refused = (self.refused_mode, self.rejected_configuration, self.refused_setting)
        if not self.healthy or any(each is not None for each in refused):
            return UNHEALTHY
        return FINDINGS if self.findings else HEALTHY

    @property
    def good(self) -> bool:
        """Whether there is no problem."""
        return self.exit_code == HEALTHY


def encode(status: Status) -> bytes:
    """JSON, indented for readers in terminals."""
    return msgspec.json.format(msgspec.json.encode(clean_all(msgspec.to_builtins(status))), indent=2) + b"\n"
