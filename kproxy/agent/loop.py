"""The run loop: one thread that plans changes, syncs each family, and checks for drift when idle.

Sources run on threads of their own and only fill the store. A sync takes a slice of the changed services
(backlog.py) and the next sync follows at once while others wait, so that a small change never waits for all
the changes of another tenant. A change leaves the store family by family when it is applied; a change that
fails stays there, is reported, and is tried again. A family that fails does not delay the other one.
"""

import gc
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import structlog

from kproxy.addresses import Family
from kproxy.agent.backlog import Backlog
from kproxy.agent.changes import Changes
from kproxy.agent.conntrack_cleaner import ConntrackCleaner
from kproxy.agent.drift_checker import DriftChecker
from kproxy.agent.family_sync import FamilySync, SyncOutcome, apply
from kproxy.agent.mode_switch import attempt_switch, is_switch, make_mode, plan_switch
from kproxy.agent.node_tracker import NodeTracker
from kproxy.agent.schedule import Schedule
from kproxy.agent.slices import SLICE_SECONDS
from kproxy.agent.sync_publisher import SyncPublisher
from kproxy.backends.core.base import SyncReport
from kproxy.config.desired import Desired, Refusal, ReportedStatus
from kproxy.config.model import ProxyConfig, mode_name
from kproxy.kernel.links import AddressNews
from kproxy.kernel.malloc import trim
from kproxy.modes.base import Mode, ModeRegistry, ModeUnavailable
from kproxy.node.facts import NodeFacts
from kproxy.plan.planner import Planner
from kproxy.state.store import ObjectStore
from kproxy.state.tables import ServiceInput
from kproxy.telemetry.http.health import HealthState
from kproxy.telemetry.http.health_check_node_ports import ServiceHealth
from kproxy.telemetry.observer import SyncObserver

log = structlog.stdlib.get_logger(__name__)


