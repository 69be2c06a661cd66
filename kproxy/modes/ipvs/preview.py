"""Output of `kproxy render` and `kproxy diff` for IPVS mode, and for objects that another mode removes."""

import time
from collections.abc import Collection, Sequence

import msgspec

from kproxy.addresses import Family
from kproxy.backends.core.change import Change
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.ipvs.backend import IpvsBackend
from kproxy.backends.ipvs.dryrun import DryRunDevice, DryRunIpset, DryRunIpvs
from kproxy.backends.ipvs.handles import KernelHandles
from kproxy.backends.ipvs.names import DEVICE
from kproxy.config.model import ProxyConfig
from kproxy.kernel import links
from kproxy.kernel.ipvs.netlink import NetlinkIpvs
from kproxy.kernel.ipvs.types import IpvsError
from kproxy.kernel.scratch import ScratchUnavailable, in_scratch_network
from kproxy.modes.base import Preview
from kproxy.modes.iptables_rules import find_programs, read_tables, sync_once, watch_of
from kproxy.modes.ipvs.kernel import ipvs_handles
from kproxy.modes.ipvs.mode import ipvs_config, rules_config
from kproxy.modes.ipvs.rules import IpvsRules
from kproxy.modes.ipvs.teardown import IpvsTeardown
from kproxy.modes.ipvs.text import render_text
from kproxy.node.facts import FamilyFacts, NodeFacts
from kproxy.plan.model import ServicePlan
from kproxy.state.tables import ServiceInput


class _DryRun:
    """The kernel interfaces of the mode, whose writes stay in memory."""

    def __init__(self) -> None:
        real = ipvs_handles()
        self._ipvs = DryRunIpvs(real.ipvs, _offers)
        self._ipset = DryRunIpset(real.ipset)
        self._device = DryRunDevice(real.device, exists=links.exists(DEVICE))
        self.handles = KernelHandles(self._ipvs, self._ipset, self._device)

    def changes(self) -> tuple[Change, ...]:
        return (
            *sorted(self._device.changes()),
            *sorted(self._ipset.changes()),
            *sorted(self._ipvs.changes()),
        )


def render(config: ProxyConfig, family: Family, facts: FamilyFacts, plans: Collection[ServicePlan]) -> str:
    """The sets, rules and virtual servers of a family."""
    return render_text(plans, ipvs_config(config, _rules(config, family, facts), facts))


def preview(config: ProxyConfig, inputs: Sequence[ServiceInput], facts: NodeFacts) -> Preview:
    """Sync once on a dry run of this kernel. Raises PreviewError, RestoreError, ValueError, KERNEL_ERRORS."""
    tables = read_tables(find_programs(config))
    dry_run = _DryRun()
    backends = {}
    for family, xtables in tables.items():
        of_family = facts.families[family]
        rules = _rules(config, family, of_family, random_fully=xtables.random_fully)
        writer = IpvsRules(rules, xtables, watch_of(xtables, {}))
        settings = ipvs_config(config, rules, of_family)
        backends[family] = IpvsBackend(settings, dry_run.handles, writer, time.monotonic)
    failed, problems = sync_once(backends, inputs, facts)
    changes = {family: tuple(sorted(xtables.changes())) for family, xtables in tables.items()}
    used = {family: xtables.variant for family, xtables in tables.items()}
    return Preview(changes, dry_run.changes(), used, failed, problems)


def preview_leftovers(config: ProxyConfig, found: Preview) -> Preview:
    """Add the objects of the IPVS mode that would be removed. Raises KERNEL_ERRORS."""
    dry_run = _DryRun()
    leaving = IpvsTeardown(
        dry_run.handles, config.ipvs_graceful_period, config.ipvs_exclude_cidrs, time.monotonic
    )
    leaving.begin(found.used)
    leaving.run_timers()
    return msgspec.structs.replace(found, others=(*found.others, *dry_run.changes()))


def _rules(
    config: ProxyConfig, family: Family, facts: FamilyFacts, *, random_fully: bool = True
) -> IptablesConfig:
    return rules_config(config, family, facts, random_fully=random_fully)


def _offers(scheduler: str) -> bool:
    try:
        return in_scratch_network(lambda: NetlinkIpvs().has_scheduler(scheduler))
    except (ScratchUnavailable, IpvsError):
        return True
