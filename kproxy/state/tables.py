"""The objects in force and the services that changed since the last successful apply.

A service is dirty from the moment anything about it changes until `commit` is called with the revision at
which it was read: a change that arrives while an older one is being applied keeps it dirty, and a failed
apply simply does not commit. That is how a change is never lost. The same marks tell how long a change of
endpoints took: its trigger waits here until the change is committed.
"""

from collections.abc import Collection, Iterable, Sequence

import msgspec

from kproxy.addresses import Family
from kproxy.state.decode import Kind, WireObject
from kproxy.state.incomplete_services import IncompleteServices
from kproxy.state.service_cidrs import ranges_of
from kproxy.state.wire import EndpointSlice, Node, Service, ServiceCIDR

_FAMILIES = frozenset(family.value for family in Family)
"""Address types that rules can lead to: names (FQDN) are for others to resolve."""


class ServiceInput(msgspec.Struct, frozen=True, gc=False):
    """All that is known of one service: the object (None: it is gone) and its slices, ordered by name."""

    key: str
    revision: int
    service: Service | None
    slices: tuple[EndpointSlice, ...]


class Trigger(msgspec.Struct, frozen=True, gc=False):
    """What a slice said of the moment its cause changed: the slice's key, its address type and the text."""

    slice: str
    address_type: str
    text: str


class Changes(msgspec.Struct, frozen=True):
    """Relevant changes of one kind: how many there were, and how many services wait for one to be applied."""

    total: int
    pending: int


