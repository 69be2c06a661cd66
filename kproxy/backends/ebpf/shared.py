"""The socket table as both families share it: which maps are filled, when they serve, and how they grow.

The programs of both families are over one set of maps. A new table serves only when each family has filled
its part, so that it never holds a part of the services only. Maps have a fixed size. A larger set gets what
the former one holds, and replaces it under traffic by updates of the links.
"""

import threading
from collections.abc import Collection, Sequence

import msgspec

from kproxy.addresses import Family
from kproxy.kernel.bpf.types import BpfError, Capacity, Problem, Sizes, SocketMaps, SocketTable

SPARE = 1.25
"""New maps have room for a quarter more than is needed."""

LEAST_GROWTH = 1.5
"""New maps are at least so much larger: replacing them costs a load of the programs."""

FIRST_SIZES = Sizes(Capacity(256, 1024), Capacity(256, 1024), 512)
"""Sizes to open a new table with; the first sync makes it as large as it has to be."""


class SharedTable:
    """A table for the backends of `families`, all of the node that are served; other families are emptied.

    One thread uses it, except `connections`, which may be called from any.
    """

    def __init__(self, table: SocketTable, families: Collection[Family] = tuple(Family)) -> None:
        self.table = table
        self.families = tuple(family for family in Family if family in families)
        self._maps: SocketMaps = table
        self._filled: set[Family] = set()
        self._repair = False
        self._lock = threading.Lock()

    @property
    def maps(self) -> SocketMaps:
        """The maps that are to be filled; another object after `grow` or `settle`."""
        return self._maps

    @property
    def serves(self) -> bool:
        """Whether the programs are known to be over these maps."""
        return self.table.published and self._maps is self.table

    def numbering(self, family: Family) -> tuple[int, int]:
        """The first number of a family's counters, and the distance of two."""
        return self.families.index(family), len(self.families)

    def connections(self) -> list[int]:
        """All counters. Raises BpfError."""
        with self._lock:
            return self._maps.connections(self._maps.sizes.counters)

    def grow(self, family: Family, frontends: int, slots: int) -> None:
        """Make maps with room for so many frontends and slots of a family, with what the present ones hold.

        Raises BpfError; then all is as before.
        """
        before = self._maps.sizes
        have = before.of(family)
        more = Capacity(_larger(have.frontends, frontends), _larger(have.slots, slots))
        sizes = Sizes(
            more if family is Family.IPV4 else before.ipv4,
            more if family is Family.IPV6 else before.ipv6,
            before.counters,
        )
        most = max(sizes.of(each).frontends for each in self.families)
        sizes = msgspec.structs.replace(sizes, counters=max(before.counters, most * len(self.families)))
        larger = self.table.grow(sizes)
        try:
            self._copy(larger)
            if self.table.published or not self.table.fresh:
                self._publish(larger)
                return
        except BpfError:
            larger.close()
            raise
        with self._lock:
            if self._maps is not self.table:
                self._maps.close()
            self._maps = larger

    def settle(self, family: Family) -> None:
        """Note that a family's maps are as desired: the table serves as soon as all are. Raises BpfError."""
        self._empty_others()
        self._filled.add(family)
        if not self._filled.issuperset(self.families) or (self.serves and not self._repair):
            return
        self._publish(None if self._maps is self.table else self._maps)
        self._repair = False

    def problems(self, family: Family) -> Sequence[Problem]:
        """What of links and pins differs, for one of the families; the next `settle` repairs it.

        Programs of others are not among these: a table next to them is as it is to be. Raises BpfError.
        """
        if not self.serves or family is not self.families[0]:
            return ()
        found = [each for each in self.table.problems() if not each.object.startswith("hook ")]
        self._repair = self._repair or bool(found)
        return found

    def _empty_others(self) -> None:
        """Delete what a former process may have written for families that are not served any more."""
        if self._filled or self.table.fresh:
            return
        for family in set(Family).difference(self.families):
            self._maps.delete_frontends(family, self._maps.frontends(family))

    def _copy(self, larger: SocketMaps) -> None:
        for family in Family:
            slots = self._maps.slots(family)
            larger.slots(family)[: len(slots)] = slots
            larger.fill(family, self._maps.frontends(family))

    def _publish(self, maps: SocketMaps | None) -> None:
        with self._lock:
            self.table.publish(maps)
            self._maps = self.table


def _larger(have: int, needed: int) -> int:
    """The room of new maps; the same if it suffices."""
    return have if needed <= have else max(int(needed * SPARE), int(have * LEAST_GROWTH))
