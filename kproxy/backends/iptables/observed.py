"""kproxy's chains as read from the kernel: at a start, after a failure, and to check for drift."""

from collections.abc import Sequence

import msgspec

from kproxy.backends.iptables import names
from kproxy.backends.iptables.base_chains import TABLES, Jump
from kproxy.backends.iptables.canonical import canonical_rule
from kproxy.backends.iptables.dump import chain_texts
from kproxy.backends.iptables.names import ChainId
from kproxy.backends.iptables.owned_chains import is_known


class Observed(msgspec.Struct, frozen=True):
    """The owned chains found in the kernel.

    `chains`: rules of the base and shared chains; `services`: rules of per-service nat chains by name;
    `jumps`: the jumps that exist; `kubelet`: the kubelet's own chains exist. `places`: the position in its
    built-in chain where a jump belongs, counted from 1, if not first.
    """

    chains: dict[ChainId, tuple[str, ...]]
    services: dict[str, str]
    jumps: frozenset[Jump]
    kubelet: bool
    places: dict[Jump, int]


def read(dump: bytes, wanted: Sequence[Jump]) -> Observed:
    """Parse an iptables-save dump; without chains of other programs, and with only the `wanted` jumps."""
    chains: dict[ChainId, tuple[str, ...]] = {}
    services: dict[str, str] = {}
    jumps: set[Jump] = set()
    places: dict[Jump, int] = {}
    tables = chain_texts(dump)
    for table, found in tables.items():
        if table not in TABLES:
            continue
        for chain, text in found.items():
            if table == "nat" and chain.startswith(names.SERVICE_CHAIN_PREFIXES):
                services[chain] = text
            elif is_known(table, chain):
                chains[table, chain] = tuple(text.splitlines(keepends=True))
        jumps |= _standing_jumps(table, found, wanted)
        for jump in wanted:
            if jump.table == table and jump.after:
                targets = tuple(f"-j {chain}" for chain in jump.after)
                for place, rule in enumerate(found.get(jump.chain, "").splitlines(), 2):
                    if rule.endswith(targets):
                        places[jump] = place
    hints = tables.get("mangle", {})
    return Observed(chains, services, frozenset(jumps), any(h in hints for h in names.KUBELET_HINTS), places)


def _standing_jumps(table: str, found: dict[str, str], jumps: Sequence[Jump]) -> set[Jump]:
    standing = set()
    for jump in jumps:
        rules = found.get(jump.chain, "").splitlines(keepends=True)
        if jump.table == table and any(
            rule == jump.line or canonical_rule(rule) == canonical_rule(jump.line)
            for rule in rules
            if "-j KUBE-" in rule
        ):
            standing.add(jump)
    return standing


def same_rules(wanted: str, found: str) -> bool:
    """Whether two chains' rules are equivalent, independent of the iptables version that printed them."""
    if wanted == found:
        return True
    expected, actual = wanted.splitlines(), found.splitlines()
    return len(expected) == len(actual) and all(
        a == b or canonical_rule(a) == canonical_rule(b) for a, b in zip(expected, actual, strict=True)
    )


def normalize_to(wanted: Sequence[str], found: Sequence[str]) -> tuple[str, ...]:
    """Return `found` with every line that is equivalent to one of `wanted` replaced by that line."""
    known = set(wanted)
    if all(line in known for line in found):
        return tuple(found)
    meaning = {canonical_rule(line): line for line in wanted}
    return tuple(line if line in known else meaning.get(canonical_rule(line), line) for line in found)
