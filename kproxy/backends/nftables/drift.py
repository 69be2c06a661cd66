"""Drift of the table in the kernel: one Drift per object that differs from the applied state."""

from collections.abc import Iterator

from kproxy.addresses import Family
from kproxy.backends.core.base import Drift
from kproxy.backends.core.table_drift import element_drifts
from kproxy.backends.nftables import names
from kproxy.backends.nftables.chains import pick_of
from kproxy.backends.nftables.element_owners import Contents
from kproxy.backends.nftables.names import is_filled
from kproxy.kernel.nft.types import Reading


def is_whole(family: Family, found: Reading) -> bool:
    """Whether the table acts, has this layout, and is complete in the parts that cannot be written again."""
    if found.dormant:
        return False
    if names.LAYOUT not in found.chains or not found.containers >= names.declarations(family).keys():
        return False
    if any(map(is_filled, found.unreadable)):
        return False
    standing = {each.split(" ")[1]: each for each in found.containers}
    if any(names.object_of(name) not in {None, each} for name, each in standing.items()):
        return False
    for name, rules in found.chains.items():
        expected = pick_of(family, name)
        if expected is not None and not (
            len(rules) == len(expected) and names.read_by(expected) <= standing.keys()
        ):
            return False
    return True


def contents_drifts(held: Contents, found: Contents) -> Iterator[Drift]:
    """Elements of any map or set that differ."""
    for container in sorted(held.keys() | found.keys()):
        yield from element_drifts(container, held[container], found[container])
