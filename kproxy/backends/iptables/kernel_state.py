"""A record of what the kernel holds of ours, exact down to the chain, moved only by successful restores."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

from kproxy.backends.core.base import Drift
from kproxy.backends.iptables.base_chains import Jump
from kproxy.backends.iptables.layout import Layout
from kproxy.backends.iptables.names import ChainId
from kproxy.backends.iptables.observed import Observed, normalize_to, same_rules
from kproxy.backends.iptables.owned_chains import KUBELETS_TOO
from kproxy.backends.iptables.rules import ServiceRules, SharedLines
from kproxy.backends.iptables.shared import Entry, Placement, entries_of, rerooted
from kproxy.kernel.xtables.types import NATIVE_RULE

NO_RULES = ServiceRules()

NOBODY = ""
"""In place of a service: who owns the lines that were found and belong to none."""

_OWNER = re.compile(r'--comment "([^ "/:]+/[^ "/:]+)[ ":]')
_TARGET = re.compile(r" -j (KUBE-\S+)$", re.MULTILINE)


class AppliedState:
    """What stands in the kernel.

    `chains`: fixed and shared chains that exist, with their rules. `services`: per service, its own chains
    and the version of its shared lines that the shared chains are meant to hold. `entries`: by field of
    SharedLines, the lines that the shared chains are made of, once these were written as a whole.
    `widened`: services of which table filter may hold lines of two versions. `emptied`: shared chains that
    are not needed and could not be deleted. `stale`: chains of services that nobody wants any more.
    `retired`: fixed and shared chains of other layouts, whose time is over. `unsure`: chains that a restore
    was to change which failed in a way that does not tell whether it did. `places`: as in Observed.
    """

    def __init__(self) -> None:
        self.chains: dict[ChainId, tuple[str, ...]] = {}
        self.services: dict[str, ServiceRules] = {}
        self.entries: dict[str, list[Entry]] = {}
        self.widened: set[str] = set()
        self.emptied: set[ChainId] = set()
        self.stale: set[str] = set()
        self.retired: set[ChainId] = set()
        self.unsure: set[ChainId] = set()
        self.jumps: set[Jump] = set()
        self.places: dict[Jump, int] = {}

    def lines(self, field: str) -> dict[str, tuple[str, ...]]:
        """The lines of each service that belong into one kind of shared chains."""
        return {key: getattr(rules.shared, field) for key, rules in self.services.items()}

    def unowned(self, field: str, placement: Placement) -> Iterator[str]:
        """The lines in one kind of shared chains that no service is recorded to have."""
        owned = {line for lines in self.lines(field).values() for line in lines}
        for chain_id, rules in self.chains.items():
            if holds(placement, chain_id):
                # One that iptables has no words for cannot be written again.
                lines = [rerooted(placement, rule) for rule in rules if NATIVE_RULE not in rule]
                yield from (line for line in lines if line not in owned and placement.places(line))

    def rules(self) -> dict[str, int]:
        """How many rules stand, by table. May run beside the thread that writes: it reads whole copies."""
        found = Counter({"nat": 0, "filter": 0})
        for (table, _), lines in list(self.chains.items()):
            found[table] += len(lines)
        for service in list(self.services.values()):
            found["nat"] += sum(text.count("\n") for text in list(service.chains.values()))
        return dict(found)


def from_observation(observed: Observed, desired: Mapping[str, ServiceRules], layout: Layout) -> AppliedState:
    """Translate an observation into a record, in the words of what is desired wherever it means the same.

    A service whose chains and lines all stand as desired counts as applied. Of another it records what was
    found: its lines in the shared chains, told by their comments, and the chains that these lead to; so it
    keeps what it has until it is written anew, however long that takes. The shared chains themselves are
    recorded as they are, and brought in order when they are next written.
    """
    state = AppliedState()
    state.jumps = set(observed.jumps)
    state.places = dict(observed.places)
    fixed, placements = layout.fixed, layout.shared
    own = {*fixed, *(placement.root for placement in placements.values())}
    for chain_id, lines in observed.chains.items():
        if chain_id not in own and not any(holds(p, chain_id) for p in placements.values()):
            if not (observed.kubelet and chain_id in KUBELETS_TOO):
                state.retired.add(chain_id)
            continue
        text = "".join(lines)
        words = (fixed.get(chain_id), layout.outgoing.get(chain_id))
        same = next((ours for ours in words if ours is not None and same_rules(ours, text)), None)
        state.chains[chain_id] = lines if same is None else tuple(same.splitlines(keepends=True))
    standing = {
        field: frozenset(
            _recognise(state, placement, {k: getattr(r.shared, field) for k, r in desired.items()})
        )
        for field, placement in placements.items()
    }
    unowned = set(observed.services)
    incomplete: dict[str, dict[str, str]] = {}
    for key, rules in desired.items():
        found: dict[str, str] = {}
        complete = all(standing[field].issuperset(getattr(rules.shared, field)) for field in placements)
        for chain, text in rules.chains.items():
            actual = observed.services.get(chain)
            if actual is None:
                complete = False
                continue
            unowned.discard(chain)
            if same_rules(text, actual):
                found[chain] = text
            else:
                found[chain] = actual
                complete = False
        if complete:
            state.services[key] = rules
        else:
            incomplete[key] = found
    lines_of = _lines_by_owner(state.chains, placements, incomplete)
    for key, found in incomplete.items():
        shared = SharedLines(**{field: tuple(lines) for field, lines in lines_of[key].items()})
        _follow(lines_of[key].values(), observed.services, unowned, found)
        state.services[key] = ServiceRules(found, shared)
    state.stale = unowned
    return state


def holds(placement: Placement, chain_id: ChainId) -> bool:
    """Whether a chain is the root of a placement or another of its chains."""
    return chain_id == placement.root or (
        chain_id[0] == placement.root[0] and placement.contains(chain_id[1])
    )


def _recognise(
    state: AppliedState, placement: Placement, lines: Mapping[str, tuple[str, ...]]
) -> Iterator[str]:
    """Put a placement's chains in our words where these mean the same; yield the lines as in the root."""
    table = placement.root[0]
    expected = placement.chains(entries_of(placement, lines))
    for chain_id, found in state.chains.items():
        if holds(placement, chain_id):
            known = normalize_to(expected.get(chain_id[1], ()), found)
            state.chains[table, chain_id[1]] = known
            yield from (rerooted(placement, line) for line in known)


