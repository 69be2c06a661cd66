"""A record of what the kernel holds of ours, exact down to the chain, moved only by successful restores."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

from kproxy.backends.base import Drift
from kproxy.backends.iptables.known import KUBELETS_TOO
from kproxy.backends.iptables.layout import Layout
from kproxy.backends.iptables.observed import Observed, in_our_words, same_rules
from kproxy.backends.iptables.render import ServiceRules, SharedLines
from kproxy.backends.iptables.static import ChainId, Jump

NO_RULES = ServiceRules()

_OWNER = re.compile(r'--comment "([^ "/:]+/[^ "/:]+)[ ":]')
_TARGET = re.compile(r" -j (KUBE-\S+)$", re.MULTILINE)


class KernelState:
    """What stands in the kernel.

    `chains`: fixed and shared chains that exist, with their rules. `services`: per service, its own chains
    and the version of its shared lines that the shared chains are meant to hold. `stale`: chains of services
    that nobody wants any more. `retired`: fixed and shared chains of other layouts, whose time is over.
    """

    def __init__(self) -> None:
        self.chains: dict[ChainId, tuple[str, ...]] = {}
        self.services: dict[str, ServiceRules] = {}
        self.stale: set[str] = set()
        self.retired: set[ChainId] = set()
        self.jumps: set[Jump] = set()

    def shared_lines(
        self, field: str, changes: Mapping[str, ServiceRules], tail: Iterable[str] = ()
    ) -> list[str]:
        """The rules a shared chain should hold once `changes` are in: by service name, then the tail."""
        lines: list[str] = []
        services = self.services
        for key in sorted(services.keys() | changes.keys()):
            current = changes.get(key) or services.get(key, NO_RULES)
            lines += getattr(current.shared, field)
        lines += tail
        return lines

    def rules(self) -> dict[str, int]:
        """How many rules stand, by table. May run beside the thread that writes: it reads whole copies."""
        found = Counter({"nat": 0, "filter": 0})
        for (table, _), lines in list(self.chains.items()):
            found[table] += len(lines)
        for service in list(self.services.values()):
            found["nat"] += sum(text.count("\n") for text in list(service.chains.values()))
        return dict(found)


def from_observation(observed: Observed, desired: Mapping[str, ServiceRules], layout: Layout) -> KernelState:
    """Translate an observation into a record, in the words of what is desired wherever it means the same.

    A service whose chains and lines all stand as desired counts as applied. Of another it records what was
    found: its lines in the shared chains, told by their comments, and the chains that these lead to; so it
    keeps what it has until it is written anew, however long that takes. The shared chains themselves are
    recorded as they are, and brought in order when they are next written.
    """
    state = KernelState()
    state.jumps = set(observed.jumps)
    fixed, shared_chains = layout.fixed, layout.shared
    own = fixed.keys() | set(shared_chains.values())
    for chain_id, lines in observed.chains.items():
        if chain_id not in own:
            if not (observed.kubelet and chain_id in KUBELETS_TOO):
                state.retired.add(chain_id)
            continue
        wanted = fixed.get(chain_id)
        same = wanted is not None and same_rules(wanted, "".join(lines))
        state.chains[chain_id] = tuple(wanted.splitlines(keepends=True)) if wanted and same else lines
    for field, chain_id in shared_chains.items():
        if chain_id in state.chains:
            words = [line for r in desired.values() for line in getattr(r.shared, field)]
            words += layout.tails.get(field, ())
            state.chains[chain_id] = in_our_words(words, state.chains[chain_id])
    standing = {field: frozenset(state.chains.get(chain_id, ())) for field, chain_id in shared_chains.items()}
    unowned = set(observed.services)
    incomplete: dict[str, dict[str, str]] = {}
    for key, rules in desired.items():
        found: dict[str, str] = {}
        complete = all(standing[field].issuperset(getattr(rules.shared, field)) for field in shared_chains)
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
    lines_of = _lines_by_owner(state.chains, shared_chains, incomplete)
    for key, found in incomplete.items():
        shared = SharedLines(**{field: tuple(lines) for field, lines in lines_of[key].items()})
        _follow(lines_of[key].values(), observed.services, unowned, found)
        state.services[key] = ServiceRules(found, shared)
    state.stale = unowned
    return state


def _lines_by_owner(
    chains: Mapping[ChainId, tuple[str, ...]], shared: Mapping[str, ChainId], owners: Collection[str]
) -> dict[str, dict[str, list[str]]]:
    """The lines that the given services have in the shared chains: service -> field -> lines."""
    found: dict[str, dict[str, list[str]]] = {key: {} for key in owners}
    if not found:
        return found
    for field, chain_id in shared.items():
        for line in chains.get(chain_id, ()):
            owner = _OWNER.search(line)
            if owner is not None and owner[1] in found:
                found[owner[1]].setdefault(field, []).append(line)
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


def service_chains(state: KernelState) -> Iterator[tuple[str, str]]:
    """Every per-service chain of the record with its rules."""
    for rules in state.services.values():
        yield from rules.chains.items()


def drift_between(expected: KernelState, observed: Observed, layout: Layout) -> tuple[Drift, ...]:
    """Name every object that is not as the record says."""
    drifts: list[Drift] = []
    for (table, chain), rules in expected.chains.items():
        found = observed.chains.get((table, chain))
        if found is None:
            drifts.append(Drift(f"chain {table}/{chain}", "is missing"))
        elif layout.fixed.get((table, chain), "") is not None and in_our_words(rules, found) != rules:
            drifts.append(Drift(f"chain {table}/{chain}", _difference(rules, found)))
    drifts += [
        Drift(f"jump {jump.table}/{jump.line.strip().removeprefix('-A ')}", "is missing")
        for jump in expected.jumps - observed.jumps
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
    return tuple(sorted(drifts))


def _difference(expected: Iterable[str], found: Iterable[str]) -> str:
    wanted, actual = set(expected), set(found)
    missing, extra = len(wanted - actual), len(actual - wanted)
    if not missing and not extra:
        return "has its rules in another order"
    return f"lacks {missing} of its rules and has {extra} that are not ours"
