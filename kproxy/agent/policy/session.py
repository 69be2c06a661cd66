"""The enforcement of NetworkPolicies while it is turned on: plan what changed, apply it, check for drift.

Nothing is written before the first lists of Pods, Namespaces and NetworkPolicies are complete: the table of a
former process stays in force. After that a change costs one update of the plan and at most one transaction
per family. After a pause it is applied at once; the rests between syncs follow from their cost.
"""

import gc
import random
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

import structlog

from kproxy.addresses import Family
from kproxy.agent.drift_checker import DriftChecker
from kproxy.agent.policy.early import EarlyAddresses
from kproxy.agent.policy.family import PolicyFamily, PolicyOutcome
from kproxy.agent.policy.kernel import PolicyKernel
from kproxy.agent.schedule import Schedule
from kproxy.backends.policy.config import PolicyConfig, Unknown
from kproxy.config.model import ProxyConfig
from kproxy.config.schema_modes import MIN_SYNC_PERIOD
from kproxy.kernel.malloc import trim
from kproxy.node.facts import remembered
from kproxy.node.policy_settings import policy_config
from kproxy.plan.policy.model import Direction, PolicyTable, Touched
from kproxy.plan.policy.planner import PolicyPlanner
from kproxy.state.kinds import Kind
from kproxy.state.policy_changes import PolicyChanges
from kproxy.state.store import ObjectStore
from kproxy.state.wire import Node
from kproxy.telemetry.http.health import HealthState
from kproxy.telemetry.policy_observer import Census, PolicyObserver, SyncCost

log = structlog.stdlib.get_logger(__name__)

COST_RESTS = 4
"""Rest after a sync, as a multiple of its cost: under endless changes, syncs take a fifth of a core."""

Applied = Callable[[Family, Touched], None]
"""Called after each successful sync of a family with what it applied, on the thread of the session.

It must return at once.
"""

Planned = Callable[[Family, PolicyTable, Touched], None]
"""Called with what will be applied, on the thread of the session, before the kernel is changed."""


