"""The one definition of health, for `kproxy status`, /status, /healthz, /livez, metrics and Events.

Pure: facts in, verdict out. The facts are ages in seconds, so no clock is read here.

There are two results. /livez reports whether this process works, as in kube-proxy (KEP-3836): it does not if
changes have waited for two sync periods and nothing was applied in that time, because the run loop hangs or
the kernel fails. It tolerates short failures, which a restart does not fix. A change that waits for others,
such as for the many changes of another tenant, does not make a node sick. The state reports every problem at
once, for an operator. Defects of single objects, such as a tenant's annotation, do not affect health.
"""

import enum
from collections.abc import Iterator

import msgspec

WATCH_TOLERANCE = 5.0
"""Seconds that a watch may be down before the agent counts as degraded.

A watch that ends normally is connected again within a second, and so is one whose API server is replaced
behind a load balancer: retries are at most 3 s apart while no server is reached. /livez does not depend on
watches: the rules stay in force, and a restart would not help the API server.
"""

LIST_TOLERANCE = 60.0
"""The same without an error: the complete list of a large cluster takes long before the watch begins."""

RETURNS = 3
"""Consecutive comparisons that find the same object changed until it counts as not repaired."""

_FEW = 2
"""The number of refused services that does not yet count as a failure of the node, even if all are."""


class State(enum.StrEnum):
    """The verdict in one word."""

    STARTING = "starting"
    """The first lists or the first sync are not complete and not late."""
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    """All known services are programmed, but another problem needs an operator."""
    FAILING = "failing"
    """Changes do not reach the kernel."""


class Cause(enum.StrEnum):
    """The reason why the state is not `healthy`, in the style of a Kubernetes condition's reason."""

    LISTS_INCOMPLETE = "ListsIncomplete"
    NOT_SYNCED = "NotSynced"
    SYNC_FAILING = "SyncFailing"
    CHANGES_LATE = "ChangesLate"
    ALL_REFUSED = "AllServicesRefused"
    DRIFT_NOT_REPAIRED = "DriftNotRepaired"
    COMPARISON_FAILING = "ComparisonFailing"
    WATCH_DOWN = "WatchDown"
    MODE_REFUSED = "ModeRefused"
    SETTING_REFUSED = "SettingRefused"
    POLICY_GAP = "NetworkPolicyGap"
    CONFIGURATION_REJECTED = "ConfigurationRejected"
    SOCKET_TABLE = "EbpfDegraded"

    @property
    def state(self) -> State:
        """The state that this cause alone leads to."""
        return _STATES.get(self, State.DEGRADED)


_STATES = {
    Cause.LISTS_INCOMPLETE: State.STARTING,
    Cause.NOT_SYNCED: State.STARTING,
    Cause.SYNC_FAILING: State.FAILING,
    Cause.CHANGES_LATE: State.FAILING,
    Cause.ALL_REFUSED: State.FAILING,
    Cause.SOCKET_TABLE: State.HEALTHY,
}
"""All services are served without a socket table, so that it is a finding of a healthy node."""


class Outage(msgspec.Struct, frozen=True):
    """A lasting failure: its duration in seconds, and the reason."""

    seconds: float
    reason: str


class FamilyFacts(msgspec.Struct, frozen=True):
    """One IP family, of services or of policies, which the name says.

    `behind`: seconds for which changes have waited without any being applied, None if none waits. `refused`
    counts the services that the kernel refused among `services`. `drifted` counts objects that others changed
    and that no sync repaired; `returning` names those that were repaired and changed again. `waits_for` says
    what the first sync waits for, if it waits for something of its own.
    """

    name: str
    synced: bool
    behind: float | None = None
    failing: Outage | None = None
    services: int = 0
    refused: int = 0
    drifted: int = 0
    returning: tuple[str, ...] = ()
    uncompared: Outage | None = None
    waits_for: str | None = None


class WatchFacts(msgspec.Struct, frozen=True):
    """The watch of one kind; `down` is None while it is connected. Without an error its reason is empty."""

    kind: str
    down: Outage | None = None


class Facts(msgspec.Struct, frozen=True):
    """Everything that health depends on.

    `age` is that of the process, `longest_wait` how long changes may wait without progress, in seconds.
    `waits_for` says what the first sync waits for besides lists. `policy_gaps` are packets that no policy
    judges although the settings demand it. `socket_table`: why a mode that has one does not use it.
    """

    age: float
    longest_wait: float
    families: tuple[FamilyFacts, ...]
    missing_lists: tuple[str, ...] = ()
    waits_for: str | None = None
    watches: tuple[WatchFacts, ...] = ()
    mode_refused: Outage | None = None
    setting_refused: Outage | None = None
    policy_gaps: tuple[str, ...] = ()
    configuration_rejected: Outage | None = None
    socket_table: Outage | None = None


