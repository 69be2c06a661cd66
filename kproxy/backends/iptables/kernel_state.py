"""The applied state: a record of kproxy's rules in the kernel, changed only by successful restores."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

from kproxy.backends.core.base import Difference, Drift
from kproxy.backends.iptables.base_chains import Jump
from kproxy.backends.iptables.layout import Layout
from kproxy.backends.iptables.names import ChainId
from kproxy.backends.iptables.observed import Observed, normalize_to, same_rules
from kproxy.backends.iptables.owned_chains import KUBELETS_TOO
from kproxy.backends.iptables.rules import ServiceRules, SharedLines
from kproxy.backends.iptables.shared import Entry, Placement, entries_of, rerooted
from kproxy.kernel.xtables.types import NATIVE_RULE

NO_RULES = ServiceRules()

UNOWNED = ""
"""In place of a service's key: owner of lines that were found and belong to no service."""

_OWNER = re.compile(r'--comment "([^ "/:]+/[^ "/:]+)[ ":]')
_TARGET = re.compile(r" -j (KUBE-\S+)$", re.MULTILINE)


class AppliedState:
    """kproxy's rules in the kernel. Writer changes it; it equals the kernel while no other program writes.

    `chains`: base and shared chains that exist, with their rules. `services`: per service, its own chains
    and the version of its shared lines that the shared chains hold. `entries`: by field of SharedLines, the
    lines of the shared chains, once these were written as a whole. `widened`: services of which table filter
    may hold lines of two versions. `emptied`: shared chains that are not needed and could not be deleted.
    `stale`: service chains that no service needs. `retired`: base and shared chains of other layouts, to be
    deleted. `unsure`: chains that a restore of unknown outcome was to change. `places`: as in Observed.
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
        """The lines of each service in one kind of shared chains."""
        return {key: getattr(rules.shared, field) for key, rules in self.services.items()}

    def unowned(self, field: str, placement: Placement) -> Iterator[str]:
        """The lines in one kind of shared chains that belong to no recorded service."""
        owned = {line for lines in self.lines(field).values() for line in lines}
        for chain_id, rules in self.chains.items():
            if holds(placement, chain_id):
                # A rule that iptables cannot print cannot be written again.
                lines = [rerooted(placement, rule) for rule in rules if NATIVE_RULE not in rule]
                yield from (line for line in lines if line not in owned and placement.places(line))

    def rules(self) -> dict[str, int]:
        """Number of rules by table. Safe beside the writing thread, because it iterates over copies."""
        found = Counter({"nat": 0, "filter": 0})
        for (table, _), lines in list(self.chains.items()):
            found[table] += len(lines)
        for service in list(self.services.values()):
            found["nat"] += sum(text.count("\n") for text in list(service.chains.values()))
        return dict(found)


def from_observation(observed: Observed, desired: Mapping[str, ServiceRules], layout: Layout) -> AppliedState:
    """Build the record from an observation, with the text of desired rules where rules are equivalent.

    A service whose chains and lines are all as desired counts as applied. For another service the record has
    what was found: its lines in the shared chains, identified by their comments, and the chains that these
    jump to. So it keeps its rules until it is written again. The shared chains are recorded as found, and
    corrected when they are next written.
    """
    state = AppliedState()
    state.jumps = set(observed.jumps)
    state.places = dict(observed.places)
    base, placements = layout.base, layout.shared
    own = {*base, *(placement.root for placement in placements.values())}
    for chain_id, lines in observed.chains.items():
        if chain_id not in own and not any(holds(p, chain_id) for p in placements.values()):
            if not (observed.kubelet and chain_id in KUBELETS_TOO):
                state.retired.add(chain_id)
            continue
        text = "".join(lines)
        words = (base.get(chain_id), layout.transitional.get(chain_id))
        same = next((each for each in words if each is not None and same_rules(each, text)), None)
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
    """Replace equivalent rules of a placement's chains by the desired text; yield the rerooted lines."""
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
    """The lines of services in the shared chains: service -> field -> lines."""
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
    """Move every `unowned` chain that the lines jump to, directly or not, to `found`."""
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
    """Name every object that differs from the record, except `unsure` ones, which kproxy may have changed."""
    drifts: list[Drift] = []
    for (table, chain), rules in expected.chains.items():
        found = observed.chains.get((table, chain))
        if found is None:
            drifts.append(_missing(table, chain))
        elif layout.base.get((table, chain), "") is not None and normalize_to(rules, found) != rules:
            drifts.append(_modified(table, chain, rules, found))
    drifts += [
        Drift("jump", f"{jump.table}/{jump.line.strip().removeprefix('-A ')}", Difference.MISSING)
        for jump in expected.jumps - observed.jumps
    ]
    drifts += [
        _unexpected(table, chain)
        for table, chain in observed.chains.keys() - expected.chains.keys()
        if any(holds(placement, (table, chain)) for placement in layout.shared.values())
    ]
    unwanted = observed.services.keys() - expected.stale
    for chain, text in service_chains(expected):
        unwanted.discard(chain)
        found_text = observed.services.get(chain)
        if found_text is None:
            drifts.append(_missing("nat", chain))
        elif not same_rules(text, found_text):
            drifts.append(_modified("nat", chain, text.splitlines(), found_text.splitlines()))
    drifts += [_unexpected("nat", chain) for chain in unwanted]
    unsure = {f"{table}/{chain}" for table, chain in expected.unsure}
    return tuple(sorted(drift for drift in drifts if drift.kind != "chain" or drift.name not in unsure))


def _missing(table: str, chain: str) -> Drift:
    return Drift("chain", f"{table}/{chain}", Difference.MISSING)


def _unexpected(table: str, chain: str) -> Drift:
    return Drift("chain", f"{table}/{chain}", Difference.UNEXPECTED)


def _modified(table: str, chain: str, expected: Iterable[str], found: Iterable[str]) -> Drift:
    wanted, actual = set(expected), set(found)
    missing, extra = len(wanted - actual), len(actual - wanted)
    detail = f"lacks {missing} of its rules and has {extra} that are not ours"
    if not missing and not extra:
        detail = "has its rules in another order"
    return Drift("chain", f"{table}/{chain}", Difference.MODIFIED, detail)
