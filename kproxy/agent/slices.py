"""The policy that cuts a backlog of changed services into slices: cheap ones first, fair between namespaces.

A service's cost is an estimate in units of the planner (endpoints, ports and the like); `SliceMeter` learns
how many seconds a unit takes. No clock and no I/O here.

The order is that of weighted fair queueing with a virtual clock (Demers, Keshav, Shenker 1989; self-clocked
as by Golestani 1994), at two levels. A namespace has received some service so far, and the next service of
the namespace ends at that amount plus its cost; the smallest end is first. So a change of a namespace that
asked for little passes the backlog of one that asks for much, and a cheap one passes an expensive one. Within
a namespace the same rule counts from the arrival: an expensive service is passed by at most its own cost of
later cheap ones. No service starves.

A new service counts as if it cost `FIRST_TIME` more, because traffic goes through those that are known
and change. So a change passes any number of new services, even if each has a namespace of its own.
"""

import heapq
from collections.abc import Collection, Iterator

import msgspec

SLICE_SECONDS = (0.03, 0.1)
"""The least and the greatest duration that a slice of several services aims at.

A change of another namespace waits for the slice in progress, and for the rest of its own: twice the greatest
is the 200 ms by which one namespace may delay another. A shorter one than the least would spend more time on
what every sync costs, 1 to 3 ms.
"""

FIRST_RATE = 20e-6
"""Seconds per unit and family before any measurement: those of a slow mode on a slow machine."""

FIRST_TIME = 100.0
"""Units by which changes of known services, of each namespace, may pass a new one: about 15 small changes."""

_RATES = (1e-6, 0.005)
"""Bounds of a measured rate. One sync that was preempted must not cut every slice to single services."""

_KEPT = 0.9
"""The weight that a measurement keeps with each later one: about the last ten syncs count."""

_TELLING = 0.005
"""Seconds by which syncs must differ on account of their units before the rate is taken from them."""


_SMALLER = 0.6
"""The share of its size that a slice gets where all recent ones had the same: only different ones tell."""

_SPARE = 1000
"""Outdated entries that the heaps may hold beside those in proportion to the waiting services."""


class _Entry(msgspec.Struct, gc=False):
    """A waiting service. `arrived`: what its namespace had received; `number`: its place among equals.

    `delay`: what counts for its order beside its cost, and is not paid for.
    """

    namespace: str
    cost: float
    arrived: float
    number: int
    delay: float

    @property
    def rank(self) -> tuple[float, int]:
        return self.arrived + self.cost + self.delay, self.number