def _lines_by_owner(
    chains: Mapping[ChainId, tuple[str, ...]], placements: Mapping[str, Placement], owners: Collection[str]
) -> dict[str, dict[str, list[str]]]:
    """The lines that the given services have in the shared chains: service -> field -> lines."""
    found: dict[str, dict[str, list[str]]] = {key: {} for key in owners}
    if not found:
        return found
    for field, placement in placements.items():
        for chain_id, lines in chains.items():
            if not holds(placement, chain_id):
                continue
            for line in lines:
                owner = _OWNER.search(line)
                if owner is not None and owner[1] in found:
                    found[owner[1]].setdefault(field, []).append(rerooted(placement, line))
    return found


def _follow(
    lines: Iterable[Iterable[str]], observed: Mapping[str, str], unowned: set[str], found: dict[str, str]
) -> None:
    """Move every chain that the lines lead to, and that nobody desires, from `unowned` to `found`."""
    texts = ["".join(group) for group in lines] + list(found.values())
    while texts:
        for chain in _TARGET.findall(texts.pop()):
            if chain in unowned:
                unowned.discard(chain)
                found[chain] = observed[chain]
                texts.append(observed[chain])


def service_chains(state: AppliedState) -> Iterator[tuple[str, str]]:
    """Every per-service chain of the record with its rules."""
    for rules in state.services.values():
        yield from rules.chains.items()


def drift_between(expected: AppliedState, observed: Observed, layout: Layout) -> tuple[Drift, ...]:
    """Name every object that is not as the record says; what a failed restore may have changed is ours."""
    drifts: list[Drift] = []
    for (table, chain), rules in expected.chains.items():
        found = observed.chains.get((table, chain))
        if found is None:
            drifts.append(Drift(f"chain {table}/{chain}", "is missing"))
        elif layout.fixed.get((table, chain), "") is not None and normalize_to(rules, found) != rules:
            drifts.append(Drift(f"chain {table}/{chain}", _difference(rules, found)))
    drifts += [
        Drift(f"jump {jump.table}/{jump.line.strip().removeprefix('-A ')}", "is missing")
        for jump in expected.jumps - observed.jumps
    ]
    drifts += [
        Drift(f"chain {table}/{chain}", "is not wanted")
        for table, chain in observed.chains.keys() - expected.chains.keys()
        if any(holds(placement, (table, chain)) for placement in layout.shared.values())
    ]
    unwanted = observed.services.keys() - expected.stale
    for chain, text in service_chains(expected):
        unwanted.discard(chain)
        found_text = observed.services.get(chain)
        if found_text is None:
            drifts.append(Drift(f"chain nat/{chain}", "is missing"))
        elif not same_rules(text, found_text):
            difference = _difference(text.splitlines(), found_text.splitlines())
            drifts.append(Drift(f"chain nat/{chain}", difference))
    drifts += [Drift(f"chain nat/{chain}", "is not wanted") for chain in unwanted]
    ours = {f"chain {table}/{chain}" for table, chain in expected.unsure}
    return tuple(sorted(drift for drift in drifts if drift.object not in ours))


def _difference(expected: Iterable[str], found: Iterable[str]) -> str:
    wanted, actual = set(expected), set(found)
    missing, extra = len(wanted - actual), len(actual - wanted)
    if not missing and not extra:
        return "has its rules in another order"
    return f"lacks {missing} of its rules and has {extra} that are not ours"
