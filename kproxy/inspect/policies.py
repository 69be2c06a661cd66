"""The tables of NetworkPolicies in `kproxy render` and `kproxy diff`: the same in every proxy mode.

The desired tables are made in a temporary network namespace, so that the same kernel prints the existing and
the desired rules.
"""

from collections.abc import Iterator, Mapping
from typing import cast

import msgspec

from kproxy.addresses import Family
from kproxy.backends.core.change import Change, Sign, counted
from kproxy.backends.core.foreign_writes import ForeignWrites
from kproxy.backends.policy.backend import PolicyBackend
from kproxy.backends.policy.names import TABLE
from kproxy.backends.policy.text import everything
from kproxy.backends.policy.text import render as render_table
from kproxy.config.model import ProxyConfig
from kproxy.kernel import nft_tables
from kproxy.kernel.nft.commands import TABLE_FAMILY
from kproxy.kernel.nft.netlink import NetlinkNft
from kproxy.kernel.nft.types import Nft, NftError, Reading
from kproxy.kernel.scratch import ScratchUnavailable, in_scratch_network
from kproxy.modes.base import PreviewError
from kproxy.node.policy_settings import able, policy_config
from kproxy.plan.policy.model import Problems
from kproxy.plan.policy.planner import PolicyPlanner
from kproxy.state.kinds import Kind
from kproxy.state.policy_wire import Namespace, NetworkPolicy, Pod
from kproxy.state.problems import Problem
from kproxy.state.tables import Tables
from kproxy.telemetry.policy_observer import split_defect


class PolicyPreview(msgspec.Struct, frozen=True):
    """The changes that a first sync would make by family, refused policies with reasons, and defects."""

    changes: Mapping[Family, tuple[Change, ...]]
    failed: Mapping[str, str] = {}
    problems: tuple[Problem, ...] = ()


def render_policies(config: ProxyConfig, family: Family, tables: Tables) -> tuple[str, tuple[Problem, ...]]:
    """A family's table as the input of nft, and the defects of policies."""
    planner = plan(config, tables)
    settings = policy_config(config, family, tables.node)
    return render_table(planner.tables[family], settings), tuple(problems_of(planner.problems))


def preview_policies(config: ProxyConfig, tables: Tables) -> PolicyPreview:
    """Compare the existing tables with the desired ones. Raises PreviewError."""
    planner = plan(config, tables)
    nft = NetlinkNft()
    failed: dict[str, str] = {}
    try:
        standing = {family: nft.reading(family, TABLE, portable=True) for family in Family}
        wanted = in_scratch_network(lambda: _made(config, tables, planner, nft, failed))
    except (NftError, ScratchUnavailable) as error:
        raise PreviewError(f"--network-policy: {error}") from error
    found = {family: tuple(sorted(_changes(standing[family], wanted[family], family))) for family in Family}
    return PolicyPreview(found, failed, tuple(problems_of(planner.problems)))


def preview_removal() -> tuple[Change, ...]:
    """The tables that a kproxy without policies would remove. Raises PreviewError."""
    try:
        standing = nft_tables.standing(TABLE)
    except NftError as error:
        raise PreviewError(f"the kernel cannot be read: {error}") from error
    return tuple(Change(f"table {TABLE_FAMILY[family]} {TABLE}", Sign.REMOVE) for family in standing)


def plan(config: ProxyConfig, tables: Tables) -> PolicyPlanner:
    """The plan of all objects for this node."""
    return PolicyPlanner.full(
        config.node_name,
        tuple(Family),
        cast("Mapping[str, Pod]", tables.objects(Kind.POD)),
        cast("Mapping[str, Namespace]", tables.objects(Kind.NAMESPACE)),
        cast("Mapping[str, NetworkPolicy]", tables.objects(Kind.NETWORK_POLICY)),
    )


def problems_of(found: Problems) -> Iterator[Problem]:
    """The defects of policies in the form of those of services."""
    for key, texts in sorted(found.items()):
        for text in texts:
            field, value, reason = split_defect(text)
            yield Problem(f"NetworkPolicy {key}", field, value, f"{reason}; its pods are closed")


def _made(
    config: ProxyConfig, tables: Tables, planner: PolicyPlanner, nft: Nft, failed: dict[str, str]
) -> dict[Family, Reading]:
    """Make the tables here, and read them. Raises NftError, PreviewError."""
    made = {}
    for family in Family:
        settings = able(nft, policy_config(config, family, tables.node))
        backend = PolicyBackend(settings, nft, ForeignWrites(nft.generation))
        table = planner.tables[family]
        backend.update(table, everything(table))
        report = backend.sync()
        if report.error is not None:
            raise PreviewError(f"--network-policy: {family}: {report.error}")
        failed.update(report.failed)
        made[family] = nft.reading(family, TABLE, portable=True) or Reading({}, frozenset())
    return made


def _changes(now: Reading | None, then: Reading, family: Family) -> Iterator[Change]:
    """One change for each object; chains, maps and sets are named with the table, for a mode has its own."""
    if now is None:
        yield Change(f"table {TABLE_FAMILY[family]} {TABLE}", Sign.ADD)
        now = Reading({}, frozenset())
    if now.dormant:
        yield Change(f"table {TABLE_FAMILY[family]} {TABLE}", Sign.CHANGE, "is dormant")
    for name in now.chains.keys() | then.chains.keys():
        yield from _chain(name, now.chains.get(name), then.chains.get(name))
    for sign, containers in (
        (Sign.REMOVE, now.containers - then.containers),
        (Sign.ADD, then.containers - now.containers),
    ):
        yield from (Change(_named(*each.split(" ", 1)), sign) for each in containers)
    standing, wanted = now.elements or {}, then.elements or {}
    for container in standing.keys() | wanted.keys():
        yield from _elements(container, standing.get(container, {}), wanted.get(container, {}))


def _chain(name: str, old: tuple[str, ...] | None, new: tuple[str, ...] | None) -> Iterator[Change]:
    shown = _named("chain", name)
    if new is None:
        yield Change(shown, Sign.REMOVE, counted(len(old or ()), "rule"))
    elif old is None:
        yield Change(shown, Sign.ADD, counted(len(new), "rule"))
    elif old != new:
        missing, extra = len(set(new) - set(old)), len(set(old) - set(new))
        yield Change(shown, Sign.CHANGE, f"lacks {counted(missing, 'rule')} and has {extra} not wanted")


def _elements(container: str, old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[Change]:
    for key in old.keys() | new.keys():
        name = f"{_named('element', container)} {key}"
        if key not in new:
            yield Change(name, Sign.REMOVE, old[key])
        elif key not in old:
            yield Change(name, Sign.ADD, new[key])
        elif old[key] != new[key]:
            yield Change(name, Sign.CHANGE, f"{old[key]} -> {new[key]}")


def _named(kind: str, name: str) -> str:
    return f"{kind} {TABLE}/{name}"
