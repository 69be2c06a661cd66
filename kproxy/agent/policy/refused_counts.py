"""Packets that each policy refused, added up over the chains of the kernel that counted them.

A group's chain counts what it refuses, and ends when its policies change. So it is read once more before
that. A packet that comes between the reading and the end of its chain is refused, but not counted.
"""

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from heapq import nlargest

import msgspec
import structlog

from kproxy.addresses import Family
from kproxy.backends.policy.refusals import refused_by_group
from kproxy.plan.policy.model import Direction, PolicyTable, Touched
from kproxy.telemetry.metrics import Sample
from kproxy.telemetry.series import POLICY_DROPS, POLICY_DROPS_OMITTED

log = structlog.stdlib.get_logger(__name__)

Read = Callable[[Family, Collection[str]], Mapping[str, int]]

KEPT = 10_000
"""Policies and directions whose numbers are kept; of more, those that were added first are forgotten."""


class _Group(msgspec.Struct):
    direction: Direction
    policies: tuple[str, ...]
    last: int = 0
    """What the chain had counted when it was read last."""


class RefusedCounts:
    """Methods may be called from any thread; those of one family's updates come in their order."""

    def __init__(self, read: Read = refused_by_group, kept: int = KEPT) -> None:
        self._read = read
        self._kept = kept
        self._lock = threading.Lock()
        self._groups: dict[Family, dict[str, _Group]] = {}
        self._totals: dict[tuple[str, Direction], int] = {}

    def planned(self, family: Family, table: PolicyTable, touched: Touched) -> None:
        """Take over the groups that an update touched; read those that end, before it is applied."""
        if not touched.groups:
            return
        with self._lock:
            groups = self._groups.setdefault(family, {})
            ending = [name for name in touched.groups if name in groups and name not in table.groups]
            if ending:
                self._add_up(family, ending)
            for name in ending:
                del groups[name]
            for name in touched.groups:
                group = table.groups.get(name)
                if group is not None and name not in groups:
                    groups[name] = _Group(group.direction, group.policies)

    def forget(self) -> None:
        """Note that the tables are gone."""
        with self._lock:
            self._groups.clear()

    def samples(self, limit: int) -> Iterator[Sample]:
        """The numbers of the policies that refused most, at most `limit`, and how many were left out."""
        with self._lock:
            for family, groups in self._groups.items():
                self._add_up(family, groups)
            totals = sorted(self._totals.items())
        chosen = nlargest(limit, totals, key=lambda each: each[1]) if len(totals) > limit else totals
        for (policy, direction), packets in chosen:
            namespace, _, name = policy.partition("/")
            yield Sample(POLICY_DROPS, (name, namespace, direction.value), float(packets))
        yield Sample(POLICY_DROPS_OMITTED, (), len(totals) - len(chosen))

    def _add_up(self, family: Family, names: Collection[str]) -> None:
        groups = self._groups[family]
        try:
            found = self._read(family, names)
        except OSError as error:
            log.warning("refused_packets_unread", family=family.value, reason=error.strerror)
            return
        for name in names:
            group, packets = groups[name], found.get(name, 0)
            more = packets - group.last if packets >= group.last else packets  # the chain was written again
            group.last = packets
            for policy in group.policies:
                key = (policy, group.direction)
                self._totals[key] = self._totals.get(key, 0) + more
        while len(self._totals) > self._kept:
            del self._totals[next(iter(self._totals))]
