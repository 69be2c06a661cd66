"""The run loop: one thread that plans what changed, syncs each family, and looks for drift when idle.

Sources run on threads of their own and only fill the inbox. A change leaves the inbox when every family has
it in the kernel; whatever fails stays there, is reported, and is tried again.
"""

import gc
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import structlog

from kproxy.addresses import Family
from kproxy.agent.config import ProxyConfig
from kproxy.agent.flows import FlowCleaner
from kproxy.agent.health import HealthState
from kproxy.agent.inbox import Inbox
from kproxy.agent.mode import Mode
from kproxy.agent.node import NodeFacts, needs_interfaces, node_facts
from kproxy.agent.reporter import Reporter
from kproxy.agent.schedule import Schedule
from kproxy.agent.service_health import ServiceHealth
from kproxy.backends.base import Backend, CheckError, SyncReport
from kproxy.plan.flows import stale_after
from kproxy.plan.model import Protocol, ServicePlan
from kproxy.plan.planner import Planner
from kproxy.state.decode import Kind
from kproxy.state.problems import Problem
from kproxy.state.wire import Node

log = structlog.stdlib.get_logger(__name__)

GLANCE_PERIOD = 2.0
"""Seconds between looks at the kernel's change counters, a few microseconds each."""

THOROUGH_PERIOD = 900.0
"""Seconds between comparisons of all rules even if the counters say that nothing changed."""

CHECK_SHARE = 20
"""A comparison that took t seconds is not repeated within this many times t (500 times for thorough ones)."""


class _Side:
    """One family: its planner, its backend, and the defects it reported last."""

    def __init__(self, family: Family, backend: Backend) -> None:
        self.family = family
        self.planner = Planner(family)
        self.backend = backend
        self.refused: dict[str, str] = {}
        self.degraded: dict[str, str] = {}
        self.applied: dict[str, ServicePlan] = {}


