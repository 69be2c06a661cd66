"""Takes the changed services out of the store, a slice at a time, and learns how large a slice may be.

The order and the sizes are decided in slices.py.
"""

from collections.abc import Collection, Mapping

from kproxy.addresses import Family
from kproxy.agent.family_sync import FamilySync, SyncOutcome
from kproxy.agent.slices import FairQueue, SliceMeter, units_for
from kproxy.plan.cost import cost_of
from kproxy.plan.model import NodeView
from kproxy.state.store import ObjectStore
from kproxy.state.tables import ServiceInput


class Backlog:
    """The changed services that no sync has taken yet; used by the run loop's thread."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._queue = FairQueue()
        self._meters: dict[Family, SliceMeter] = {}
        self._applied: dict[str, float] = {}
        """The cost of each service as last taken: it costs as much to remove endpoints as to add them."""
        self._units = 0.0

    def __len__(self) -> int:
        return len(self._queue)

    def take_all(self, families: Collection[Family]) -> list[ServiceInput]:
        """Take every service at once, changed or not: the first sync, or a change that concerns all."""
        self._queue.clear()
        self._units = 0.0
        return self._taken(self._store.take_all(families))

    def plan(
        self, syncs: Mapping[Family, FamilySync], view: NodeView, *, everything: bool
    ) -> list[ServiceInput]:
        """Take the next slice, or `everything`, and plan it for every family; return what was taken.

        A family that fails gets the plans too and keeps them, but has no part in the size of the slice.
        """
        inputs = self.take_all(syncs) if everything else self._take_slice(syncs)
        planned = inputs
        while planned:
            for sync in syncs.values():
                sync.plan(planned, view)
            rivals = self._queue and {key for sync in syncs.values() for key in sync.rivals(planned)}
            planned = self._take_with(rivals, syncs) if rivals else []
            inputs = inputs + planned
        return inputs

    def note(self, outcomes: Mapping[Family, SyncOutcome]) -> None:
        """Learn from the duration of the slice in each family that was synced."""
        for family, outcome in outcomes.items():
            if outcome.report.error is None and not outcome.report.full:
                self._meter(family).note(self._units, outcome.seconds)

    def forget_costs(self) -> None:
        """Forget what was learned: another mode is in use."""
        self._meters.clear()

    def _take_slice(self, syncs: Mapping[Family, FamilySync]) -> list[ServiceInput]:
        for each in self._store.changed_services():
            known = self._applied.get(each.key)
            self._queue.put(each.key, max(cost_of(each), known or 0.0), new=known is None)
        self._units = 0.0
        return self._take(self._queue.slice(self._room(syncs)), syncs)

    def _take_with(self, keys: Collection[str], syncs: Mapping[Family, FamilySync]) -> list[ServiceInput]:
        """Take those of the services that wait, because others of this slice depend on their changes.

        An address then passes from one service to another in one sync. Services that cost more than two
        further slices are left: the end state is the same.
        """
        room = 2 * self._room(syncs)
        chosen = []
        for key in sorted(each for each in keys if each in self._queue):
            room -= self._queue.cost(key)
            if room < 0:
                break
            chosen.append(key)
        self._queue.discard(chosen)
        return self._take(chosen, syncs)

    def _room(self, syncs: Mapping[Family, FamilySync]) -> float:
        return units_for([self._meter(family) for family, sync in syncs.items() if not sync.failing])

    def _take(self, keys: Collection[str], families: Collection[str]) -> list[ServiceInput]:
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
