"""Switching the proxy mode of a running process: detection, plan, and the result of the first sync.

The new mode writes all of its objects beside those of the old one. If its first sync succeeds for every
family, the old mode's objects are removed, and established connections continue. Otherwise the new mode's
objects are removed. The run loop keeps the mode that works; this module attempts the switch.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from kproxy.addresses import Family
from kproxy.agent.family_sync import FamilySync, SyncOutcome
from kproxy.agent.node_tracker import NodeTracker
from kproxy.config.model import ProxyConfig, mode_name
from kproxy.config.modes import traits_of
from kproxy.modes.base import Mode, ModeRegistry, ModeUnavailable
from kproxy.node.facts import NodeFacts
from kproxy.state.tables import ServiceInput


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
    written, taken_away = modes.spec(new).written, modes.spec(old).taken_away
    return SwitchPlan(mode_name(old), mode_name(new), services, written, taken_away)


class SwitchAttempt(msgspec.Struct, frozen=True):
    """A new mode after its first sync with `inputs`; `reason` says why it failed, None if it did not."""

    mode: Mode
    facts: NodeFacts
    syncs: dict[Family, FamilySync]
    inputs: Sequence[ServiceInput]
    outcomes: Mapping[Family, SyncOutcome]
    reason: str | None


def attempt_switch(
    mode: Mode,
    facts: NodeFacts,
    known: Mapping[Family, FamilySync],
    inputs: Sequence[ServiceInput],
    progressed: Callable[[Family], None],
) -> SwitchAttempt:
    """Sync every family in a new mode; it takes over the UDP flow state of the old mode's `known` syncs."""
    syncs = {}
    for family in mode.families:
        sync = known.get(family)
        backend = mode.configure(family, facts.families[family])
        flows = sync.flows if sync is not None else None
        syncs[family] = FamilySync(family, backend, progressed, flows)
    for sync in syncs.values():
        sync.plan(inputs, facts.view)
    outcomes = {family: sync.apply() for family, sync in syncs.items()}
    reason = failure_reason(outcomes, {family: sync.refused for family, sync in known.items()})
    return SwitchAttempt(mode, facts, syncs, inputs, outcomes, reason)


def make_mode(
    modes: ModeRegistry, config: ProxyConfig, old: Mode, tracker: NodeTracker
) -> tuple[Mode, NodeFacts]:
    """Return the configured mode and the facts for its settings.

    Raises ModeUnavailable if it cannot run here, or cannot serve a family that the `old` mode serves.
    """
    mode = modes.make(config)
    missing = [family.value for family in old.families if family not in mode.families]
    if missing:
        raise ModeUnavailable(f"it cannot serve {', '.join(missing)} here")
    facts = tracker.facts(config)
    if facts is None:
        raise ModeUnavailable("the node has no pod CIDRs yet")
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
