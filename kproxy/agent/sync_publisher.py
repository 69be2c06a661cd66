"""Passes the outcome of a sync to health, telemetry, conntrack cleaner, health-check ports, and the store."""

from collections.abc import Mapping, Sequence

from kproxy.addresses import Family
from kproxy.agent.changes import Changes
from kproxy.agent.conntrack_cleaner import ConntrackCleaner
from kproxy.agent.drift_checker import DriftChecker
from kproxy.agent.family_sync import FamilySync, SyncOutcome
from kproxy.node.facts import NodeFacts
from kproxy.state.problems import Problem
from kproxy.state.store import ObjectStore
from kproxy.state.tables import ServiceInput
from kproxy.telemetry.http.health import HealthState
from kproxy.telemetry.http.health_check_node_ports import ServiceHealth
from kproxy.telemetry.observer import SyncObserver
from kproxy.telemetry.problem_log import ProblemLog


class SyncPublisher:
    """Used by the run loop's thread."""

    def __init__(
        self,
        store: ObjectStore,
        health: HealthState,
        observer: SyncObserver,
        flows: ConntrackCleaner,
        service_health: ServiceHealth,
        drift_checker: DriftChecker,
    ) -> None:
        self._store = store
        self._health = health
        self._observer = observer
        self._flows = flows
        self._service_health = service_health
        self._drift_checker = drift_checker
        self._problem_log = ProblemLog()
        self.changes = Changes()
        flows.on_deleted = self.changes.forgot

    def publish(
        self,
        inputs: Sequence[ServiceInput],
        facts: NodeFacts,
        outcomes: Mapping[Family, SyncOutcome],
        syncs: Mapping[Family, FamilySync],
        since: float | None = None,
    ) -> list[str]:
        """Publish each family's outcome, and the problems of the planned services; commit what is applied.

        `since`: what was touched after that time (monotonic seconds) did not arrive, but was taken by the
        sync itself. Return the families that fail.
        """
        noted = self.changes.services(outcomes)
        numbers = self.changes.note(outcomes, self._store.arrivals(noted, outcomes, since))
        problems: dict[str, tuple[Problem, ...]] = {each.key: () for each in inputs}
        for family, outcome in outcomes.items():
            plans, report = outcome.plans, outcome.report
            for key, plan in plans.items():
                problems[key] = tuple(dict.fromkeys((*problems.get(key, ()), *plan.problems)))
            if report.drifts:
                self._drift_checker.log_drifts(family, report.drifts)
            self._observer.synced(family, report, plans, outcome.planning, outcome.applying)
            if report.error is not None:
                self._health.failed(family)
                continue
            self._health.updated(family)
            failed = report.failed
            held = {key: plan for key, plan in plans.items() if key not in failed}
            self._flows.submit(family, syncs[family].flows.update(held), numbers.get(family))
            self._service_health.update(plans.values(), {family: facts.families[family].node_port_addresses})
        self._observer.problems(problems)
        self._problem_log.update(problems)
        return self._commit(outcomes, syncs)

    def _commit(
        self, outcomes: Mapping[Family, SyncOutcome], syncs: Mapping[Family, FamilySync]
    ) -> list[str]:
        """Let the store forget the changes that are applied; return the families that fail."""
        reports = [(family.value, outcome.report) for family, outcome in outcomes.items()]
        refused = {name: each.failed.keys() | each.unfinished for name, each in reports if each.error is None}
        failing = [family.value for family, sync in syncs.items() if sync.failing]
        self._observer.applied(self._store.commit(refused, failing))
        return failing