class Agent:
    """Ties inbox, planners and backends together; used by one thread."""

    def __init__(
        self,
        config: ProxyConfig,
        inbox: Inbox,
        mode: Mode,
        health: HealthState,
        interfaces: Callable[[], Sequence[str]],
        flows: FlowCleaner,
        service_health: ServiceHealth,
        reporter: Reporter,
    ) -> None:
        self._config = config
        self._inbox = inbox
        self._mode = mode
        self._health = health
        self._interfaces = interfaces
        self._flows = flows
        self._service_health = service_health
        self._reporter = reporter
        self._clock = time.monotonic
        chance = random.Random()  # noqa: S311
        self._schedule = Schedule(config.min_sync_period, config.sync_period, self._clock, chance)
        self._sides: dict[Family, _Side] = {}
        self._facts: NodeFacts | None = None
        self._facts_of: Node | None = None
        self._facts_stale = True
        self._wanted = config
        self._reconfigured = False
        self._replan = True
        self._drifted = False
        self._problems: dict[str, tuple[Problem, ...]] = {}
        self._next_glance = 0.0
        self._next_check = 0.0
        self._next_thorough = 0.0
        self._next_tending: float | None = None
        for family in mode.families:
            health.add_family(family)
        reporter.begin(mode.families)

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set (and the inbox woken)."""
        while not stop.is_set():
            delay = self._due_in()
            if delay is None or delay > 0:
                self._inbox.wait(delay)
            elif self._sync_due_in() == 0:
                self.sync()
            elif self._next_tending is not None and self._next_tending <= self._clock():
                self._tend()
            else:
                self._look_for_drift()

    def run_once(self, stop: threading.Event) -> bool:
        """Work until one sync got through; True if every service is applied."""
        while not stop.is_set():
            delay = self._sync_due_in()
            if delay is None or delay > 0:
                self._inbox.wait(delay)
                continue
            reports = self.sync()
            if all(report.error is None for report in reports.values()):
                return not any(report.failed for report in reports.values())
        return False

    def interfaces_changed(self) -> None:
        """Look at the interfaces' addresses again before the next sync; may be called from any thread."""
        self._facts_stale = True
        self._inbox.wake()

    def reconfigure(self, config: ProxyConfig) -> None:
        """Work with other settings from the next sync on; may be called from any thread."""
        self._wanted = config
        self._inbox.wake()

    def sync(self) -> Mapping[Family, SyncReport]:
        """Plan what changed and bring both families' kernels to it."""
        started = self._clock()
        facts = self._facts
        assert facts is not None  # noqa: S101 - only called once _ready() has said so
        retried = self._schedule.retry_due()
        if retried:
            for side in self._sides.values():
                side.backend.retry()
        inputs = self._inbox.take(everything=self._replan)
        self._replan = self._drifted = False
        reports: dict[Family, SyncReport] = {}
        problems: dict[str, tuple[Problem, ...]] = {given.key: () for given in inputs}
        for side in self._sides.values():
            began = self._clock()
            plans = side.planner.update(inputs, facts.view)
            side.backend.update(plans.values())
            planned = self._clock()
            for key, plan in plans.items():
                problems[key] = tuple(dict.fromkeys((*problems.get(key, ()), *plan.problems)))
            reports[side.family] = report = side.backend.sync()
            ended = self._clock()
            self._tell(side, report, len(plans), planned - began, ended - planned)
            self._reporter.synced(side.family, report, plans, ended - began, retried=retried)
            if report.error is None:
                self._forget_flows(side, plans, report.failed)
                self._service_health.update(
                    plans.values(), {side.family: facts.families[side.family].node_port_addresses}
                )
        self._tell_problems(problems)
        failed = {key for report in reports.values() for key in report.failed}
        blocked = any(report.error is not None for report in reports.values())
        if not blocked:
            self._reporter.applied(self._inbox.commit(given for given in inputs if given.key not in failed))
        if blocked or failed or any(report.leftovers for report in reports.values()):
            self._schedule.failed(started, blocked=blocked)
        else:
            self._schedule.succeeded(started, wrote=any(report.changes for report in reports.values()))
        if self._next_thorough == 0 and not blocked:
            self._after_first_sync()
        self._next_tending = self._clock()
        return reports

    def _forget_flows(self, side: _Side, plans: Mapping[str, ServicePlan], failed: Mapping[str, str]) -> None:
        """Have flows forgotten that the applied plans leave stale; at a start, nothing is known to be."""
        for key, plan in plans.items():
            if key in failed:
                continue
            if self._next_thorough:
                self._flows.submit(side.family, stale_after(side.applied.get(key), plan))
            if any(port.protocol is Protocol.UDP for port in plan.ports):
                side.applied[key] = plan
            else:
                side.applied.pop(key, None)

    def _due_in(self) -> float | None:
        sync = self._sync_due_in()
        if not self._sides:
            return sync
        next_look = self._next_glance
        if self._next_tending is not None:
            next_look = min(next_look, self._next_tending)
        look = max(0.0, next_look - self._clock())
        return look if sync is None else min(sync, look)

    def _sync_due_in(self) -> float | None:
        if not self._ready():
            return None
        changed = self._replan or self._drifted or self._inbox.changed
        return self._schedule.due_in(changed=changed)

    def _ready(self) -> bool:
        """Whether a sync may run: all first lists are complete and the node's facts are known."""
        if not self._inbox.ready:
            return False
        node = self._inbox.node()
        if self._wanted is not self._config:
            self._take_settings(self._wanted)
        if self._facts_stale or node is not self._facts_of:
            self._refresh_facts(node)
        return self._facts is not None

    def _take_settings(self, config: ProxyConfig) -> None:
        self._config = config
        self._schedule.set_periods(config.min_sync_period, config.sync_period)
        self._health.set_sync_period(config.sync_period)
        self._mode.reconfigure(config)
        self._facts_stale = self._reconfigured = True

    def _refresh_facts(self, node: Node | None) -> None:
        self._facts_stale = False
        self._facts_of = node
        self._health.see_node(node, known=True)
        interfaces = self._interfaces() if needs_interfaces(self._config) else ()
        facts = node_facts(self._config, node, interfaces)
        if facts is None:
            log.info(
                "waiting_for_pod_cidrs", node=self._config.node_name, mode=self._config.detect_local_mode
            )
            return
        if facts == self._facts and not self._reconfigured:
            return
        self._reconfigured = False
        if self._facts is not None and facts != self._facts:
            log.info("node_changed", node=facts.view.name, zone=facts.view.zone)
        self._facts = facts
        self._replan = True
        for family in self._mode.families:
            side = facts.families[family]
            backend = self._mode.configure(family, side)
            if family not in self._sides:
                if side.local_traffic is None:
                    log.warning(
                        "no_local_traffic_detection", family=family.value, effect="see --cluster-cidr"
                    )
                self._sides[family] = _Side(family, backend)

    def _tend(self) -> None:
        """Let the mode and the backends do what time asks for."""
        waits = [self._mode.tend(), *(side.backend.tend() for side in self._sides.values())]
        soonest = min((wait for wait in waits if wait is not None), default=None)
        self._next_tending = None if soonest is None else self._clock() + soonest

    def _look_for_drift(self) -> None:
        now = self._clock()
        self._next_glance = now + GLANCE_PERIOD
        if now < self._next_check:
            return
        thorough = now >= self._next_thorough
        for side in self._sides.values():
            try:
                drifts = side.backend.check(thorough=thorough)
            except CheckError as error:
                log.warning("check_failed", family=side.family.value, reason=str(error))
                continue
            if drifts:
                self._reporter.drifted(side.family, drifts)
                shown = [str(drift) for drift in drifts[:10]]
                log.warning("drift_found", family=side.family.value, objects=len(drifts), first=shown)
                self._drifted = True
            elif self._schedule.failures == 0 and self._inbox.pending_since is None:
                self._reporter.confirmed(side.family)
        cost = self._clock() - now
        self._next_check = self._clock() + CHECK_SHARE * cost
        if thorough:
            self._next_thorough = self._clock() + max(THOROUGH_PERIOD, 500 * cost)

    def _after_first_sync(self) -> None:
        """Let go what another mode left, and spare the garbage collector what lives for ever from here on."""
        self._next_thorough = self._clock() + THOROUGH_PERIOD
        self._mode.settled()
        gc.collect()
        gc.freeze()

    def _tell(self, side: _Side, report: SyncReport, services: int, planning: float, applying: float) -> None:
        family = side.family
        cost = {"plan_ms": round(planning * 1000, 1), "apply_ms": round(applying * 1000, 1)}
        if report.error is not None:
            self._health.failed(family)
            log.error("sync_failed", family=family.value, reason=report.error, **cost)
            return
        self._health.updated(family)
        for key in sorted(side.refused.keys() - report.failed.keys()):
            log.info("service_recovered", family=family.value, service=key)
        side.refused = dict(report.failed)
        for key, reason in report.degraded.items():
            if side.degraded.get(key) != reason:
                log.warning("service_degraded", family=family.value, service=key, reason=reason)
        side.degraded = dict(report.degraded)
        if report.changes:
            extra = {"failed": len(report.failed)} if report.failed else {}
            log.info("synced", family=family.value, services=services, **cost, **report.changes, **extra)
        else:
            log.debug("nothing_to_write", family=family.value, services=services, **cost)

    def _tell_problems(self, found: Mapping[str, tuple[Problem, ...]]) -> None:
        self._reporter.problems(found)
        for key, problems in found.items():
            known = self._problems.get(key, ())
            for problem in problems:
                if problem not in known:
                    log.warning(
                        "object_problem",
                        object=problem.object,
                        field=problem.field,
                        value=problem.value,
                        reason=problem.reason,
                    )
            if known and not problems:
                log.info("object_mended", service=key)
            if problems:
                self._problems[key] = problems
            else:
                self._problems.pop(key, None)


def required_kinds() -> frozenset[Kind]:
    """The kinds whose first list must be complete before anything is programmed."""
    return frozenset(Kind)