class PolicySession:
    """Used by one thread; the properties, and the planner under `lock`, by others too.

    `lock` is held while the plan changes.
    """

    def __init__(
        self,
        config: ProxyConfig,
        families: Collection[Family],
        store: ObjectStore,
        kernel: PolicyKernel,
        observer: PolicyObserver,
        applied: Applied = lambda _family, _touched: None,
        clock: Callable[[], float] = time.monotonic,
        planned: Planned = lambda _family, _table, _touched: None,
        early: EarlyAddresses | None = None,
    ) -> None:
        """`early` adds addresses that the API does not have yet."""
        self.lock = threading.Lock()
        self.planner = PolicyPlanner(config.node_name, families)
        self.health = HealthState(config.sync_period, clock, lambda: self.pending_since)
        self._config = config
        self._store = store
        self._kernel = kernel
        self._observer = observer
        self._on_applied = applied
        self._on_planned = planned
        self._early = early or EarlyAddresses(config.node_name)
        self._clock = clock
        chance = random.Random()  # noqa: S311
        self._schedule = Schedule(MIN_SYNC_PERIOD, config.sync_period, clock, chance, COST_RESTS)
        self._drift_checker = DriftChecker(observer, clock, self._waits, suspects=False)
        self._order = tuple(families)
        self._families: tuple[PolicyFamily, ...] = ()
        self._unplanned = [store.policy_changes(everything=True)]
        self._complete = False
        self._taken_since: float | None = None
        self._node: Node | None = None
        self._seen_node: tuple[Node | None, tuple[str, ...]] = (None, ())
        self._policies: set[str] = set()
        self._next_timer: float | None = None
        self._settled = False
        self.gap: str | None = None
        """Which packets no policy judges although the settings demand it, and why."""
        observer.begin(families)
        for family in families:
            self.health.add_family(family)

    @property
    def pending_since(self) -> float | None:
        """Monotonic time since when the oldest change waits for a sync; None before the first lists."""
        if not self._complete:
            return None
        times = (self._store.policy_pending_since, self._taken_since)
        return min((each for each in times if each is not None), default=None)

    @property
    def errors(self) -> dict[Family, str]:
        """The families whose last sync failed as a whole, and the reasons."""
        return {each.family: each.error for each in self._families if each.error is not None}

    @property
    def applied(self) -> bool:
        """Whether everything that is known is applied in every family."""
        families = self._families
        return bool(families) and all(each.applied and not each.failing for each in families)

    @property
    def pod_ranges(self) -> tuple[str, ...]:
        """The pod ranges of this node, of all families."""
        return tuple(cidr for each in self._families for cidr in each.config.pod_cidrs)

    @property
    def refused(self) -> dict[str, str]:
        """The policies that the kernel refuses, and the reasons."""
        return {key: reason for each in self._families for key, reason in each.refused.items()}

    def waits_for(self) -> str | None:
        """What the first sync waits for, in words; None if it waits for nothing."""
        if self._complete:
            return None
        missing = [*self._store.missing_policy_lists]
        if not missing and Kind.NODE in self._store.missing:
            missing = [Kind.NODE]
        return f"the lists of these kinds: {', '.join(kind.name for kind in missing)}" if missing else None

    def reconfigure(self, config: ProxyConfig) -> None:
        """Use other settings from the next sync on, and try again what was refused."""
        self._config = config
        self._schedule.set_periods(MIN_SYNC_PERIOD, config.sync_period)
        self.health.set_sync_period(config.sync_period)
        settings = [self._settings(each.family) for each in self._families]
        if settings:
            self._warn_of_unguarded(settings)
        for each, chosen in zip(self._families, settings, strict=True):
            each.configure(chosen, retry=True)

    def look(self) -> None:
        """Make the next step compare the kernel with what was applied; may be called from any thread."""
        self._drift_checker.soon()

    def step(self, now: float) -> float | None:
        """Read the changes and run the most urgent work that is due at `now`.

        Return when the next step is due (monotonic seconds, as `now`); None: once the store wakes.
        """
        if not self._ready():
            return None
        self._follow_node()
        due_in = self._due_in()
        if due_in == 0:
            self._sync()
        elif self._next_timer is not None and self._next_timer <= now:
            self._run_timers()
        elif self._drift_checker.next_check <= now:
            if self._drift_checker.check(self._families, self._in_step):
                self._mark_all()
        else:
            due = [self._drift_checker.next_check]
            due += [] if due_in is None else [now + due_in]
            due += [] if self._next_timer is None else [self._next_timer]
            return min(due)
        return now

    def _ready(self) -> bool:
        """Whether the first lists are complete, and the Node is known or known to be missing."""
        if not self._complete:
            self._unplanned.append(self._store.policy_changes())
            self._complete = self._unplanned[-1].complete and Kind.NODE not in self._store.missing
        return self._complete

    def _follow_node(self) -> None:
        node, ranges = self._store.node(), self._early.ranges
        if self._families and node is self._seen_node[0] and ranges == self._seen_node[1]:
            return
        self._seen_node = node, ranges
        self._node = remembered(node, self._node)
        settings = [self._settings(family) for family in self._order]
        self._warn_of_unguarded(settings)
        if not self._families:
            made = [PolicyFamily(each, self._kernel.enforcer(each), self._clock) for each in settings]
            for each in made:
                each.backend.on_progress = partial(self.health.progressed, each.family)
            self._families = tuple(made)
            return
        for each, config in zip(self._families, settings, strict=True):
            each.configure(config, retry=False)

    def _warn_of_unguarded(self, settings: Iterable[PolicyConfig]) -> None:
        """Say once that unknown pods are let through, where no range says which addresses are pods'."""
        wanted = self._config.network_policy_unknown_pods
        before, self.gap = self.gap, None
        if wanted != Unknown.ALLOW and not any(each.pod_cidrs for each in settings):
            self.gap = "packets of pods that are not known yet pass: the Node has no podCIDRs"
            if before is None:
                log.warning("policy_pod_ranges_unknown", unknown_pods=wanted, effect=self.gap)

    def _settings(self, family: Family) -> PolicyConfig:
        return self._kernel.able(policy_config(self._config, family, self._node, self._early.ranges))

    def _due_in(self) -> float | None:
        changed = self._waits() or bool(self._unplanned)
        working = any(each.due for each in self._families if not each.failing)
        return self._schedule.due_in(changed=changed or working)

    def _sync(self) -> None:
        started = self._clock()
        changes = self._take()
        if changes is None:
            return
        self._taken_since = started if changes.since is None else changes.since
        try:
            with self.lock:
                touched = self.planner.update(changes.pods, changes.namespaces, changes.policies)
            for each in self._families:
                table, of_family = self.planner.tables[each.family], touched.get(each.family, Touched())
                each.plan(table, of_family, changes.since)
                self._on_planned(each.family, table, of_family)
            planning = self._clock() - started
            retries = self._schedule.retry_due()
            chosen = [each for each in self._families if (retries if each.failing else each.due)]
            outcomes = [(each, each.apply()) for each in chosen]
        finally:
            self._taken_since = None
        self._publish(changes, touched.values(), outcomes, planning)
        self._conclude(started, outcomes)

    def _take(self) -> PolicyChanges | None:
        """Everything that was not planned yet; None if the lists are not complete any more."""
        self._unplanned.append(self._store.policy_changes())
        if not self._unplanned[-1].complete:
            self._complete = False
            return None
        taken, self._unplanned = self._unplanned, []
        return self._early.amend(merged(taken))

    def _publish(
        self,
        changes: PolicyChanges,
        touched: Iterable[Touched],
        outcomes: Iterable[tuple[PolicyFamily, PolicyOutcome]],
        planning: float,
    ) -> None:
        for key, policy in changes.policies.items():
            (self._policies.discard if policy is None else self._policies.add)(key)
        if changes.policies:
            self._observer.problems(self.planner.problems)
        if changes.policies or any(each.addresses for each in touched):
            self._observer.enforces(self._census())
        for each, outcome in outcomes:
            report = outcome.report
            if report.drifts:
                self._observer.drifted(each.family, report.drifts)
            cost = SyncCost(planning, outcome.seconds, outcome.waited)
            self._observer.synced(each.family, report, cost, each.groups)
            if report.error is not None:
                self.health.failed(each.family)
                continue
            self.health.updated(each.family)
            self._on_applied(each.family, outcome.touched)

    def _conclude(self, started: float, outcomes: Collection[tuple[PolicyFamily, PolicyOutcome]]) -> None:
        """Schedule the next sync."""
        failing = [each for each in self._families if each.failing]
        retries = [each.retry_at for each in self._families if each.retry_at is not None]
        if failing or retries:
            retry_in = max(0.0, min(retries) - self._clock()) if retries else None
            blocked = len(failing) == len(self._families)
            self._schedule.failed(started, blocked=blocked, failing=bool(failing), retry_in=retry_in)
        else:
            wrote = any(outcome.report.changes for _, outcome in outcomes)
            self._schedule.succeeded(started, wrote=wrote)
        if not self._settled and self.applied:
            self._settle()
        if outcomes:
            self._next_timer = self._clock()

    def _settle(self) -> None:
        """After the first sync: free what only it needed, and hide what stays from the garbage collector."""
        self._settled = True
        self._drift_checker.begin()
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        trim()

    def _run_timers(self) -> None:
        waits = [wait for each in self._families if (wait := each.backend.run_timers()) is not None]
        self._next_timer = self._clock() + min(waits) if waits else None

    def _census(self) -> Census:
        tables = self.planner.tables.values()
        isolated = {
            direction: {table.local.get(ip, ip) for table in tables for ip in table.isolated[direction]}
            for direction in Direction
        }
        pods = frozenset[str]().union(*isolated.values())
        return Census(len(self._policies), len(pods), {each: len(isolated[each]) for each in Direction})

    def _mark_all(self) -> None:
        for each in self._families:
            each.mark()

    def _waits(self) -> bool:
        return self._store.policy_pending_since is not None or self._early.news

    def _in_step(self) -> bool:
        return self._schedule.failures == 0 and not self._waits()


def merged(parts: Sequence[PolicyChanges]) -> PolicyChanges:
    """Changes that were read one after the other, as one; the last reading of an object counts."""
    return PolicyChanges(
        complete=parts[-1].complete,
        pods={key: pod for part in parts for key, pod in part.pods.items()},
        namespaces={key: each for part in parts for key, each in part.namespaces.items()},
        policies={key: policy for part in parts for key, policy in part.policies.items()},
        since=min((part.since for part in parts if part.since is not None), default=None),
    )
