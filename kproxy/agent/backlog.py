"""Takes the changed services out of the store, a slice at a time, and learns how large a slice may be.

The order and the sizes are decided in slices.py.
"""

from collections.abc import Collection, Mapping

from kproxy.addresses import Family
from kproxy.agent.slices import FairQueue, SliceMeter, units_for
from kproxy.state.store import ObjectStore
from kproxy.state.tables import ServiceInput


class Backlog:
    """The changed services that no sync has taken yet; used by the run loop's thread."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._queue = FairQueue()
        self._meters: dict[Family, SliceMeter] = {}
        self._applied: dict[str, float] = {}
        """The cost of each service as last taken: to remove many endpoints costs about as much as to add them."""
        self._units = 0.0

    def __len__(self) -> int:
        return len(self._queue)

    def take_all(self, families: Collection[Family]) -> list[ServiceInput]:
        """Take every service at once, changed or not: the first sync, or a change that concerns all."""
        self._queue.clear()
        self._units = 0.0
        return self._taken(self._store.take_all(families))

    def take(self, families: Collection[Family], served: Collection[Family]) -> list[ServiceInput]:
        """Take the next slice for all `families`; its size is what the `served` ones apply in time."""
        for each in self._store.changed_services():
            self._queue.put(each.key, max(cost_of(each), self._applied.get(each.key, 0.0)))
        budget = units_for([self._meter(family) for family in served])
        self._units = 0.0
        return self._take(self._queue.slice(budget), families)

    def take_with(self, keys: Collection[str], families: Collection[Family]) -> list[ServiceInput]:
        """Take those of the services that wait, because others of this slice depend on their changes.

        An address then passes from one service to another in one sync. Services that would more than double
        a slice of usual size are left: the end state is the same.
        """
        room = units_for([self._meter(family) for family in families])
        chosen = []
        for key in sorted(each for each in keys if each in self._queue):
            room -= self._queue.cost(key)
            if room < 0:
                break
            chosen.append(key)
        self._queue.discard(chosen)
        return self._take(chosen, families)

    def note(self, seconds: Mapping[Family, float]) -> None:
        """Learn from the duration of the slice in each family that was synced."""
        for family, duration in seconds.items():
            self._meter(family).note(self._units, duration)

    def _take(self, keys: Collection[str], families: Collection[Family]) -> list[ServiceInput]:
        return self._taken(self._store.take(keys, families)) if keys else []

    def _taken(self, inputs: list[ServiceInput]) -> list[ServiceInput]:
        for each in inputs:
            cost = cost_of(each)
            self._units += max(cost, self._applied.pop(each.key, 0.0))
            if each.service is not None:
                self._applied[each.key] = cost
        return inputs

    def _meter(self, family: Family) -> SliceMeter:
        return self._meters.setdefault(family, SliceMeter())


def cost_of(each: ServiceInput) -> float:
    """An estimate of what it costs to plan and write a service, in units."""
    spec = each.service.spec if each.service is not None else None
    ports = len(spec.ports or ()) if spec is not None else 0
    return 1.0 + ports + sum(len(piece.endpoints or ()) for piece in each.slices)
