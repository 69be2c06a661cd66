"""Drift of the table in the kernel: one Drift per object that differs from the applied state."""

from collections.abc import Collection, Iterator, Mapping

from kproxy.addresses import Family
from kproxy.backends.core.base import Difference, Drift
from kproxy.backends.nftables import names
from kproxy.backends.nftables.chains import Chain, pick_of
from kproxy.backends.nftables.element_owners import Contents
from kproxy.backends.nftables.listing import Structure
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


def chain_object(name: str) -> str:
    """The name of a chain in drifts."""
    return f"chain {name}"


def element_object(container: str, key: str) -> str:
    """The name of an element in drifts."""
    return f"element {{ {key} }} of {container}"


def chain_drifts(
    written: Mapping[str, Chain | None], baseline: Structure | None, found: Structure
) -> Iterator[Drift]:
    """Chains that differ; `baseline` was read before any foreign write.

    Without a baseline, only the number of rules can be compared.
    """
    for name in sorted(written.keys() | found.keys()):
        rules = found.get(name)
        if rules is None:
            yield Drift("chain", name, Difference.MISSING)
        elif name not in written:
            yield Drift("chain", name, Difference.UNEXPECTED)
        elif baseline is not None:
            if rules != baseline.get(name):
                yield Drift("chain", name, Difference.MODIFIED, "has other rules")
        elif written[name] is not None and _count(rules) != len(written[name] or ()):
            yield Drift("chain", name, Difference.MODIFIED, "has other rules")


def _count(lines: Collection[str]) -> int:
    return sum(not line.startswith("type ") for line in lines)


def element_drifts(held: Contents, found: Contents) -> Iterator[Drift]:
    """Elements that differ."""
    for container in sorted(held.keys() | found.keys()):
        elements, there = held[container], found[container]
        if there == elements:
            continue
        for key in sorted(elements.keys() | there.keys()):
            if elements.get(key) == there.get(key):
                continue
            detail = ""
            if key not in there:
                state = Difference.MISSING
            elif key not in elements:
                state = Difference.UNEXPECTED
            else:
                state, detail = Difference.MODIFIED, "has another value"
            yield Drift("element", f"{{ {key} }} of {container}", state, detail)
