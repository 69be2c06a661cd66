"""Drift of the table in the kernel: one Drift per object that differs from the applied state."""

from collections.abc import Callable, Collection, Iterator, Mapping

from kproxy.addresses import Family
from kproxy.backends.core.base import Difference, Drift
from kproxy.backends.core.table_drift import Lines, chain_drifts, element_drifts
from kproxy.backends.policy import names
from kproxy.backends.policy.record import Record
from kproxy.kernel.nft.listed import listed_hook
from kproxy.kernel.nft.types import Reading


def is_whole(found: Reading, wanted: Collection[str], hooks: Mapping[str, str]) -> bool:
    """Whether the table acts, has this layout, and can be kept: differences can be written.

    `wanted` are all desired chains, `hooks` those of base chains. The hook, the priority and the policy of a
    base chain cannot be written again.
    """
    if found.dormant or names.LAYOUT not in found.chains:
        return False
    if any(names.declaration_of(Family.IPV4, name) is not None for name in found.unreadable):
        return False
    for name, lines in found.chains.items():
        line = lines[0] if lines and lines[0].startswith("type ") else None
        hook = hooks.get(name)
        if hook is not None and line != listed_hook(hook):
            return False
        if hook is None and line is not None and name in wanted:
            return False
    return True


def unusable(found: Reading | None) -> Drift:
    """What is wrong with a table that cannot be kept."""
    if found is None:
        return Drift("table", names.TABLE, Difference.MISSING)
    return Drift("table", names.TABLE, Difference.MODIFIED, "dormant" if found.dormant else "not whole")


def table_drifts(
    record: Record, found: Reading, baseline: Lines | None, is_same: Callable[[str], bool] | None
) -> Iterator[Drift]:
    """Every object that differs from the record; see table_drift.py for `baseline`.

    `is_same`: whether a chain was read as it was written, where this kernel lists rules in a known form.
    """
    if is_same is None:
        yield from chain_drifts(record.chains, baseline, found.chains)
    else:
        same = {
            name: lines for name, lines in found.chains.items() if name in record.chains and is_same(name)
        }
        yield from chain_drifts(record.chains, same, found.chains)
    known = {f"{names.kind_of(name)} {name}" for name in record.held} | record.strange
    for each in sorted(known ^ found.containers):
        kind, _, name = each.partition(" ")
        yield Drift(kind, name, Difference.MISSING if each in known else Difference.UNEXPECTED)
    elements = found.elements or {}
    for name in sorted(record.held.keys() & elements.keys()):
        yield from element_drifts(name, record.held[name], elements[name])