class Agent:
    """Ties store, planners and backends together; used by one thread.

    `modes` makes another mode when the settings name one. When that mode cannot be used, `reported` says so.
    `api_servers` returns the current (address, port) of each API server.
    """

    def __init__(
        self,
        config: ProxyConfig,
        store: ObjectStore,
        mode: Mode,
        health: HealthState,
        interfaces: Callable[[], Sequence[str]],
        flows: ConntrackCleaner,
        service_health: ServiceHealth,
        observer: SyncObserver,
        modes: ModeRegistry,
        api_servers: Callable[[], frozenset[tuple[str, int]]] = frozenset,
    ) -> None:
        self._config = config
        self._store = store
        self._mode = mode
        self._health = health
        self._observer = observer
        self._modes = modes
        self._leftovers = modes.leftovers(config)
        self.reported = ReportedStatus()
        self.changes = Changes()
        self._backlog = Backlog(store)
        self._tracker = NodeTracker(store, health, interfaces, api_servers)
        self._clock = time.monotonic
        chance = random.Random()  # noqa: S311
        self._schedule = Schedule(config.min_sync_period, config.sync_period, self._clock, chance)
        self._family_syncs: dict[Family, FamilySync] = {}
        self._facts: NodeFacts | None = None
        self._desired = Desired(0, config)
        self._observed = 0
        self._switch_to: Desired | None = None
        self._first_sync_done = False
        self._reconfigured = False
        self._replan = True
        self._drifted = False
        self._news: deque[AddressNews] = deque()
        self._drift_checker = DriftChecker(observer, self._clock, lambda: store.changed)
        self._publisher = SyncPublisher(store, health, observer, flows, service_health, self._drift_checker)
        self._next_timer: float | None = None
        for family in mode.families:
            health.add_family(family)
        observer.begin(mode.families)

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set (and the store woken)."""
        while not stop.is_set():
            deadline = self.step(self._clock())
            left = None if deadline is None else deadline - self._clock()
            if left is None or left > 0:
                self._store.wait(left)

    def step(self, now: float) -> float | None:
        """Read the changes and run the most urgent work that is due at `now`, if any.

        Return when the next step is due (monotonic seconds, as `now`); None: once the store wakes.
        """
        self.observe()
        if self._news:
            self._drifted |= self._drift_checker.compare_addresses(self._mode, self._news.popleft())
        elif self.sync_due_in() == 0:
            self.sync()
        elif self._family_syncs and self._next_timer is not None and self._next_timer <= now:
            self._run_timers()
        elif self._family_syncs and self._drift_checker.next_check <= now:
            self._drifted |= self._drift_checker.check(self._family_syncs.values(), self._in_step)
        else:
            return self._next_deadline(now)
        return now

    def run_once(self, stop: threading.Event, deadline: float | None = None) -> bool:
        """Work until one sync succeeded; True if every service is applied, False also at the deadline."""
        while not stop.is_set():
            left = None if deadline is None else deadline - self._clock()
            if left is not None and left <= 0:
                return False
            self.observe()
            delay = self.sync_due_in()
            if delay is None or delay > 0:
                self._store.wait(min((each for each in (delay, left) if each is not None), default=None))
                continue
            reports = self.sync()
            if not self.sync_errors and not self._backlog:
                return not any(report.failed for report in reports.values())
        return False

    def addresses_changed(self, news: AddressNews) -> None:
        """Handle changed addresses of interfaces at once; may be called from any thread."""
        if news.elsewhere:
            self._tracker.invalidate()
        if news.device or news.lost:
            self._news.append(news)
        self._store.wake()

    def reconfigure(self, config: ProxyConfig) -> int:
        """Use new settings from the next sync on; return their revision. May be called from any thread."""
        desired = self._desired = Desired(self._desired.revision + 1, config)
        self._store.wake()
        return desired.revision

    @property
    def config(self) -> ProxyConfig:
        """The settings in force; may be read from any thread."""
        return self._config

    @property
    def sync_errors(self) -> dict[Family, str]:
        """The families whose last sync failed as a whole, and the reasons."""
        return {family: sync.error for family, sync in self._family_syncs.items() if sync.error}

    @property
    def knows_node(self) -> bool:
        """Whether the node's facts that the rules depend on are known."""
        return self._facts is not None

    @property
    def facts(self) -> NodeFacts | None:
        """The facts of the node that the rules depend on; may be read from any thread."""
        return self._facts

    def planner(self, family: Family) -> Planner | None:
        """The plans of a family; None if it is not served. Other threads may only ask it."""
        sync = self._family_syncs.get(family)
        return None if sync is None else sync.planner

    @property
    def mode(self) -> Mode:
        """The mode in force; may be read from any thread."""
        return self._mode

    def sync(self) -> Mapping[Family, SyncReport]:
        """Plan the changes and apply them for every family; switch the mode if the settings name another."""
        if self._switch_to is not None:
            return self._switch(self._switch_to)
        started = self._clock()
        facts = self._facts
        assert facts is not None  # noqa: S101 - only called when `ready`
        everything, self._replan, self._drifted = self._replan, False, False
        inputs = self._backlog.plan(self._family_syncs, facts.view, everything=everything)
        # A family that fails waits for the retry, unless there is nothing else to do.
        every = self._schedule.retry_due() or not inputs
        budget = None if everything or not self._first_sync_done else SLICE_SECONDS[0]
        outcomes = apply(self._family_syncs, all_families=every, budget=budget)
        if not everything:
            self._backlog.note(outcomes)
        return self._conclude(started, inputs, facts, outcomes, everything=everything)

    def _conclude(
        self,
        started: float,
        inputs: Sequence[ServiceInput],
        facts: NodeFacts,
        outcomes: Mapping[Family, SyncOutcome],
        *,
        everything: bool,
    ) -> Mapping[Family, SyncReport]:
        """Publish the result, commit applied changes, schedule the next sync."""
        syncs = self._family_syncs
        noted = self.changes.services(outcomes)
        # A sync of everything touches all services itself, after it started.
        since = started if everything else None
        self.changes.note(outcomes, self._store.arrivals(noted, outcomes, since))
        failing = self._publisher.publish(inputs, facts, outcomes, syncs)
        reports = {family: outcome.report for family, outcome in outcomes.items()}
        if failing or any(report.failed or report.leftovers for report in reports.values()):
            retries = [report.retry_in for report in reports.values() if report.retry_in is not None]
            blocked, retry_in = len(failing) == len(syncs), min(retries, default=None)
            self._schedule.failed(started, blocked=blocked, failing=bool(failing), retry_in=retry_in)
        else:
            self._schedule.succeeded(started, wrote=any(report.changes for report in reports.values()))
        if not self._first_sync_done and not failing:
            self._after_first_sync()
        self._next_timer = self._clock()
        return reports

    def _switch(self, desired: Desired) -> Mapping[Family, SyncReport]:
        """Apply everything in another mode, beside the rules of this one, and switch to it.

        If that fails, this mode goes on, and the objects of the other one are removed.
        """
        self._switch_to = None
        config = desired.config
        plan = plan_switch(self._modes, self._config, config, self._store.services)
        log.info("mode_switch_planned", **plan.fields())
        started = self._clock()
        try:
            mode, facts = make_mode(self._modes, config, self._mode, self._tracker)
        except ModeUnavailable as error:
            self._refuse(desired, "mode_unavailable", str(error))
            return {}
        leftovers = self._modes.leftovers(config)
        inputs = self._backlog.take_all(mode.families)
        attempt = attempt_switch(mode, facts, self._family_syncs, inputs, self._health.progressed)
        if attempt.reason is not None:
            self._refuse(desired, "mode_switch_failed", attempt.reason)
            return self._roll_back()
        for family in set(mode.families).difference(self._mode.families):
            self._health.add_family(family)
        self._observer.begin(mode.families)
        self._mode, self._leftovers, self._family_syncs = mode, leftovers, attempt.syncs
        self._backlog.forget_costs()
        self._facts = facts
        self._adopt(config)
        self._first_sync_done = self._replan = self._drifted = False
        reports = self._conclude(started, attempt.inputs, facts, attempt.outcomes, everything=True)
        self._observer.switched()
        log.info("mode_switched", mode=plan.after, seconds=round(self._clock() - started, 3))
        return reports

    def _refuse(self, desired: Desired, event: str, reason: str) -> None:
        wanted, kept = mode_name(desired.config), mode_name(self._config)
        log.error(event, mode=wanted, reason=reason, effect=f"{kept} stays")
        self._observer.switch_failed(wanted, kept, reason)
        self.reported.report(Refusal(desired.revision, self._config, reason))

    def _roll_back(self) -> Mapping[Family, SyncReport]:
        """Apply this mode again after a failed switch, and remove the objects of the other mode."""
        self._first_sync_done, self._replan = False, True
        for sync in self._family_syncs.values():
            sync.backend.invalidate()
        if self._facts is None:
            return {}
        reports = self.sync()
        if self._first_sync_done:
            log.info("mode_switch_rolled_back", mode=mode_name(self._config))
        return reports

    @property
    def ready(self) -> bool:
        """Whether a sync may run: all first lists are complete and the node's facts are known."""
        return self._store.ready and (self._facts is not None or self._switch_to is not None)

    def sync_due_in(self) -> float | None:
        """Seconds until a sync is due (0: now); None: not before a change."""
        if not self.ready:
            return None
        if self._switch_to is not None:
            return 0.0
        changed = self._replan or self._drifted or self._store.changed
        incomplete = self._store.incomplete_since
        unfinished = bool(self._backlog) or any(sync.unfinished for sync in self._family_syncs.values())
        return self._schedule.due_in(changed=changed, incomplete_since=incomplete, unfinished=unfinished)

    def observe(self) -> None:
        """Read new settings and facts of the node, once all first lists are complete."""
        if not self._store.ready:
            return
        desired = self._desired
        if desired.revision != self._observed:
            self._observed = desired.revision
            self._switch_to = desired if is_switch(self._config, desired.config) else None
            if self._switch_to is None:
                self._mode.reconfigure(desired.config)
                self._adopt(desired.config)
                self._reconfigured = True
                self._tracker.invalidate()
        if self._tracker.refresh(self._config):
            self._refresh_facts()

    def _next_deadline(self, now: float) -> float | None:
        sync = self.sync_due_in()
        due = [] if sync is None else [now + sync]
        if self._family_syncs:
            due.append(self._drift_checker.next_check)
            if self._next_timer is not None:
                due.append(self._next_timer)
        return min(due, default=None)

    def _adopt(self, config: ProxyConfig) -> None:
        self._config = config
        self._schedule.set_periods(config.min_sync_period, config.sync_period)
        self._health.set_sync_period(config.sync_period)

    def _refresh_facts(self) -> None:
        facts = self._tracker.facts_or_wait(self._config)
        if facts is None or (facts == self._facts and not self._reconfigured):
            return
        before, self._facts = self._facts, facts
        moved = before is None or before.without_ranges() != facts.without_ranges()
        if before is not None and moved:
            log.info("node_changed", node=facts.view.name, zone=facts.view.zone)
        if moved or self._reconfigured:
            self._replan = True
        else:
            self._drifted = True  # only the base chains have to change
        reconfigured, self._reconfigured = self._reconfigured, False
        for family in self._mode.families:
            known = facts.families[family]
            backend = self._mode.configure(family, known)
            if family not in self._family_syncs:
                if known.local_traffic is None:
                    effect = "see --cluster-cidr"
                    log.warning("no_local_traffic_detection", family=family.value, effect=effect)
                self._family_syncs[family] = FamilySync(family, backend, self._health.progressed)
            elif before and before.families[family].node_port_addresses != known.node_port_addresses:
                self._family_syncs[family].flows.invalidate()
            if reconfigured:
                backend.retry()  # an operator may wait for what was refused

    def _run_timers(self) -> None:
        """Run the due periodic work of the mode, of other modes' leftovers and of the backends."""
        waits = [self._mode.run_timers(), *(each.run_timers() for each in self._leftovers)]
        waits += [sync.backend.run_timers() for sync in self._family_syncs.values()]
        self._publish_timed_syncs()
        soonest = min((wait for wait in waits if wait is not None), default=None)
        self._next_timer = None if soonest is None else self._clock() + soonest

    def _publish_timed_syncs(self) -> None:
        """Publish the syncs that backends made; if one left something undone, all families are synced."""
        syncs = self._family_syncs
        timed = {family: outcome for family, sync in syncs.items() if (outcome := sync.take_timed())}
        if timed and self._facts is not None:
            self._publisher.publish((), self._facts, timed, syncs)
            reports = [outcome.report for outcome in timed.values()]
            self._drifted |= any(each.error or each.failed or each.leftovers for each in reports)

    def _in_step(self) -> bool:
        return self._schedule.failures == 0 and self._store.pending_since is None

    def _after_first_sync(self) -> None:
        """Remove leftovers of other modes; freeze long-lived objects for the garbage collector."""
        self._first_sync_done = True
        self._drift_checker.begin()
        for each in self._leftovers:
            each.begin(self._mode.variants)
        self._mode.on_first_sync()
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        trim()
