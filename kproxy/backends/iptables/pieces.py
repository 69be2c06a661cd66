"""Divide the change of a large service into short restores, so that other services wait for one of them only.

Chains to which nothing refers yet can be written ahead, and chains to which nothing refers any more can be
deleted later. In between is one step that changes all that packets meet. Pure.
"""

from collections.abc import Iterable, Iterator, Mapping

from kproxy.backends.iptables.names import referrers_first
from kproxy.backends.iptables.rules import ServiceRules

PIECE = 1_500
"""Rules and chains of one step: about 50 ms with iptables-nft."""


def is_large(old: ServiceRules, new: ServiceRules) -> bool:
    """Whether a change is worth more than one step."""
    there, wanted = old.chains, new.chains
    ahead = sum(_size(text) for chain, text in wanted.items() if chain not in there)
    return max(ahead, sum(_size(text) for chain, text in there.items() if chain not in wanted)) > PIECE


def steps(old: ServiceRules, new: ServiceRules) -> Iterator[ServiceRules]:
    """The states through which a service is brought from its applied rules to others; the last is `new`.

    If it is cut short, it can be called again with the state that was reached.
    """
    chains = dict(old.chains)
    ahead = sorted(new.chains.keys() - chains.keys(), key=referrers_first, reverse=True)
    for some in _pieces(ahead, new.chains):
        chains |= {chain: new.chains[chain] for chain in some}
        yield ServiceRules(dict(chains), old.shared)
    former = sorted(chains.keys() - new.chains.keys(), key=referrers_first)
    if former:
        chains |= new.chains
        state = ServiceRules(dict(chains), new.shared)
        if state != old:
            yield state
        for some in _pieces(former, old.chains):
            for chain in some:
                del chains[chain]
            if chains.keys() != new.chains.keys():
                yield ServiceRules(dict(chains), new.shared)
    yield new


def _pieces(chains: Iterable[str], texts: Mapping[str, str]) -> Iterator[list[str]]:
    piece: list[str] = []
    size = 0
    for chain in chains:
        piece.append(chain)
        size += _size(texts[chain])
        if size >= PIECE:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _size(text: str) -> int:
    return 1 + text.count("\n")
