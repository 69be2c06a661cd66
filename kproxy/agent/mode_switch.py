"""Switching the proxy mode of a running process: detection, plan, and the result of the first sync.

The new mode writes all of its objects beside those of the old one. If its first sync succeeds for every
family, the old mode's objects are removed, and established connections continue. Otherwise the new mode's
objects are removed. The run loop keeps the mode that works; this module attempts the switch.
"""

import time
from collections.abc import Collection, Mapping, Sequence

import msgspec
import structlog

from kproxy.addresses import Family
from kproxy.agent.backlog import Backlog
from kproxy.agent.family_sync import SyncOutcome
from kproxy.agent.mode_in_force import ModeInForce
from kproxy.agent.node_tracker import NodeTracker
from kproxy.config.desired import Desired, Refusal, ReportedStatus
from kproxy.config.model import ProxyConfig, mode_name
from kproxy.config.modes import traits_of
from kproxy.modes.base import Mode, ModeRegistry, ModeUnavailable, close_mode
from kproxy.node.facts import NodeFacts
from kproxy.state.store import ObjectStore
from kproxy.state.tables import ServiceInput
from kproxy.telemetry.http.health import HealthState
from kproxy.telemetry.observer import SyncObserver

log = structlog.stdlib.get_logger(__name__)


class SwitchPlan(msgspec.Struct, frozen=True):
    """The old and the new mode, the number of Services; objects written `first` and removed `afterwards`."""

    before: str
    after: str
    services: int
    first: str
    afterwards: str

    def fields(self) -> dict[str, str | int]:
        """The plan as fields of a log event."""
        return {
            "from": self.before,
            "to": self.after,
            "services": self.services,
            "first": self.first,
            "afterwards": self.afterwards,
        }


def is_switch(old: ProxyConfig, new: ProxyConfig) -> bool:
    """Whether new settings need another mode: another name, or another iptables variant that rules use."""
    if new.proxy_mode != old.proxy_mode:
        return True
    return new.iptables_variant is not old.iptables_variant and traits_of(new.proxy_mode).writes_iptables


def plan_switch(modes: ModeRegistry, old: ProxyConfig, new: ProxyConfig, services: int) -> SwitchPlan:
    """Return what the switch will do."""
    after, before = modes.spec(new), modes.spec(old)
    taken_away = before.taken_away
    if after.traits.writes_table and before.traits.writes_table:
        taken_away = before.taken_away_beside or taken_away
    return SwitchPlan(mode_name(old), mode_name(new), services, after.written, taken_away)


class SwitchAttempt(msgspec.Struct, frozen=True):
    """A new mode after its first sync with `inputs`, which began at `started` (monotonic seconds).

    `reason` says why it failed, None if it did not.
    """

    in_force: ModeInForce
    facts: NodeFacts
    inputs: Sequence[ServiceInput]
    outcomes: Mapping[Family, SyncOutcome]
    reason: str | None
    started: float


class ModeSwitcher:
    """Makes the mode that the settings name, syncs it, and reports what came of it. Used by one thread."""

    def __init__(
        self,
        modes: ModeRegistry,
        store: ObjectStore,
        backlog: Backlog,
        tracker: NodeTracker,
        health: HealthState,
        observer: SyncObserver,
    ) -> None:
        self.reported = ReportedStatus()
        self._modes = modes
        self._store = store
        self._backlog = backlog
        self._tracker = tracker
        self._health = health
        self._observer = observer

    def attempt(self, desired: Desired, config: ProxyConfig, old: ModeInForce) -> SwitchAttempt | None:
        """Sync every family in the desired mode, beside the rules of the `old` one.

        `config`: the settings in force. A mode that cannot be used is reported as refused. None: it was
        refused before it wrote anything.
        """
        plan = plan_switch(self._modes, config, desired.config, self._store.services)
        log.info("mode_switch_planned", **plan.fields())
        try:
            attempt = self._sync(desired.config, old)
        except ModeUnavailable as error:
            self._refuse(desired, config, "mode_unavailable", str(error))
            return None
        if attempt.reason is not None:
            self._refuse(desired, config, "mode_switch_failed", attempt.reason)
            return attempt
        for family in set(attempt.in_force.mode.families).difference(old.mode.families):
            self._health.add_family(family)
        self._observer.begin(attempt.in_force.mode.families)
        self._backlog.forget_costs()
        return attempt

    def switched(self, config: ProxyConfig, attempt: SwitchAttempt) -> None:
        """Report that the mode of this attempt is in force, with these settings."""
        self._observer.switched()
        seconds = round(time.monotonic() - attempt.started, 3)
        log.info("mode_switched", mode=mode_name(config), seconds=seconds)

    def _sync(self, config: ProxyConfig, old: ModeInForce) -> SwitchAttempt:
        """The first sync of the configured mode. Raises ModeUnavailable before anything is written."""
        started = time.monotonic()
        mode, facts = make_mode(self._modes, config, old.mode, self._tracker)
        new = ModeInForce(mode, self._modes.leftovers(config), self._health.progressed)
        inputs = self._backlog.take_all(mode.families)
        new.take_over(facts, old.syncs)
        for sync in new.syncs.values():
            sync.plan(inputs, facts.view)
        outcomes = {family: sync.apply() for family, sync in new.syncs.items()}
        reason = failure_reason(outcomes, {family: sync.refused for family, sync in old.syncs.items()})
        return SwitchAttempt(new, facts, inputs, outcomes, reason, started)

    def _refuse(self, desired: Desired, config: ProxyConfig, event: str, reason: str) -> None:
        wanted, kept = mode_name(desired.config), mode_name(config)
        log.error(event, mode=wanted, reason=reason, effect=f"{kept} stays")
        self._observer.switch_failed(wanted, kept, reason)
        self.reported.report(Refusal(desired.revision, config, reason))


def make_mode(
    modes: ModeRegistry, config: ProxyConfig, old: Mode, tracker: NodeTracker
) -> tuple[Mode, NodeFacts]:
    """Return the configured mode and the facts for its settings.

    Raises ModeUnavailable if it cannot run here, or cannot serve a family that the `old` mode serves.
    """
    mode = modes.make(config)
    missing = [family.value for family in old.families if family not in mode.families]
    facts = None if missing else tracker.facts(config)
    if facts is None:
        close_mode(mode)
        raise ModeUnavailable(
            f"it cannot serve {', '.join(missing)} here" if missing else "the node has no pod CIDRs yet"
        )
    return mode, facts


def failure_reason(
    outcomes: Mapping[Family, SyncOutcome], refused: Mapping[Family, Collection[str]]
) -> str | None:
    """Return why the first sync of a new mode failed; None if it succeeded.

    It failed if a family's sync failed as a whole, or if every service of a family was refused that the old
    mode had not `refused` entirely as well. Single refused services are logged and tried again.
    """
    reasons = []
    for family, outcome in outcomes.items():
        report = outcome.report
        if report.error is not None:
            reasons.append(f"{family.value}: {report.error}")
            continue
        wanted = {key for key, plan in outcome.plans.items() if plan.ports}
        if wanted and wanted <= report.failed.keys() and not wanted <= set(refused.get(family, ())):
            first = min(wanted)
            reasons.append(
                f"{family.value}: every service was refused, the first {first}: {report.failed[first]}"
            )
    return "; ".join(reasons) or None