class Tables:
    """All objects, with dirty tracking of services. Not thread-safe: the owner locks."""

    def __init__(self) -> None:
        self._services: dict[str, Service] = {}
        self._slices: dict[str, EndpointSlice] = {}
        self._slices_of: dict[str, dict[str, EndpointSlice]] = {}
        self._dirty: dict[str, int] = {}
        self._revision = 0
        self._totals = {Kind.SERVICE: 0, Kind.ENDPOINT_SLICE: 0}
        self._waiting: dict[Kind, dict[str, int]] = {kind: {} for kind in self._totals}
        self._triggers: dict[str, list[tuple[int, Trigger]]] = {}
        self._synced: set[Kind] = set()
        self._incomplete = IncompleteServices()
        self._service_cidrs: dict[str, ServiceCIDR] = {}
        self.node: Node | None = None
        self.service_ranges: tuple[str, ...] = ()
        """The ranges of all ServiceCIDRs, sorted, without duplicates; another object after each change."""

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
        """How many Services there are."""
        return len(self._services)

    @property
    def pending(self) -> int:
        """How many services changed since their last commit."""
        return len(self._dirty)

    def is_behind(self, revision: int) -> bool:
        """Whether a service that changed by this revision, and not since, waits for its commit."""
        return any(changed <= revision for changed in self._dirty.values())

    @property
    def has_incomplete(self) -> bool:
        """Whether a service that came since the last `settle` lacks its Service or slices."""
        return bool(self._incomplete)

    def settle(self) -> None:
        """Take what there is for all there will be."""
        self._incomplete.forget_all()

    def changes(self, kind: Kind) -> Changes:
        """How many changes of Services or EndpointSlices there were, and what waits of them."""
        return Changes(self._totals[kind], len(self._waiting[kind]))

    def replace(self, kind: Kind, objects: Sequence[WireObject], unreadable: Collection[str] = ()) -> bool:
        """Make `objects` the whole of `kind`, but keep what is known of `unreadable`; True if changed."""
        before = self._revision
        named = set(unreadable)
        for obj in objects:
            named.add(obj.key)
            self.upsert(obj)
        for key in self._keys(kind) - named:
            self.delete(kind, key)
        first = kind not in self._synced
        self._synced.add(kind)
        return first or self._revision != before

    def upsert(self, obj: WireObject) -> bool:
        """Add or replace one object; False if nothing relevant changed."""
        if isinstance(obj, Service):
            return self._upsert_service(obj)
        if isinstance(obj, EndpointSlice):
            return self._upsert_slice(obj)
        if isinstance(obj, ServiceCIDR):
            return self._upsert_service_cidr(obj)
        if self.node == obj:
            return False
        self.node = obj
        self._revision += 1
        return True

    def delete(self, kind: Kind, key: str) -> bool:
        """Remove one object; False if it was not known."""
        if kind is Kind.SERVICE:
            if self._services.pop(key, None) is None:
                return False
            self._touch(key)
            self._count(kind, key)
            self._incomplete.forget(key)
            return True
        if kind is Kind.ENDPOINT_SLICE:
            return self._forget_slice(key)
        if kind is Kind.SERVICE_CIDR:
            return self._service_cidrs.pop(key, None) is not None and self._read_ranges()
        if self.node is None or self.node.key != key:
            return False
        self.node = None
        self._revision += 1
        return True

    def touch_all(self) -> None:
        """Mark every service dirty: something that all of them depend on (the node, the config) changed."""
        for key in self._services.keys() | self._slices_of.keys():
            self._touch(key)

    def touch(self, keys: Iterable[str]) -> None:
        """Mark services dirty."""
        for key in keys:
            self._touch(key)

    def dirty(self) -> list[ServiceInput]:
        """Every service that changed since its last commit, ordered by key."""
        return [self.read(key) for key in sorted(self._dirty)]

    def read(self, key: str) -> ServiceInput:
        """What is known of one service now."""
        slices = self._slices_of.get(key, {})
        ordered = tuple(slices[name] for name in sorted(slices))
        return ServiceInput(key, self._dirty.get(key, 0), self._services.get(key), ordered)

    def commit(self, applied: Iterable[ServiceInput]) -> list[Trigger]:
        """Clear the dirty mark of services that are applied and have not changed since they were read.

        Returns the triggers of the changes that are applied now.
        """
        done: list[Trigger] = []
        for each in applied:
            if self._dirty.get(each.key) == each.revision:
                del self._dirty[each.key]
            for waiting in self._waiting.values():
                if waiting.get(each.key, each.revision + 1) <= each.revision:
                    del waiting[each.key]
            triggers = self._triggers.pop(each.key, None)
            if triggers is None:
                continue
            done += [trigger for revision, trigger in triggers if revision <= each.revision]
            if later := [entry for entry in triggers if entry[0] > each.revision]:
                self._triggers[each.key] = later
        return done

    def _listed(self) -> bool:
        """Whether what comes is news: before both lists are complete, everything is half of something."""
        return self._synced >= {Kind.SERVICE, Kind.ENDPOINT_SLICE}

    def _keys(self, kind: Kind) -> set[str]:
        if kind is Kind.SERVICE:
            return set(self._services)
        if kind is Kind.ENDPOINT_SLICE:
            return set(self._slices)
        if kind is Kind.SERVICE_CIDR:
            return set(self._service_cidrs)
        return {self.node.key} if self.node is not None else set()

    def _touch(self, key: str) -> None:
        self._revision += 1
        self._dirty[key] = self._revision

    def _count(self, kind: Kind, key: str) -> None:
        self._totals[kind] += 1
        self._waiting[kind][key] = self._revision

    def _upsert_service(self, service: Service) -> bool:
        labels = service.metadata.labels
        if labels is not None and labels.service_proxy_name is not None:
            return self.delete(Kind.SERVICE, service.key)
        known = self._services.get(service.key)
        if known == service:
            return False
        self._services[service.key] = service
        self._touch(service.key)
        self._count(Kind.SERVICE, service.key)
        if self._listed():
            self._incomplete.service_came(known, service, self._slices_of.get(service.key, {}).values())
        return True

    def _upsert_service_cidr(self, obj: ServiceCIDR) -> bool:
        if self._service_cidrs.get(obj.key) == obj:
            return False
        self._service_cidrs[obj.key] = obj
        return self._read_ranges()

    def _read_ranges(self) -> bool:
        """Take the ranges as they are now; False if they are as before, whoever has them."""
        ranges = ranges_of(self._service_cidrs.values())
        if ranges == self.service_ranges:
            return False
        self.service_ranges = ranges
        self._revision += 1
        return True

    def _upsert_slice(self, piece: EndpointSlice) -> bool:
        labels = piece.metadata.labels
        owner = piece.service_key
        annotations = piece.metadata.annotations
        if annotations is not None:
            # When it changed is no part of what it says: without it, equal slices compare equal.
            piece = msgspec.structs.replace(
                piece, metadata=msgspec.structs.replace(piece.metadata, annotations=None)
            )
        headless = labels is not None and labels.headless is not None
        if owner is None or headless or piece.address_type not in _FAMILIES:
            return self._forget_slice(piece.key)
        known = self._slices.get(piece.key)
        if known == piece:
            return False
        if known is not None and known.service_key != owner:
            self._forget_slice(piece.key)
        self._slices[piece.key] = piece
        siblings = self._slices_of.setdefault(owner, {})
        first = not siblings
        siblings[piece.key] = piece
        self._touch(owner)
        self._count(Kind.ENDPOINT_SLICE, owner)
        if self._listed():
            self._incomplete.slice_came(owner, self._services.get(owner), siblings.values(), first=first)
        if annotations is not None and annotations.trigger_time is not None:
            trigger = Trigger(piece.key, piece.address_type, annotations.trigger_time)
            self._triggers.setdefault(owner, []).append((self._revision, trigger))
        return True

    def _forget_slice(self, key: str) -> bool:
        known = self._slices.pop(key, None)
        if known is None:
            return False
        owner = known.service_key
        if owner is not None:
            siblings = self._slices_of[owner]
            del siblings[key]
            if not siblings:
                del self._slices_of[owner]
            self._touch(owner)
            self._count(Kind.ENDPOINT_SLICE, owner)
            self._incomplete.forget(owner)
            # The last trigger was that of an earlier change; when the slice's end began, nobody says.
            self._triggers.pop(owner, None)
        return True
