"""Drift of an nftables table: one Drift per chain or element that differs from the applied state.

The kernel lists rules in another form than they were written. So they are compared with an earlier reading,
the baseline; without one, only their number can be compared.
"""

from collections.abc import Collection, Iterator, Mapping

from kproxy.backends.core.base import Difference, Drift

Lines = Mapping[str, tuple[str, ...]]
"""Chain -> a line for each rule, as a reading has it."""


def chain_object(name: str) -> str:
    """The name of a chain in drifts."""
    return f"chain {name}"


def element_object(container: str, key: str) -> str:
    """The name of an element in drifts."""
    return f"element {{ {key} }} of {container}"


def chain_drifts(
    written: Mapping[str, tuple[str, ...] | None], baseline: Lines | None, found: Lines
) -> Iterator[Drift]:
    """Chains that differ from `written` rules, None where unknown; `baseline`: before any foreign write."""
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


def element_drifts(container: str, held: Mapping[str, str], found: Mapping[str, str]) -> Iterator[Drift]:
    """Elements of a map or set that differ."""
    if found == held:
        return
    for key in sorted(held.keys() | found.keys()):
        if held.get(key) == found.get(key):
            continue
        detail = ""
        if key not in found:
            state = Difference.MISSING
        elif key not in held:
            state = Difference.UNEXPECTED
        else:
            state, detail = Difference.MODIFIED, "has another value"
        yield Drift("element", f"{{ {key} }} of {container}", state, detail)


def _count(lines: Collection[str]) -> int:
    return sum(not line.startswith("type ") for line in lines)
