"""What the kernel holds of our chains, read once after a start, a failure or a suspicion of drift."""

from collections.abc import Sequence

import msgspec

from kproxy.backends.iptables import names
from kproxy.backends.iptables.canonical import canonical_rule
from kproxy.backends.iptables.dump import chain_texts
from kproxy.backends.iptables.static import JUMPS, TABLES, ChainId, Jump

_TOP = frozenset(
    {
        names.KUBE_SERVICES,
        names.KUBE_EXTERNAL_SERVICES,
        names.KUBE_NODEPORTS,
        names.KUBE_FORWARD,
        names.KUBE_PROXY_FIREWALL,
        names.KUBE_POSTROUTING,
        names.KUBE_MARK_MASQ,
        names.KUBE_FIREWALL,
        names.CANARY,
    }
)


class Observed(msgspec.Struct, frozen=True):
    """The kernel's view of what is ours.

    `chains`: rules of the fixed and shared chains; `services`: rules of per-service nat chains by name;
    `jumps`: the jumps that stand, and `kubelet` tells whether the kubelet's own chains do.
    """

    chains: dict[ChainId, tuple[str, ...]]
    services: dict[str, str]
    jumps: frozenset[Jump]
    kubelet: bool


def read(dump: bytes) -> Observed:
    """Read an iptables-save dump; chains of other programs are left out."""
    chains: dict[ChainId, tuple[str, ...]] = {}
    services: dict[str, str] = {}
    jumps: set[Jump] = set()
    tables = chain_texts(dump)
    for table, found in tables.items():
        if table not in TABLES:
            continue
        for chain, text in found.items():
            if table == "nat" and chain.startswith(names.SERVICE_CHAIN_PREFIXES):
                services[chain] = text
            elif chain in _TOP:
                chains[table, chain] = tuple(text.splitlines(keepends=True))
        jumps |= _standing_jumps(table, found)
    hints = tables.get("mangle", {})
    return Observed(chains, services, frozenset(jumps), any(h in hints for h in names.KUBELET_HINTS))


def _standing_jumps(table: str, found: dict[str, str]) -> set[Jump]:
    standing = set()
    for jump in JUMPS:
        rules = found.get(jump.chain, "").splitlines(keepends=True)
        if jump.table == table and any(
            rule == jump.line or canonical_rule(rule) == canonical_rule(jump.line)
            for rule in rules
            if "-j KUBE-" in rule
        ):
            standing.add(jump)
    return standing


def same_rules(wanted: str, found: str) -> bool:
    """Whether two chains' rules mean the same, whatever version of iptables printed them."""
    if wanted == found:
        return True
    ours, theirs = wanted.splitlines(), found.splitlines()
    return len(ours) == len(theirs) and all(
        a == b or canonical_rule(a) == canonical_rule(b) for a, b in zip(ours, theirs, strict=True)
    )


def in_our_words(wanted: Sequence[str], found: Sequence[str]) -> tuple[str, ...]:
    """`found` with every line that means the same as one of `wanted` replaced by that line's text."""
    known = set(wanted)
    if all(line in known for line in found):
        return tuple(found)
    meaning = {canonical_rule(line): line for line in wanted}
    return tuple(line if line in known else meaning.get(canonical_rule(line), line) for line in found)
