"""Output of `kproxy render` and `kproxy diff` for the eBPF mode, and for pins that another mode removes."""

from collections import Counter
from collections.abc import Collection, Sequence

import msgspec

from kproxy.addresses import Family
from kproxy.backends.core.change import Change, Sign
from kproxy.backends.ebpf.backend import SocketBackend
from kproxy.backends.ebpf.dryrun import DryRunSocketTable
from kproxy.backends.ebpf.render import Frontend, describe_frontend, describe_slots, render_service
from kproxy.backends.ebpf.shared import SharedTable
from kproxy.config.model import ProxyConfig
from kproxy.kernel.bpf.socket_table import open_published
from kproxy.kernel.bpf.types import BpfError, BpfFailure
from kproxy.modes.base import Preview, PreviewError
from kproxy.modes.ebpf.kernel import table_settings
from kproxy.modes.ebpf.mode import socket_config
from kproxy.modes.nftables import preview as table_preview
from kproxy.node.facts import FamilyFacts, NodeFacts
from kproxy.plan.model import ServicePlan
from kproxy.plan.planner import Planner
from kproxy.state.tables import ServiceInput


def render(config: ProxyConfig, family: Family, facts: FamilyFacts, plans: Collection[ServicePlan]) -> str:
    """The nftables table of a family, and the frontends of the socket table."""
    settings = socket_config(config, family, facts)
    found = sorted(each for plan in plans for each in _lines(render_service(plan, settings), family))
    table = table_preview.render(config, family, facts, plans)
    return table + "# socket table\n" + "".join(f"{line}\n" for line in found)


def preview(config: ProxyConfig, inputs: Sequence[ServiceInput], facts: NodeFacts) -> Preview:
    """Compare the nftables table, and the maps of the socket table with those of a dry run.

    Raises PreviewError.
    """
    found = table_preview.preview(config, inputs, facts)
    try:
        changes = tuple(sorted(_socket_changes(config, inputs, facts)))
    except BpfError as error:
        note = f"socket table: it cannot be read: {error.message}; the nftables table serves every service"
        return msgspec.structs.replace(found, problems=(*found.problems, note))
    return msgspec.structs.replace(found, others=(*found.others, *changes))


def preview_leftovers(config: ProxyConfig, found: Preview) -> Preview:
    """Add the pins, which another mode would remove."""
    directory = table_settings(config).pins
    if not directory.is_dir():
        return found
    gone = Change(f"socket table {directory}", Sign.REMOVE)
    return msgspec.structs.replace(found, others=(*found.others, gone))


def _socket_changes(
    config: ProxyConfig, inputs: Sequence[ServiceInput], facts: NodeFacts
) -> tuple[Change, ...]:
    """Sync once on a copy of the maps. Raises BpfError, PreviewError."""
    table = _dry_run(config)
    shared = SharedTable(table)
    for family in Family:
        backend = SocketBackend(family, shared, socket_config(config, family, facts.families[family]))
        backend.update(Planner(family).update(inputs, facts.view).values())
        report = backend.sync()
        if report.error is not None:
            raise PreviewError(f"socket table {family}: {report.error}")
    return tuple(table.changes())


def _dry_run(config: ProxyConfig) -> DryRunSocketTable:
    """The maps that serve now; empty ones if none do. Raises BpfError."""
    try:
        kernel = open_published(table_settings(config).pins)
    except BpfError as error:
        if error.kind is BpfFailure.INTERRUPTED:
            return DryRunSocketTable(None)
        raise
    try:
        return DryRunSocketTable(kernel)
    finally:
        kernel.close()


def _lines(frontends: Sequence[Frontend], family: Family) -> list[str]:
    """One line for each frontend: its endpoints, with their number of slots if that is not one."""
    found = []
    for each in frontends:
        slots = Counter(describe_slots(each.slots, family))
        endpoints = [endpoint if count == 1 else f"{endpoint} x{count}" for endpoint, count in slots.items()]
        found.append(f"{describe_frontend(each.key, family)} -> {', '.join(endpoints)}")
    return found
