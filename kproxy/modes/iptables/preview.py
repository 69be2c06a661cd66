"""Output of `kproxy render` and `kproxy diff` for iptables mode, and for rules that another mode removes."""

from collections.abc import Collection, Iterator, Mapping, Sequence

import msgspec

from kproxy.addresses import Family
from kproxy.backends.core.change import Change
from kproxy.backends.iptables.cleanup import cleanup
from kproxy.backends.iptables.dryrun import DryRunXtables
from kproxy.backends.iptables.layout_selection import layouts, select_layout
from kproxy.backends.iptables.text import render_text
from kproxy.config.model import ProxyConfig
from kproxy.kernel import nfacct
from kproxy.kernel.scratch import ScratchUnavailable, in_scratch_network
from kproxy.kernel.xtables.detect import find_tools
from kproxy.kernel.xtables.programs import SubprocessXtables, XtablesTools
from kproxy.kernel.xtables.types import FailureKind, RestoreError, Variant, XtablesUnavailable
from kproxy.modes.base import Preview
from kproxy.modes.iptables.mode import (
    COUNTERS,
    Capabilities,
    conntrack_is_liberal,
    countable,
    iptables_config,
    usable_layout,
)
from kproxy.modes.iptables_rules import find_programs, read_tables, rules_backend, sync_once
from kproxy.node.facts import FamilyFacts, NodeFacts
from kproxy.plan.model import ServicePlan
from kproxy.state.tables import ServiceInput


def render(config: ProxyConfig, family: Family, facts: FamilyFacts, plans: Collection[ServicePlan]) -> str:
    """The rules of a family, for a kernel with every capability except nfacct counters."""
    rules = iptables_config(config, family, facts, Capabilities(config.iptables_layout))
    usual, larger = layouts(rules, config.iptables_layout)
    size = sum(1 + port.endpoints for plan in plans for port in plan.ports)
    return render_text(plans, select_layout(usual, larger, size))


def preview(config: ProxyConfig, inputs: Sequence[ServiceInput], facts: NodeFacts) -> Preview:
    """Sync once on a dry run of this kernel. Raises PreviewError, RestoreError, ValueError."""
    tools = find_programs(config)
    tables = read_tables(tools)
    found = _dry_run(config, inputs, facts, tables, _capabilities(config, tools))
    return preview_leftovers(config, found)


def preview_dump(
    config: ProxyConfig, inputs: Sequence[ServiceInput], facts: NodeFacts, dump: bytes, family: Family
) -> Preview:
    """Sync once on a saved dump; the kernel's capabilities are derived from its rules.

    Raises PreviewError, and ValueError for text that is no dump.
    """
    tables = DryRunXtables(family, config.iptables_variant or Variant.NFT, dump)
    return _dry_run(config, inputs, facts, {family: tables}, {family: _capabilities_in(dump, config)})


def preview_leftovers(_config: ProxyConfig, found: Preview) -> Preview:
    """Add each family's iptables rules that would be removed. Raises RestoreError."""
    rules = {
        family: (*changes, *_former_rules(family, found.used.get(family)))
        for family, changes in found.rules.items()
    }
    return msgspec.structs.replace(found, rules=rules)


def _dry_run(
    config: ProxyConfig,
    inputs: Sequence[ServiceInput],
    facts: NodeFacts,
    tables: Mapping[Family, DryRunXtables],
    capabilities: Mapping[Family, Capabilities],
) -> Preview:
    backends = {}
    for family, xtables in tables.items():
        able = capabilities[family]
        settings = iptables_config(config, family, facts.families[family], able)
        usual, larger = layouts(settings, able.layout)
        backends[family] = rules_backend(usual, xtables, {}, larger)
    failed, problems = sync_once(backends, inputs, facts)
    rules = {family: tuple(sorted(xtables.changes())) for family, xtables in tables.items()}
    used = {family: xtables.variant for family, xtables in tables.items()}
    return Preview(rules, (), used, failed, problems)


def _former_rules(family: Family, used: Variant | None = None) -> Iterator[Change]:
    """The iptables rules of kproxy that would be removed, in both variants except the one that is `used`.

    A used variant may have chains of the same names, so each line names the other variant. A variant that
    cannot be read is skipped, as a sync does. Raises RestoreError.
    """
    for variant in Variant:
        if variant is used:
            continue
        try:
            tools = find_tools(family, variant, probe=False)
        except XtablesUnavailable:
            continue
        try:
            dump = SubprocessXtables(family, tools).save()
        except RestoreError as error:
            if used is not None and error.kind is FailureKind.MISSING:
                continue
            raise
        dry_run = DryRunXtables(family, variant, dump)
        cleanup(dry_run)
        for change in sorted(dry_run.changes()):
            name = change.object if used is None else f"{variant} {change.object}"
            yield msgspec.structs.replace(change, object=name)


def _capabilities(config: ProxyConfig, tools: Mapping[Family, XtablesTools]) -> dict[Family, Capabilities]:
    """The kernel's capabilities, probed where that changes nothing, else derived from the existing rules."""
    be_liberal = conntrack_is_liberal()

    def tried() -> dict[Family, Capabilities]:
        found = {}
        for family, programs in tools.items():
            xtables = SubprocessXtables(family, programs)
            counters = {name: countable(xtables, name) for name in COUNTERS}
            layout = usable_layout(config, xtables)
            found[family] = Capabilities(layout, counters, xtables.random_fully, be_liberal)
        return found

    try:
        return in_scratch_network(tried)
    except ScratchUnavailable:
        standing = _standing_counters()
        return {
            family: Capabilities(
                config.iptables_layout, standing, SubprocessXtables(family, programs).random_fully, be_liberal
            )
            for family, programs in tools.items()
        }


def _standing_counters() -> dict[str, bool]:
    """The counters that an earlier kproxy or kube-proxy could make here."""
    try:
        return {name: name in nfacct.read() for name in COUNTERS}
    except nfacct.NfacctError:
        return {}


def _capabilities_in(dump: bytes, config: ProxyConfig) -> Capabilities:
    counters = {name: name.encode() in dump for name in COUNTERS}
    be_liberal = b":KUBE-FORWARD " in dump and b"--ctstate INVALID" not in dump
    plain = b"-j MASQUERADE\n" in dump and b"--random-fully" not in dump
    return Capabilities(config.iptables_layout, counters, not plain, be_liberal)
