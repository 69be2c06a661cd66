"""Add to a report what the kernel, or a dump of another machine, would do with the packet."""

from pathlib import Path

import msgspec

from kproxy.backends.core.packets import HookChain
from kproxy.backends.policy.names import TABLE
from kproxy.config.model import ProxyConfig
from kproxy.inspect.explain.difference import with_differences
from kproxy.inspect.explain.report import Report, actual_of
from kproxy.modes.base import ExplainError, ModeRegistry
from kproxy.modes.packet_walk import RulesOfAllModes
from kproxy.plan.outcomes import Routing


def _is_of_policies(chain: HookChain) -> bool:
    return chain.table.partition(" ")[2] == TABLE


def with_actual(
    report: Report, config: ProxyConfig, modes: ModeRegistry, routing: Routing, dump: Path | None = None
) -> Report:
    """The report with what the kernel would do, and the differences. Raises ExplainError."""
    walker = RulesOfAllModes(modes.rule_readers(config))
    packet = report.packet
    try:
        if dump is None:
            rules = walker.read_kernel(packet.family)
        else:
            rules = walker.load_dump(dump.read_text(errors="replace"), packet.family)
        outcomes = walker.walk(rules, packet, routing)
    except OSError as error:
        raise ExplainError(f"{dump or 'the kernel'} cannot be read: {error}") from error
    notes = (*report.notes, *rules.unread)
    if dump is not None and report.policies and not any(_is_of_policies(each) for each in rules.chains):
        notes = (*notes, f"the dump has no table {TABLE}, so NetworkPolicies have no effect in it")
    return with_differences(msgspec.structs.replace(report, actual=actual_of(outcomes), notes=notes))
