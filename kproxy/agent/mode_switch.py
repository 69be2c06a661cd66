"""Another proxy mode in a running process: what counts as one, the plan, and the verdict on its first sync.

The new mode writes all of its own while the rules of the old one stand. Only when every family got through
does the old one's go, and connections that it began go on. Where a family did not, what the new mode wrote
goes instead. The run loop keeps the one that works; how another is tried and judged is here.
"""

from collections.abc import Collection, Mapping, Sequence

import msgspec

from kproxy.addresses import Family
from kproxy.agent.family_sync import FamilySync, SyncOutcome
from kproxy.config.model import ProxyConfig, mode_name
from kproxy.config.modes import traits_of
from kproxy.modes.base import Mode, ModeRegistry, ModeUnavailable
from kproxy.node.facts import NodeFacts
from kproxy.state.tables import ServiceInput


class SwitchPlan(msgspec.Struct, frozen=True):
    """From which mode to which, for how many Services; what is written `first`, what goes `afterwards`."""

    before: str
    after: str
    services: int
    first: str
    afterwards: str

    def fields(self) -> dict[str, str | int]:
        """For the log."""
        return {
            "from": self.before,
            "to": self.after,
            "services": self.services,
            "first": self.first,
            "afterwards": self.afterwards,
        }


def is_switch(old: ProxyConfig, new: ProxyConfig) -> bool:
    """Whether other settings mean another mode: its name, or the iptables variant where that matters."""
    if new.proxy_mode != old.proxy_mode:
        return True
    return new.iptables_variant is not old.iptables_variant and traits_of(new.proxy_mode).writes_iptables


def plan_switch(modes: ModeRegistry, old: ProxyConfig, new: ProxyConfig, services: int) -> SwitchPlan:
    """What a switch is going to do."""
    written, taken_away = modes.spec(new).written, modes.spec(old).taken_away
    return SwitchPlan(mode_name(old), mode_name(new), services, written, taken_away)


class Trial(msgspec.Struct, frozen=True):
    """A new mode after its first sync with `inputs`; `reason` says why it does not count, if so."""

    mode: Mode
    facts: NodeFacts
    sides: dict[Family, FamilySync]
    inputs: Sequence[ServiceInput]
    outcomes: Mapping[Family, SyncOutcome]
    reason: str | None


def try_mode(
    mode: Mode,
    facts: NodeFacts,
    known: Mapping[Family, FamilySync],
    inputs: Sequence[ServiceInput],
) -> Trial:
    """Sync every family in a new mode, knowing of UDP flows what the `known` sides of the old one do."""
    sides = {}
    for family in mode.families:
        side = known.get(family)
        backend = mode.configure(family, facts.families[family])
        sides[family] = FamilySync(family, backend, side.flows if side is not None else None)
    outcomes = {family: side.sync(inputs, facts.view) for family, side in sides.items()}
    reason = verdict(outcomes, {family: side.refused for family, side in known.items()})
    return Trial(mode, facts, sides, inputs, outcomes, reason)


def check_families(old: Mode, new: Mode) -> None:
    """Raise ModeUnavailable if the new mode cannot serve a family that the old one serves."""
    missing = [family.value for family in old.families if family not in new.families]
    if missing:
        raise ModeUnavailable(f"it cannot serve {', '.join(missing)} here")


def verdict(outcomes: Mapping[Family, SyncOutcome], refused: Mapping[Family, Collection[str]]) -> str | None:
    """Why the first sync of a new mode does not count; None if it does.

    A family whose sync failed as a whole is a reason, and one whose every service was refused, unless the
    old mode had `refused` them all too. Single services are no reason: they are logged, and tried again.
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
