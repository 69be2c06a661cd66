"""The objects in force and the services that changed since the last successful apply.

A service is dirty from a change of any of its objects until every family has applied it (pending_changes.py).
A failed apply does not commit, so no change is lost. The duration of a change of endpoints is measured by the
same marks: its trigger is kept until the change is committed.
"""

import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import cast

import msgspec

from kproxy.state.incomplete_services import IncompleteServices
from kproxy.state.kinds import KINDS, Kind
from kproxy.state.pending_changes import PendingChanges
from kproxy.state.policy_changes import PolicyLog
from kproxy.state.service_cidrs import ranges_of
from kproxy.state.slice_index import SliceIndex, Trigger, split_trigger
from kproxy.state.wire import EndpointSlice, Node, Service, ServiceCIDR, WireObject


class ServiceInput(msgspec.Struct, frozen=True, gc=False):
    """The state of one service: the object (None: it is gone) and its slices, ordered by name."""

    key: str
    revision: int
    service: Service | None
    slices: tuple[EndpointSlice, ...]


class Changes(msgspec.Struct, frozen=True):
    """Relevant changes of one kind: their number, and the number of services with one not yet applied."""

    total: int
    pending: int


class Tables:
    """All relevant objects by kind, with dirty tracking of services. Not thread-safe: the owner locks.

    Objects of every kind are stored by key, and each change increases `revision`. A change of a Service or an
    EndpointSlice also marks its service dirty; `node` and `service_ranges` are views of the other kinds. The
    kinds of NetworkPolicies have a log of their own, and their changes do not count for services.
    """

    def __init__(self, kinds: Iterable[Kind] = KINDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._objects: dict[Kind, dict[str, WireObject]] = {kind: {} for kind in kinds}
        self._kind_of: dict[type[WireObject], Kind] = {kind.wire: kind for kind in self._objects}
        self._services = cast("dict[str, Service]", self._objects[Kind.SERVICE])
        self._slices = SliceIndex()
        self._revision = 0
        self._totals = {Kind.SERVICE: 0, Kind.ENDPOINT_SLICE: 0}
        self.pending = PendingChanges(self._totals.keys(), clock)
        """What was not applied by every family yet."""
        self.policies = PolicyLog(self._objects, clock)
        """What planning of NetworkPolicies has not read yet."""
        self._synced: set[Kind] = set()
        self._incomplete = IncompleteServices()
        self.service_ranges: tuple[str, ...] = ()
        """The ranges of all ServiceCIDRs, sorted, without duplicates; another object after each change."""

    @property
    def node(self) -> Node | None:
        """The object of this node; sources deliver no other Node."""
        return next(reversed(cast("dict[str, Node]", self._objects[Kind.NODE]).values()), None)

    def objects(self, kind: Kind) -> Mapping[str, WireObject]:
        """The objects of a kind by key; a view that follows changes. Raises KeyError for an unknown kind."""
        return self._objects[kind]

    @property
    def revision(self) -> int:
        """Grows with every relevant change."""
        return self._revision

    @property
    def synced(self) -> frozenset[Kind]:
        """The kinds whose first complete list has arrived."""
        return frozenset(self._synced)

    @property
    def services(self) -> int:
        """The number of Services."""
        return len(self._services)

    @property
    def has_incomplete(self) -> bool:
        """Whether a service that arrived since the last `settle` lacks its Service or slices."""
        return bool(self._incomplete)

    def settle(self) -> None:
        """Treat all current services as complete."""
        self._incomplete.forget_all()

    def changes(self, kind: Kind) -> Changes:
        """The number of changes of Services or EndpointSlices, and of services that wait for a sync."""
        return Changes(self._totals[kind], self.pending.counted(kind))

    def replace(self, kind: Kind, objects: Sequence[WireObject], unreadable: Collection[str] = ()) -> bool:
        """Replace all objects of `kind` except the `unreadable` ones; return True if anything changed."""
        changed = kind not in self._synced
        named = set(unreadable)
        for obj in objects:
            named.add(obj.key)
            changed = self.upsert(obj) or changed
        for key in self._objects[kind].keys() - named:
            changed = self.delete(kind, key) or changed
        self._synced.add(kind)
        return changed

    def forget(self, kind: Kind) -> None:
        """Drop all objects of a kind, as if it had never been listed."""
        for key in tuple(self._objects[kind]):
            self.delete(kind, key)
        self._synced.discard(kind)
        if kind.for_policies:
            self.policies.pause()

    def upsert(self, obj: WireObject, version: str = "") -> bool:
        """Add or replace one object; False if nothing relevant changed.

        `version` is the object's resourceVersion, where it is known.
        """
        kind = self._kind_of[type(obj)]
        objects, key = self._objects[kind], sys.intern(obj.key)
        known = objects.get(key)
        if known == obj:
            return False
        if not kind.relevant(obj):
            return self.delete(kind, key)
        trigger = None
        if isinstance(obj, EndpointSlice):
            obj, trigger = split_trigger(obj)
            if known == obj:
                return False
        objects[key] = obj
        if kind.for_policies:
            self.policies.note(kind, key)
            return True
        if isinstance(obj, Service):
            self._service_came(cast("Service | None", known), obj)
            self._note_version(key, version)
            return True
        if isinstance(obj, EndpointSlice):
            self._slice_came(cast("EndpointSlice | None", known), obj, trigger)
            self._note_version(_owner(obj), version)
            return True
        return self._view_changed(kind)

    def delete(self, kind: Kind, key: str) -> bool:
        """Remove one object; False if it was not known, or nothing relevant changed."""
        gone = self._objects[kind].pop(key, None)
        if gone is None:
            return False
        if kind.for_policies:
            self.policies.note(kind, key)
            return True
        if isinstance(gone, Service):
            self._touch(key)
            self._count(kind, key)
            self._incomplete.forget(key)
            return True
        if isinstance(gone, EndpointSlice):
            self._slice_gone(gone)
            return True
        return self._view_changed(kind)

    def touch_all(self) -> None:
        """Mark every service dirty, after a change of the node or the configuration."""
        for key in self._services.keys() | self._slices.services():
            self._touch(key)

    def touch(self, keys: Iterable[str]) -> None:
        """Mark services dirty."""
        for key in keys:
            self._touch(key)

    def dirty(self) -> list[ServiceInput]:
        """Every service that changed since its last commit, ordered by key."""
        return [self.read(key) for key in sorted(self.pending)]

    def read(self, key: str) -> ServiceInput:
        """The current state of one service."""
        ordered = tuple(sorted(self._slices.of(key), key=_name))
        return ServiceInput(key, self.pending.revision(key), self._services.get(key), ordered)

    def commit(self, applied: Iterable[ServiceInput]) -> list[Trigger]:
        """Note that every family applied these services; those that changed since they were read stay dirty.

        Returns the triggers of their changes.
        """
        return [trigger for each in applied for trigger in self.pending.settle(each.key, each.revision)]

    def _listed(self) -> bool:
        """Whether services can be incomplete: not before the first lists of both kinds are complete."""
        return self._synced >= {Kind.SERVICE, Kind.ENDPOINT_SLICE}

    def _touch(self, key: str) -> None:
        self._revision += 1
        self.pending.touch(key, self._revision)

    def _note_version(self, key: str, version: str) -> None:
        if version:
            self.pending.version(key, self._revision, version)

    def _count(self, kind: Kind, key: str) -> None:
        self._totals[kind] += 1
        self.pending.count(kind, key, self._revision)

    def _view_changed(self, kind: Kind) -> bool:
        """Count a change of a kind that no single service depends on; False if its view has not changed."""
        if kind is Kind.SERVICE_CIDR:
            ranges = ranges_of(cast("dict[str, ServiceCIDR]", self._objects[kind]).values())
            if ranges == self.service_ranges:
                return False
            self.service_ranges = ranges
        self._revision += 1
        return True

    def _service_came(self, known: Service | None, service: Service) -> None:
        key = sys.intern(service.key)
        self._touch(key)
        self._count(Kind.SERVICE, key)
        if self._listed():
            self._incomplete.service_came(known, service, self._slices.of(key))

    def _slice_came(
        self, known: EndpointSlice | None, endpoint_slice: EndpointSlice, trigger: Trigger | None
    ) -> None:
        owner = _owner(endpoint_slice)
        if known is not None and known.service_key != owner:
            self._slice_gone(known)
        first = not self._slices.of(owner)
        siblings = self._slices.put(owner, endpoint_slice)
        self._touch(owner)
        self._count(Kind.ENDPOINT_SLICE, owner)
        if self._listed():
            self._incomplete.slice_came(owner, self._services.get(owner), siblings, first=first)
        if trigger is not None:
            self.pending.trigger(owner, self._revision, trigger)

    def _slice_gone(self, known: EndpointSlice) -> None:
        owner = _owner(known)
        self._slices.remove(owner, known.key)
        self._touch(owner)
        self._count(Kind.ENDPOINT_SLICE, owner)
        self._incomplete.forget(owner)
        # The last trigger is that of an earlier change; the API has no time for the deletion of a slice.
        self.pending.forget_triggers(owner)


def _owner(endpoint_slice: EndpointSlice) -> str:
    """The key of a slice's service; every relevant slice has one."""
    return sys.intern(cast("str", endpoint_slice.service_key))


def _name(endpoint_slice: EndpointSlice) -> str:
    return endpoint_slice.metadata.name
