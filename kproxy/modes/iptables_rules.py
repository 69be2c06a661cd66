"""Shared by the modes that write iptables rules: finding programs, building the backend, dry runs."""

import functools
from collections.abc import Callable, Mapping, Sequence

import structlog

from kproxy.addresses import Family
from kproxy.backends.core.base import Backend
from kproxy.backends.core.foreign_writes import ForeignWrites
from kproxy.backends.iptables.backend import IptablesBackend
from kproxy.backends.iptables.dryrun import DryRunXtables
from kproxy.backends.iptables.layout import Layout
from kproxy.config.model import ProxyConfig
from kproxy.kernel import nft_tables
from kproxy.kernel.processes import Runner
from kproxy.kernel.xtables.detect import detect_variant, find_tools
from kproxy.kernel.xtables.programs import SubprocessXtables, XtablesTools
from kproxy.kernel.xtables.types import Variant, Xtables, XtablesStalled, XtablesUnavailable
from kproxy.modes.base import ModeUnavailable, NoFamilyUsable, PreviewError
from kproxy.node.facts import NodeFacts
from kproxy.plan.planner import Planner
from kproxy.state.tables import ServiceInput

log = structlog.stdlib.get_logger(__name__)


def find_tables(config: ProxyConfig, runner: Runner) -> Mapping[Family, Xtables]:
    """The tables of each family that can be served. Raises ModeUnavailable, NoFamilyUsable."""
    tables: dict[Family, Xtables] = {}
    reasons: dict[Family, str] = {}
    detect = functools.cache(detect_variant)
    for family in Family:
        try:
            tools = find_tools(family, config.iptables_variant, detect=detect, runner=runner)
        except XtablesStalled as error:
            # Without this family, its services would not be served until the next start.
            raise ModeUnavailable(f"{family}: {error.reason}") from error
        except XtablesUnavailable as error:
            reasons[family] = error.reason
            continue
        version = ".".join(map(str, tools.version))
        fields = {"family": family.value, "variant": tools.variant.value, "version": version}
        log.info("iptables_found", **fields, **({"reason": tools.instead_of} if tools.instead_of else {}))
        tables[family] = SubprocessXtables(family, tools, runner=runner)
    if not tables:
        raise NoFamilyUsable(reasons)
    for family, reason in reasons.items():
        log.warning("family_unusable", family=family.value, reason=reason)
    return tables


def rules_backend(
    layout: Layout,
    xtables: Xtables,
    watches: dict[object, ForeignWrites],
    larger: Layout | None = None,
    prepare: Callable[[bool], None] = lambda _: None,
) -> IptablesBackend:
    """Build the backend that writes the rules of one family.

    The nft rulesets of both families share one change counter, and so one entry of `watches`.
    """
    watch = watch_of(xtables, watches)
    prepare = preparation(layout, xtables, prepare)
    return IptablesBackend(layout, xtables, watch, larger=larger, prepare=prepare)


def watch_of(xtables: Xtables, watches: dict[object, ForeignWrites]) -> ForeignWrites:
    """Return the watch of the ruleset that a family's rules are in."""
    ruleset = xtables.variant if xtables.variant is Variant.NFT else xtables.family
    return watches.setdefault(ruleset, ForeignWrites(xtables.generation))


def preparation(layout: Layout, xtables: Xtables, prepare: Callable[[bool], None]) -> Callable[[bool], None]:
    """Return what a backend does before it writes or compares rules: `prepare`, and wake dormant tables."""
    if xtables.variant is Variant.NFT:
        return functools.partial(_prepare_nft, layout, prepare, set())
    return prepare


def _prepare_nft(layout: Layout, prepare: Callable[[bool], None], failed: set[str], writing: bool) -> None:
    """Also switch on a table that others made dormant: its rules are whole, but no packet passes them.

    A failure is logged once for each reason.
    """
    prepare(writing)
    tables = {jump.table for jump in layout.jumps}
    try:
        woken = nft_tables.wake(layout.family, tables)
    except nft_tables.WakeError as error:
        if str(error) not in failed:
            failed.add(str(error))
            log.warning("table_check_failed", family=layout.family.value, reason=str(error))
        return
    failed.clear()
    for table in woken:
        log.warning(
            "table_switched_on",
            family=layout.family.value,
            table=table,
            reason="others made it dormant: no packet passed its rules",
        )


def find_programs(config: ProxyConfig) -> dict[Family, XtablesTools]:
    """The programs of each family, without probing its tables. Raises PreviewError if there are none."""
    found: dict[Family, XtablesTools] = {}
    reasons: list[str] = []
    for family in Family:
        try:
            found[family] = find_tools(family, config.iptables_variant, probe=False)
        except XtablesUnavailable as error:
            reasons.append(f"{family}: {error.reason}")
    if not found:
        raise PreviewError("; ".join(reasons))
    return found


def read_tables(tools: Mapping[Family, XtablesTools]) -> dict[Family, DryRunXtables]:
    """A dry run of each family's current tables. Raises RestoreError, ValueError."""
    return {
        family: DryRunXtables(family, found.variant, xtables.save(), random_fully=xtables.random_fully)
        for family, found in tools.items()
        for xtables in (SubprocessXtables(family, found),)
    }


def sync_once(
    backends: Mapping[Family, Backend], inputs: Sequence[ServiceInput], facts: NodeFacts
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Sync each family once; return refused services with the reason, and problems of objects.

    Raises PreviewError if a family's sync fails as a whole.
    """
    problems: dict[str, None] = {}
    failed: dict[str, str] = {}
    for family, backend in backends.items():
        plans = Planner(family).update(inputs, facts.view)
        problems |= dict.fromkeys(str(problem) for plan in plans.values() for problem in plan.problems)
        backend.update(plans.values())
        report = backend.sync()
        if report.error is not None:
            raise PreviewError(f"{family}: {report.error}")
        failed |= report.failed
    return failed, tuple(problems)
