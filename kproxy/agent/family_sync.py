"""One family's part of a sync: plan the changes, and apply them through the backend.

The outcome is a value: the first sync of a new mode counts only if it succeeded for every family.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import msgspec

from kproxy.addresses import Family
from kproxy.backends.core.base import Backend, SyncReport
from kproxy.plan.model import NodeView, ServicePlan
from kproxy.plan.planner import Planner
from kproxy.plan.stale_conntrack import ConntrackTracker
from kproxy.state.tables import ServiceInput


class SyncOutcome(msgspec.Struct, frozen=True):
    """The result of one sync, and the plans that it applied or that were refused; times in seconds.

    `before` are the plans that were applied before, of services that are applied now or were refused for the
    first time. `began`, `planned` and `ended` are the monotonic times of the steps.
    """

    plans: Mapping[str, ServicePlan]
    report: SyncReport
    planning: float
    applying: float
    before: Mapping[str, ServicePlan | None] = {}
    began: float = 0.0
    planned: float = 0.0
    ended: float = 0.0

    @property
    def seconds(self) -> float:
        """The duration of planning and applying."""
        return self.planning + self.applying


class FamilySync:
    """One family: its planner, its backend, its state of UDP flows, and the services refused last.

    `progressed` is called after each write of a sync. `error`: why the last sync failed as a whole, or None.
    Then the backend keeps the plans, and the next sync that works reports them as its own. `unfinished`: the
    services that the last sync left to the next one.
    """

    def __init__(
        self,
        family: Family,
        backend: Backend,
        progressed: Callable[[Family], None],
        flows: ConntrackTracker | None = None,
    ) -> None:
        self.family = family
        self.backend = backend
        backend.on_progress = partial(progressed, family)
        backend.on_timed_sync = self._note_timed_sync
        self.refused: dict[str, str] = {}
        self.flows = flows or ConntrackTracker()
        self.error: str | None = None
        self.unfinished: frozenset[str] = frozenset()
        self.planner = Planner(family)
        self._plans: dict[str, ServicePlan] = {}
        """Plans that were not reported as applied yet."""
        self._planning = 0.0
        self._timed: SyncOutcome | None = None
        self._before: dict[str, ServicePlan | None] = {}
        """What was applied before the plans that were not reported yet."""
        self._new: set[str] = set()
        """The services that were planned since the last sync that worked."""
        self._began = self._planned = 0.0

    @property
    def failing(self) -> bool:
        """Whether the last sync failed as a whole."""
        return self.error is not None

    def plan(self, inputs: Sequence[ServiceInput], view: NodeView) -> None:
        """Plan changed services and give their plans, and those of affected ones, to the backend."""
        began = time.monotonic()
        for each in inputs:
            self._before.setdefault(each.key, self.planner.known(each.key))
            self._new.add(each.key)
        plans = self.planner.update(inputs, view)
        self.backend.update(plans.values())
        self._plans |= plans
        self._planned = time.monotonic()
        self._began = self._began or began
        self._planning += self._planned - began

    def rivals(self, inputs: Sequence[ServiceInput]) -> set[str]:
        """The other services that claim a frontend of one of these services, as planned last."""
        return self.planner.rivals(each.key for each in inputs)

    def apply(self, budget: float | None = None) -> SyncOutcome:
        """Apply all plans to the kernel; see Backend.sync for `budget`."""
        planning, self._planning = self._planning, 0.0
        began = time.monotonic()
        report = self.backend.sync(budget)
        return self._outcome(report, planning, began, time.monotonic())

    def take_timed(self) -> SyncOutcome | None:
        """Return the outcome of the sync that the backend's timers made since the last call, if any."""
        timed, self._timed = self._timed, None
        return timed

    def _note_timed_sync(self, report: SyncReport, seconds: float) -> None:
        now = time.monotonic()
        self._timed = self._outcome(report, 0.0, now - seconds, now)

    def _outcome(self, report: SyncReport, planning: float, began: float, ended: float) -> SyncOutcome:
        self.error = report.error
        plans: dict[str, ServicePlan] = {}
        before: dict[str, ServicePlan | None] = {}
        times = (self._began or began, self._planned or began, ended)
        self._began = self._planned = 0.0
        self.unfinished = report.unfinished
        if report.error is None:
            self.refused = report.failed
            plans = {key: plan for key, plan in self._plans.items() if key not in report.unfinished}
            kept = self.refused.keys() | report.unfinished
            self._plans = {key: plan for key, plan in self._plans.items() if key in kept}
            known, new = self._before, self._new
            before = {key: plan for key, plan in known.items() if key not in kept or key in new}
            self._before = {key: plan for key, plan in known.items() if key in kept}
            self._new = set()
        return SyncOutcome(plans, report, planning, ended - began, before, *times)


def apply(
    syncs: Mapping[Family, FamilySync], *, all_families: bool, budget: float | None = None
) -> dict[Family, SyncOutcome]:
    """Apply the plans of every family, or only of those that do not fail, if there is one.

    `budget`: the seconds of each; see Backend.sync.
    """
    working = [sync for sync in syncs.values() if not sync.failing]
    chosen = syncs.values() if all_families or not working else working
    return {sync.family: sync.apply(budget) for sync in chosen}