class FairQueue:
    """The waiting services. The same calls give the same order; not thread-safe."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._queues: dict[str, list[tuple[float, int, str]]] = {}
        """By namespace, a heap of ranks and keys; outdated ones are dropped as they come up."""
        self._namespaces: list[tuple[float, int, str]] = []
        """A heap of the end and number of each namespace's next service; outdated ones are dropped too."""
        self._received: dict[str, float] = {}
        self._now = 0.0
        self._number = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def put(self, key: str, cost: float, *, new: bool = False) -> None:
        """Add a service `namespace/name`, or change the cost of a waiting one, which keeps its arrival.

        A cost is at least 1. `new`: the kernel does not hold the service yet.
        """
        cost = max(1.0, cost)
        delay = FIRST_TIME if new else 0.0
        known = self._entries.get(key)
        namespace = key.partition("/")[0]
        if known is None:
            if namespace not in self._queues:
                self._queues[namespace] = []
                self._received[namespace] = max(self._now, self._received.get(namespace, 0.0))
            self._number += 1
            arrived = self._received[namespace]
            known = self._entries[key] = _Entry(namespace, cost, arrived, self._number, delay)
        elif (known.cost, known.delay) == (cost, delay):
            return
        known.cost, known.delay = cost, delay
        heapq.heappush(self._queues[namespace], (*known.rank, key))
        self._offer(namespace)
        if len(self._queues[namespace]) + len(self._namespaces) > _SPARE + 4 * len(self._entries):
            self._rebuild()

    def discard(self, keys: Collection[str]) -> float:
        """Remove services that are taken out of turn; their namespaces pay for them. Return the cost."""
        spent = 0.0
        for key in keys:
            entry = self._entries.get(key)
            if entry is not None:
                spent += entry.cost
                self._remove(key, entry)
        return spent

    def clear(self) -> None:
        """Remove everything: all services are taken at once, which no namespace pays for."""
        self._entries.clear()
        self._queues.clear()
        self._namespaces.clear()
        self._received.clear()
        self._now = 0.0

    def slice(self, budget: float) -> list[str]:
        """Remove and return the next services whose costs fit into `budget`, but at least one.

        A service that costs more than the budget is taken whole, in a slice without others.
        """
        taken: list[str] = []
        spent = 0.0
        while (following := self._next()) is not None:
            end, key = following
            entry = self._entries[key]
            if taken and spent + entry.cost > budget:
                break
            self._now = max(self._now, end - entry.delay)
            self._remove(key, entry)
            taken.append(key)
            spent += entry.cost
        return taken

    def cost(self, key: str) -> float:
        """The cost of a waiting service. Raises KeyError."""
        return self._entries[key].cost

    def _rebuild(self) -> None:
        """Drop all outdated entries of the heaps."""
        self._queues = {entry.namespace: [] for entry in self._entries.values()}
        self._namespaces = []
        for key, entry in self._entries.items():
            heapq.heappush(self._queues[entry.namespace], (*entry.rank, key))
        for namespace in list(self._queues):
            self._offer(namespace)

    def _next(self) -> tuple[float, str] | None:
        """The end of the service whose turn it is, and its key."""
        while self._namespaces:
            end, number, namespace = self._namespaces[0]
            head = self._head(namespace)
            if head is not None and (end, number) == self._turn(namespace, head):
                return end, head
            heapq.heappop(self._namespaces)
        return None

    def _head(self, namespace: str) -> str | None:
        queue = self._queues.get(namespace, [])
        while queue:
            end, number, key = queue[0]
            entry = self._entries.get(key)
            if entry is not None and entry.rank == (end, number):
                return key
            heapq.heappop(queue)
        return None

    def _turn(self, namespace: str, head: str) -> tuple[float, int]:
        entry = self._entries[head]
        return self._received[namespace] + entry.cost + entry.delay, entry.number

    def _offer(self, namespace: str) -> None:
        head = self._head(namespace)
        if head is not None:
            heapq.heappush(self._namespaces, (*self._turn(namespace, head), namespace))
            return
        self._queues.pop(namespace, None)
        if self._received.get(namespace, 0.0) <= self._now:
            self._received.pop(namespace, None)

    def _remove(self, key: str, entry: _Entry) -> None:
        del self._entries[key]
        self._received[entry.namespace] += entry.cost
        self._offer(entry.namespace)
        if not self._entries:
            self.clear()


class SliceMeter:
    """Learns what a sync of one family costs: `fixed` seconds whatever it does, and `rate` seconds per unit.

    A line through the last syncs, weighted by their age. Single small changes differ by noise only: they do
    not change the rate, but the fixed part, which is large where a mode copies a table on every write.
    """

    def __init__(self) -> None:
        self.fixed = 0.0
        self.rate = FIRST_RATE
        self.share = 1.0
        """The share of the usual size that the next slice is to have."""
        self._weight = self._u = self._s = self._uu = self._us = 0.0

    def note(self, units: float, seconds: float) -> None:
        """Learn from a sync that planned and wrote services of so many units in so many seconds."""
        self._weight = _KEPT * self._weight + 1.0
        self._u = _KEPT * self._u + units
        self._s = _KEPT * self._s + seconds
        self._uu = _KEPT * self._uu + units * units
        self._us = _KEPT * self._us + units * seconds
        mean = self._u / self._weight
        variance = max(0.0, self._uu / self._weight - mean * mean)
        telling = variance**0.5 * self.rate >= _TELLING
        self.share = 1.0 if telling or mean * self.rate < 2 * _TELLING else _SMALLER
        if telling:
            self._adopt((self._us / self._weight - mean * self._s / self._weight) / variance)
        self.fixed = self._s / self._weight - self.rate * mean
        if self.fixed < 0.0:
            self.fixed = 0.0
            if mean * self.rate >= _TELLING:
                self._adopt(self._us / self._uu)

    def _adopt(self, rate: float) -> None:
        """Use a measured rate; it falls slowly, as a sync that wrote little is no measure of others."""
        low, high = _RATES
        self.rate = min(high, max(low, self.rate / 2, rate))


def units_for(meters: Collection[SliceMeter]) -> float:
    """The units that fit into one slice of these families, which are synced one after another.

    The slice may take as long as what a sync costs in any case, within SLICE_SECONDS.
    """
    least, most = SLICE_SECONDS
    seconds = min(most, max(least, sum(meter.fixed for meter in meters)))
    share = min((meter.share for meter in meters), default=1.0)
    return share * seconds / (sum(meter.rate for meter in meters) or FIRST_RATE)
