"""Compare two readings of the table, for a dry run: one change per object.

Both readings have to be portable, and from the same kernel.
"""

from collections.abc import Iterator, Mapping

from kproxy.backends.core.change import Change, Sign, counted
from kproxy.backends.nftables.listing import contents_of
from kproxy.kernel.nft.types import Reading


def changes(now: Reading | None, then: Reading, table: str) -> Iterator[Change]:
    """Yield the changes from one reading to another; `now` is None if the table does not exist yet."""
    if now is None:
        yield Change(f"table {table}", Sign.ADD)
        now = Reading({}, frozenset())
    if now.dormant:
        yield Change(f"table {table}", Sign.CHANGE, "is dormant")
    before, after = now.chains, then.chains
    for name in before.keys() | after.keys():
        old, new = before.get(name), after.get(name)
        if old != new:
            yield _chain(name, old, new)
    standing, wanted = now.containers, then.containers
    yield from (Change(name, Sign.REMOVE) for name in standing - wanted)
    yield from (Change(name, Sign.ADD) for name in wanted - standing)
    elements, desired = contents_of(now), contents_of(then)
    for container in elements.keys() | desired.keys():
        yield from _elements(container, elements.get(container, {}), desired.get(container, {}))


def _chain(name: str, old: tuple[str, ...] | None, new: tuple[str, ...] | None) -> Change:
    if new is None:
        return Change(f"chain {name}", Sign.REMOVE, counted(len(old or ()), "rule"))
    if old is None:
        return Change(f"chain {name}", Sign.ADD, counted(len(new), "rule"))
    missing, extra = len(set(new) - set(old)), len(set(old) - set(new))
    return Change(
        f"chain {name}", Sign.CHANGE, f"lacks {counted(missing, 'rule')} and has {extra} not wanted"
    )


def _elements(container: str, old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[Change]:
    for key in old.keys() | new.keys():
        name = f"element {container} {key}"
        if key not in new:
            yield Change(name, Sign.REMOVE, old[key])
        elif key not in old:
            yield Change(name, Sign.ADD, new[key])
        elif old[key] != new[key]:
            yield Change(name, Sign.CHANGE, f"{old[key]} -> {new[key]}")
