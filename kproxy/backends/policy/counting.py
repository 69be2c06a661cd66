"""Packets that groups have allowed and refused, from the counters of their rules.

A group's chain begins with a counter, and its end has one for what is refused; so the difference was allowed.
Replies do not come to it. A chain that is written again counts from zero, so differences are added up.
"""

from collections.abc import Mapping, Sequence

from kproxy.addresses import Family
from kproxy.backends.policy import names
from kproxy.kernel.nft.types import CountsRules, Nft

Counts = tuple[int, int]
"""(allowed, refused)."""


class GroupCounts:
    """Totals since the start of this process, and before it for chains that were kept."""

    def __init__(self) -> None:
        self._seen: dict[str, Counts] = {}
        self._totals: dict[str, Counts] = {}

    def read(self, nft: Nft, family: Family) -> Mapping[str, Counts]:
        """Return the totals of every group in the table. Raises NftError."""
        if not isinstance(nft, CountsRules):
            return {}
        seen: dict[str, Counts] = {}
        totals: dict[str, Counts] = {}
        for group, now in _by_group(nft.rule_counts(family, names.TABLE) or {}).items():
            before = self._seen.get(group, (0, 0))
            if now[0] < before[0] or now[1] < before[1]:
                before = 0, 0
            total = self._totals.get(group, (0, 0))
            totals[group] = total[0] + now[0] - before[0], total[1] + now[1] - before[1]
            seen[group] = now
        self._seen, self._totals = seen, totals
        return totals


def _by_group(counted: Mapping[str, Sequence[int]]) -> dict[str, Counts]:
    found: dict[str, Counts] = {}
    for chain, packets in counted.items():
        if chain == names.UNKNOWN:
            found[chain] = 0, packets[-1]
        elif names.is_group(chain):
            refused = packets[1] if len(packets) > 1 else counted.get(names.end_of(chain), (0,))[0]
            # The counters are not read at one moment.
            found[chain] = max(0, packets[0] - refused), refused
    return found