class Condition(msgspec.Struct, frozen=True):
    """One problem: its subject ("" is the agent), message, and duration in seconds."""

    cause: Cause
    subject: str
    message: str
    seconds: float


class Verdict(msgspec.Struct, frozen=True):
    """The state, the answer of /livez (`live`), and every current condition."""

    state: State
    live: bool
    conditions: tuple[Condition, ...] = ()

    @property
    def causes(self) -> tuple[Cause, ...]:
        """The current causes, each once, the worst first."""
        return tuple(dict.fromkeys(each.cause for each in self.conditions))


def in_time(behind: float | None, longest_wait: float) -> bool:
    """Whether a family that was `behind` so long still applies changes, as /healthz and /livez report."""
    return behind is None or behind <= longest_wait


def evaluate(facts: Facts) -> Verdict:
    """Return the verdict on these facts."""
    live = all(in_time(family.behind, facts.longest_wait) for family in facts.families)
    order = list(Cause)
    conditions = sorted(_conditions(facts), key=lambda each: order.index(each.cause))
    states = {each.cause.state for each in conditions}
    worst = (State.FAILING, State.STARTING, State.DEGRADED)
    return Verdict(
        next((state for state in worst if state in states), State.HEALTHY), live, tuple(conditions)
    )


def _conditions(facts: Facts) -> Iterator[Condition]:
    if facts.missing_lists:
        kinds = ", ".join(facts.missing_lists)
        yield Condition(Cause.LISTS_INCOMPLETE, "", f"no complete list of {kinds} has arrived", facts.age)
    for family in facts.families:
        yield from _of_family(family, facts)
    for watch in facts.watches:
        if watch.down is not None and watch.down.seconds >= _tolerance(watch.down):
            message = f"the watch of {watch.kind} is down: {watch.down.reason or 'it does not begin'}"
            yield Condition(Cause.WATCH_DOWN, watch.kind, message, watch.down.seconds)
    for gap in facts.policy_gaps:
        yield Condition(Cause.POLICY_GAP, gap, f"NetworkPolicy: {gap}", 0.0)
    for cause, outage in (
        (Cause.MODE_REFUSED, facts.mode_refused),
        (Cause.SETTING_REFUSED, facts.setting_refused),
        (Cause.CONFIGURATION_REJECTED, facts.configuration_rejected),
        (Cause.SOCKET_TABLE, facts.socket_table),
    ):
        if outage is not None:
            yield Condition(cause, "", outage.reason, outage.seconds)


def _tolerance(down: Outage) -> float:
    return WATCH_TOLERANCE if down.reason else LIST_TOLERANCE


def _of_family(family: FamilyFacts, facts: Facts) -> Iterator[Condition]:
    name, behind = family.name, family.behind
    if family.failing is not None:
        message = f"{name}: the last sync failed: {family.failing.reason}"
        yield Condition(Cause.SYNC_FAILING, name, message, family.failing.seconds)
    elif not family.synced:
        waits_for = family.waits_for or facts.waits_for
        why = f", it waits for {waits_for}" if waits_for else ""
        yield Condition(Cause.NOT_SYNCED, name, f"{name}: no sync has succeeded yet{why}", facts.age)
    if behind is not None and not in_time(behind, facts.longest_wait):
        limit = facts.longest_wait
        message = f"{name}: changes wait, and none was applied for {behind:.0f} s, longer than {limit:g} s"
        yield Condition(Cause.CHANGES_LATE, name, message, behind)
    if family.refused >= max(_FEW, family.services):
        message = f"{name}: the kernel refuses every service ({family.refused})"
        yield Condition(Cause.ALL_REFUSED, name, message, 0.0)
    if family.drifted:
        message = f"{name}: {family.drifted} objects that others changed are not repaired"
        yield Condition(Cause.DRIFT_NOT_REPAIRED, name, message, 0.0)
    elif family.returning:
        first, more = family.returning[0], len(family.returning) - 1
        message = f"{name}: {first}{f' and {more} more' if more else ''} is changed again after each repair"
        yield Condition(Cause.DRIFT_NOT_REPAIRED, name, message, 0.0)
    if family.uncompared is not None:
        message = f"{name}: the kernel cannot be compared with what was applied: {family.uncompared.reason}"
        yield Condition(Cause.COMPARISON_FAILING, name, message, family.uncompared.seconds)
