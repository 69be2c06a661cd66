"""The one definition of health, for `kproxy status`, /status, /healthz, /livez, metrics and Events.

Pure: facts in, verdict out. The facts are ages in seconds, so no clock is read here.

Two questions have two answers. Whether this process does its work in time is what /livez says, in the sense
of kube-proxy (KEP-3836): no change waits longer than two sync periods. It allows for short troubles, which a
restart does not mend. Whether an operator has to look is the state: it says at once what is wrong. Defects of
single objects, such as an annotation that a tenant wrote, are no matter of health.
"""

import enum
from collections.abc import Iterator

import msgspec

WATCH_TOLERANCE = 5.0
"""Seconds that a watch may be down before the agent counts as degraded.

A watch that ends in the usual way is back within a second, and so is one whose API server is replaced behind
a load balancer: retries come at least every 3 s while no server is reached. /livez does not depend on
watches: rules go on to serve, and a restart would not bring the API server back.
"""

LIST_TOLERANCE = 60.0
"""The same where no error was met: the complete list of a large cluster takes its time before the watch."""

RETURNS = 3
"""Comparisons in a row that find the same object changed, after which it counts as not repaired."""

_FEW = 2
"""Refused services that are not yet taken for a fault of the node, even if there are no others."""


class State(enum.StrEnum):
    """The verdict in one word."""

    STARTING = "starting"
    """The first lists or the first sync are not complete, and the time for them is not over."""
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    """Services are programmed as known, but something else needs an operator."""
    FAILING = "failing"
    """Changes do not reach the kernel."""


class Cause(enum.StrEnum):
    """Why the state is not `healthy`, in the style of a Kubernetes condition's reason."""

    LISTS_INCOMPLETE = "ListsIncomplete"
    NOT_SYNCED = "NotSynced"
    SYNC_FAILING = "SyncFailing"
    CHANGES_LATE = "ChangesLate"
    ALL_REFUSED = "AllServicesRefused"
    DRIFT_NOT_REPAIRED = "DriftNotRepaired"
    COMPARISON_FAILING = "ComparisonFailing"
    WATCH_DOWN = "WatchDown"
    MODE_REFUSED = "ModeRefused"
    CONFIGURATION_REJECTED = "ConfigurationRejected"

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
}


class Trouble(msgspec.Struct, frozen=True):
    """Something that lasts: for how many seconds, and what it is."""

    seconds: float
    reason: str


class FamilyFacts(msgspec.Struct, frozen=True):
    """One IP family.

    `behind` is the age of the oldest change that waits for a sync of this family. `refused` counts the
    services that the kernel refused among `services`. `drifted` counts objects that others changed and that
    no sync repaired; `returning` names those that were repaired and changed again.
    """

    name: str
    synced: bool
    behind: float | None = None
    failing: Trouble | None = None
    services: int = 0
    refused: int = 0
    drifted: int = 0
    returning: tuple[str, ...] = ()
    uncompared: Trouble | None = None


class WatchFacts(msgspec.Struct, frozen=True):
    """The watch of one kind; `down` is None while it is connected. Without an error its reason is empty."""

    kind: str
    down: Trouble | None = None


class Facts(msgspec.Struct, frozen=True):
    """Everything that health depends on.

    `age` is that of the process, `patience` the longest time that a change may wait, in seconds; `waits_for`
    says what the first sync waits for besides lists.
    """

    age: float
    patience: float
    families: tuple[FamilyFacts, ...]
    missing_lists: tuple[str, ...] = ()
    waits_for: str | None = None
    watches: tuple[WatchFacts, ...] = ()
    mode_refused: Trouble | None = None
    configuration_rejected: Trouble | None = None


class Condition(msgspec.Struct, frozen=True):
    """One thing that is wrong: what it is about ("" is the agent), and for how many seconds it has lasted."""

    cause: Cause
    subject: str
    message: str
    seconds: float


class Verdict(msgspec.Struct, frozen=True):
    """The state, what /livez says (`live`), and every condition that holds."""

    state: State
    live: bool
    conditions: tuple[Condition, ...] = ()

    @property
    def causes(self) -> tuple[Cause, ...]:
        """The causes that hold, each once, the worst first."""
        return tuple(dict.fromkeys(each.cause for each in self.conditions))


def in_time(behind: float | None, patience: float) -> bool:
    """Whether a family does its work in time: this is what /healthz and /livez say of it."""
    return behind is None or behind <= patience


def judge(facts: Facts) -> Verdict:
    """The verdict on these facts."""
    live = all(in_time(family.behind, facts.patience) for family in facts.families)
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
            told = f"the watch of {watch.kind} is down: {watch.down.reason or 'it does not begin'}"
            yield Condition(Cause.WATCH_DOWN, watch.kind, told, watch.down.seconds)
    for cause, trouble in (
        (Cause.MODE_REFUSED, facts.mode_refused),
        (Cause.CONFIGURATION_REJECTED, facts.configuration_rejected),
    ):
        if trouble is not None:
            yield Condition(cause, "", trouble.reason, trouble.seconds)


def _tolerance(down: Trouble) -> float:
    return WATCH_TOLERANCE if down.reason else LIST_TOLERANCE


def _of_family(family: FamilyFacts, facts: Facts) -> Iterator[Condition]:
    name, behind = family.name, family.behind
    if family.failing is not None:
        told = f"{name}: the last sync failed: {family.failing.reason}"
        yield Condition(Cause.SYNC_FAILING, name, told, family.failing.seconds)
    elif not family.synced:
        why = f", it waits for {facts.waits_for}" if facts.waits_for else ""
        yield Condition(Cause.NOT_SYNCED, name, f"{name}: no sync has succeeded yet{why}", facts.age)
    if behind is not None and not in_time(behind, facts.patience):
        told = f"{name}: a change has waited for {behind:.0f} s, longer than {facts.patience:g} s"
        yield Condition(Cause.CHANGES_LATE, name, told, behind)
    if family.refused >= max(_FEW, family.services):
        told = f"{name}: the kernel refuses every service ({family.refused})"
        yield Condition(Cause.ALL_REFUSED, name, told, 0.0)
    if family.drifted:
        told = f"{name}: {family.drifted} objects that others changed are not repaired"
        yield Condition(Cause.DRIFT_NOT_REPAIRED, name, told, 0.0)
    elif family.returning:
        first, more = family.returning[0], len(family.returning) - 1
        told = f"{name}: {first}{f' and {more} more' if more else ''} is changed again after each repair"
        yield Condition(Cause.DRIFT_NOT_REPAIRED, name, told, 0.0)
    if family.uncompared is not None:
        told = f"{name}: the kernel cannot be compared with what was applied: {family.uncompared.reason}"
        yield Condition(Cause.COMPARISON_FAILING, name, told, family.uncompared.seconds)
