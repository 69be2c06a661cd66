"""One family's part of a sync: plan the changes, apply them through the backend, and log the outcome.

Syncing and logging are two steps, because the first sync of a mode on trial counts only if it succeeded for
every family.
"""

import time
from collections.abc import Mapping, Sequence

import msgspec
import structlog

from kproxy.addresses import Family
from kproxy.backends.core.base import Backend, SyncReport
from kproxy.plan.model import NodeView, ServicePlan
from kproxy.plan.planner import Planner
from kproxy.plan.stale_conntrack import ConntrackTracker
from kproxy.state.tables import ServiceInput

log = structlog.stdlib.get_logger(__name__)


class SyncOutcome(msgspec.Struct, frozen=True):
    """The changes and the result of one sync; times in seconds."""

    plans: Mapping[str, ServicePlan]
    report: SyncReport
    planning: float
    applying: float

    @property
    def seconds(self) -> float:
        """The duration of planning and applying."""
        return self.planning + self.applying


class FamilySync:
    """One family: its planner, its backend, its state of UDP flows, and the defects it logged last."""

    def __init__(self, family: Family, backend: Backend, flows: ConntrackTracker | None = None) -> None:
        self.family = family
        self.backend = backend
        self.refused: dict[str, str] = {}
        self.flows = flows or ConntrackTracker()
        self._planner = Planner(family)
        self._degraded: dict[str, str] = {}

    def sync(self, inputs: Sequence[ServiceInput], view: NodeView) -> SyncOutcome:
        """Plan the changes and apply them to the kernel."""
        began = time.monotonic()
        plans = self._planner.update(inputs, view)
        self.backend.update(plans.values())
        planned = time.monotonic()
        report = self.backend.sync()
        return SyncOutcome(plans, report, planned - began, time.monotonic() - planned)

    def tell(self, outcome: SyncOutcome) -> None:
        """Log the outcome: one line for the sync, and one for each service with a new problem."""
        report, family = outcome.report, self.family.value
        cost = {
            "plan_ms": round(outcome.planning * 1000, 1),
            "apply_ms": round(outcome.applying * 1000, 1),
        }
        if report.error is not None:
            log.error("sync_failed", family=family, reason=report.error, **cost)
            return
        for key in sorted(self.refused.keys() - report.failed.keys()):
            log.info("service_recovered", family=family, service=key)
        self.refused = dict(report.failed)
        for key, reason in report.degraded.items():
            if self._degraded.get(key) != reason:
                log.warning("service_degraded", family=family, service=key, reason=reason)
        self._degraded = dict(report.degraded)
        services = len(outcome.plans)
        if report.changes:
            extra = {"failed": len(report.failed)} if report.failed else {}
            log.info("synced", family=family, services=services, **cost, **report.changes, **extra)
        else:
            log.debug("nothing_to_write", family=family, services=services, **cost)
