"""A record of what the kernel holds of ours, exact down to the chain, moved only by successful restores."""

from collections.abc import Iterable, Iterator, Mapping

from kproxy.backends.base import Drift
from kproxy.backends.iptables.observed import Observed, in_our_words, same_rules
from kproxy.backends.iptables.render import ServiceRules, SharedLines
from kproxy.backends.iptables.static import SHARED, ChainId, Jump

NO_RULES = ServiceRules()


class KernelState:
    """What stands in the kernel.

    `chains`: fixed and shared chains that exist, with their rules. `services`: per service, its own chains
    and the version of its shared lines that the shared chains are meant to hold. `stale`: chains of services
    that nobody wants any more.
    """

    def __init__(self) -> None:
        self.chains: dict[ChainId, tuple[str, ...]] = {}
        self.services: dict[str, ServiceRules] = {}
        self.stale: set[str] = set()
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


def from_observation(
    observed: Observed, desired: Mapping[str, ServiceRules], fixed: Mapping[ChainId, str | None]
) -> KernelState:
    """Translate an observation into a record, in the words of what is desired wherever it means the same.

    A service whose chains all stand as desired counts as applied; of the others it records the chains that
    were found. The shared chains are recorded line by line and compared when they are next written.
    """
    state = KernelState()
    state.jumps = set(observed.jumps)
    for chain_id, lines in observed.chains.items():
        wanted = fixed.get(chain_id)
        same = wanted is not None and same_rules(wanted, "".join(lines))
        state.chains[chain_id] = tuple(wanted.splitlines(keepends=True)) if wanted and same else lines
    for field, chain_id in SHARED.items():
        if chain_id in state.chains:
            words = [line for r in desired.values() for line in getattr(r.shared, field)]
            state.chains[chain_id] = in_our_words(words, state.chains[chain_id])
    standing = {field: frozenset(state.chains.get(chain_id, ())) for field, chain_id in SHARED.items()}
    unowned = set(observed.services)
    for key, rules in desired.items():
        found: dict[str, str] = {}
        complete = True
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
        state.services[key] = rules if complete else ServiceRules(found, _found(rules.shared, standing))
    state.stale = unowned
    return state


def _found(wanted: SharedLines, standing: Mapping[str, frozenset[str]]) -> SharedLines:
    """The part of a service's shared lines that stand, so that writing others does not remove them."""
    return SharedLines(
        **{f: tuple(line for line in getattr(wanted, f) if line in lines) for f, lines in standing.items()}
    )


def service_chains(state: KernelState) -> Iterator[tuple[str, str]]:
    """Every per-service chain of the record with its rules."""
    for rules in state.services.values():
        yield from rules.chains.items()


def drift_between(
    expected: KernelState,
    actual: KernelState,
    observed: Observed,
    fixed: Mapping[ChainId, str | None],
) -> tuple[Drift, ...]:
    """Name every object that is not as the record says."""
    drifts: list[Drift] = []
    for (table, chain), rules in expected.chains.items():
        found = actual.chains.get((table, chain))
        if found is None:
            drifts.append(Drift(f"chain {table}/{chain}", "is missing"))
        elif found != rules and fixed.get((table, chain), "") is not None:
            drifts.append(Drift(f"chain {table}/{chain}", _difference(rules, found)))
    drifts += [
        Drift(f"jump {jump.table}/{jump.line.strip().removeprefix('-A ')}", "is missing")
        for jump in expected.jumps - actual.jumps
    ]
    for chain, text in service_chains(expected):
        found_text = observed.services.get(chain)
        if found_text is None:
            drifts.append(Drift(f"chain nat/{chain}", "is missing"))
        elif not same_rules(text, found_text):
            difference = _difference(text.splitlines(), found_text.splitlines())
            drifts.append(Drift(f"chain nat/{chain}", difference))
    drifts += [Drift(f"chain nat/{chain}", "is not wanted") for chain in actual.stale - expected.stale]
    return tuple(sorted(drifts))


def _difference(expected: Iterable[str], found: Iterable[str]) -> str:
    wanted, actual = set(expected), set(found)
    missing, extra = len(wanted - actual), len(actual - wanted)
    if not missing and not extra:
        return "has its rules in another order"
    return f"lacks {missing} of its rules and has {extra} that are not ours"
