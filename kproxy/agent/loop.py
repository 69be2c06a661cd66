"""The run loop: one thread that plans changes, syncs each family, and checks for drift when idle.

Sources run on threads of their own and only fill the store. A sync takes a slice of the changed services
(backlog.py) and the next sync follows at once while others wait, so that a small change never waits for all
the changes of another tenant. A change leaves the store family by family when it is applied; a change that
fails stays there, is reported, and is tried again. A family that fails does not delay the other one.
"""

import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import structlog

from kproxy.addresses import Family
from kproxy.agent.backlog import Backlog
from kproxy.agent.conntrack_cleaner import ConntrackCleaner
from kproxy.agent.drift_checker import DriftChecker
from kproxy.agent.family_sync import SyncOutcome, apply
from kproxy.agent.mode_in_force import ModeInForce
from kproxy.agent.mode_switch import ModeSwitcher, is_switch
from kproxy.agent.node_tracker import NodeTracker
from kproxy.agent.schedule import Schedule
from kproxy.agent.slices import SLICE_SECONDS
from kproxy.agent.sync_publisher import SyncPublisher
from kproxy.backends.core.base import SyncReport
from kproxy.config.desired import Desired, ReportedStatus
from kproxy.config.model import ProxyConfig, mode_name
from kproxy.kernel.links import AddressNews
from kproxy.kernel.malloc import freeze_objects
from kproxy.modes.base import Mode, ModeRegistry, close_mode
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
        self._in_force = ModeInForce(mode, modes.leftovers(config), health.progressed)
        self._health = health
        self._observer = observer
        self._backlog = Backlog(store)
        self._tracker = NodeTracker(store, health, interfaces, api_servers)
        self._switcher = ModeSwitcher(modes, store, self._backlog, self._tracker, health, observer)
        self._clock = time.monotonic
        chance = random.Random()  # noqa: S311
        self._schedule = Schedule(config.min_sync_period, config.sync_period, self._clock, chance)
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
        self.changes = self._publisher.changes
        self._next_timer = math.inf
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
            self._drifted |= self._drift_checker.compare_addresses(self.mode, self._news.popleft())
        elif self.sync_due_in() == 0:
            self.sync()
        elif self._in_force.syncs and self._next_timer <= now:
            self._run_timers()
        elif self._in_force.syncs and self._drift_checker.next_check <= now:
            self._drifted |= self._drift_checker.check(self._in_force.syncs.values(), self._in_step)
        else:
            return self._next_deadline(now)
        return now

    def close(self) -> None:
        """Let go what the mode holds, at the end of the process; the rules stay."""
        close_mode(self.mode)

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
        return self._in_force.errors

    @property
    def knows_node(self) -> bool:
        """Whether the node's facts that the rules depend on are known."""
        return self._facts is not None

    @property
    def facts(self) -> NodeFacts | None:
        """The facts of the node that the rules depend on; may be read from any thread."""
        return self._facts

    @property
    def reported(self) -> ReportedStatus:
        """Whether the mode of desired settings was refused; any thread may use it."""
        return self._switcher.reported

    def planner(self, family: Family) -> Planner | None:
        """The plans of a family; None if it is not served. Other threads may only ask it."""
        sync = self._in_force.syncs.get(family)
        return None if sync is None else sync.planner

    @property
    def mode(self) -> Mode:
        """The mode in force; may be read from any thread."""
        return self._in_force.mode

    def sync(self) -> Mapping[Family, SyncReport]:
        """Plan the changes and apply them for every family; switch the mode if the settings name another."""
        if self._switch_to is not None:
            return self._switch(self._switch_to)
        started = self._clock()
        facts = self._facts
        assert facts is not None  # noqa: S101 - only called when a sync is due
        everything, self._replan, self._drifted = self._replan, False, False
        syncs = self._in_force.syncs
        inputs = self._backlog.plan(syncs, facts.view, everything=everything)
        # A family that fails waits for the retry, unless there is nothing else to do.
        every = self._schedule.retry_due() or not inputs
        budget = None if everything or not self._first_sync_done else SLICE_SECONDS[0]
        outcomes = apply(syncs, all_families=every, budget=budget)
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
        syncs = self._in_force.syncs
        # A sync of everything touches all services itself, after it started.
        since = started if everything else None
        failing = self._publisher.publish(inputs, facts, outcomes, syncs, since)
        reports = {family: outcome.report for family, outcome in outcomes.items()}
        blocked = len(failing) == len(syncs)
        self._schedule.concluded(started, reports.values(), blocked=blocked, failing=bool(failing))
        if not self._first_sync_done and not failing:
            self._after_first_sync()
        self._next_timer = self._clock()
        return reports

    def _switch(self, desired: Desired) -> Mapping[Family, SyncReport]:
        """Apply everything in another mode, beside the rules of this one, and switch to it.

        If that fails, this mode goes on, and the objects of the other one are removed.
        """
        self._switch_to = None
        attempt = self._switcher.attempt(desired, self._config, self._in_force)
        if attempt is None:
            return {}
        if attempt.reason is not None:
            close_mode(attempt.in_force.mode)
            return self._roll_back()
        facts = attempt.facts
        close_mode(self.mode)
        self._in_force, self._facts = attempt.in_force, facts
        self._adopt(desired.config)
        self._first_sync_done = self._replan = self._drifted = False
        reports = self._conclude(attempt.started, attempt.inputs, facts, attempt.outcomes, everything=True)
        self._switcher.switched(desired.config, attempt)
        return reports

    def _roll_back(self) -> Mapping[Family, SyncReport]:
        """Apply this mode again after a failed switch, and remove the objects of the other mode."""
        self._first_sync_done, self._replan = False, True
        self._in_force.invalidate()
        if self._facts is None:
            return {}
        reports = self.sync()
        if self._first_sync_done:
            log.info("mode_switch_rolled_back", mode=mode_name(self._config))
        return reports

    def sync_due_in(self) -> float | None:
        """Seconds until a sync is due (0: now); None: not before a change, or without a list or the facts."""
        if not self._store.ready:
            return None
        if self._switch_to is not None:
            return 0.0
        if self._facts is None:
            return None
        changed = self._replan or self._drifted or self._store.changed
        incomplete = self._store.incomplete_since
        unfinished = bool(self._backlog) or self._in_force.unfinished
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
                self.mode.reconfigure(desired.config)
                self._adopt(desired.config)
                self._reconfigured = True
                self._tracker.invalidate()
        if self._tracker.refresh(self._config):
            self._refresh_facts()

    def _next_deadline(self, now: float) -> float | None:
        sync = self.sync_due_in()
        due = [] if sync is None else [now + sync]
        if self._in_force.syncs:
            due += [self._drift_checker.next_check, self._next_timer]
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
        # An operator who changed the settings may wait for what was refused.
        retry, self._reconfigured = self._reconfigured, False
        self._in_force.configure(facts, before, retry=retry)

    def _run_timers(self) -> None:
        """Run periodic work and publish its syncs; if one left something undone, all families are synced."""
        soonest = self._in_force.run_timers()
        timed = self._in_force.take_timed()
        if timed and self._facts is not None:
            self._publisher.publish((), self._facts, timed, self._in_force.syncs)
            self._drifted |= any(outcome.report.incomplete for outcome in timed.values())
        self._next_timer = math.inf if soonest is None else self._clock() + soonest

    def _in_step(self) -> bool:
        return self._schedule.failures == 0 and self._store.pending_since is None

    def _after_first_sync(self) -> None:
        """Remove leftovers of other modes."""
        self._first_sync_done = True
        self._drift_checker.begin()
        self._in_force.on_first_sync()
        freeze_objects()
