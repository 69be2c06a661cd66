"""One family's part of a sync: plan the changes, and apply them through the backend.

The outcome is a value: the first sync of a mode on trial counts only if it succeeded for every family.
"""

import time
from collections.abc import Mapping, Sequence

import msgspec

from kproxy.addresses import Family
from kproxy.backends.core.base import Backend, SyncReport
from kproxy.plan.model import NodeView, ServicePlan
from kproxy.plan.planner import Planner
from kproxy.plan.stale_conntrack import ConntrackTracker
from kproxy.state.tables import ServiceInput


class SyncOutcome(msgspec.Struct, frozen=True):
    """The changes and the result of one sync; times in seconds."""

    plans: Mapping[str, ServicePlan]
    report: SyncReport
    planning: float
    applying: float


class FamilySync:
    """One family: its planner, its backend, its state of UDP flows, and the services refused last."""

    def __init__(self, family: Family, backend: Backend, flows: ConntrackTracker | None = None) -> None:
        self.family = family
        self.backend = backend
        self.refused: dict[str, str] = {}
        self.flows = flows or ConntrackTracker()
        self._planner = Planner(family)

    def sync(self, inputs: Sequence[ServiceInput], view: NodeView) -> SyncOutcome:
        """Plan the changes and apply them to the kernel."""
        began = time.monotonic()
        plans = self._planner.update(inputs, view)
        self.backend.update(plans.values())
        planned = time.monotonic()
        report = self.backend.sync()
        if report.error is None:
            self.refused = report.failed
        return SyncOutcome(plans, report, planned - began, time.monotonic() - planned)
