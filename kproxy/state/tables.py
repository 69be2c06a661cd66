"""The objects in force and the services that changed since the last successful apply.

A service is dirty from the moment anything about it changes until `commit` is called with the revision at
which it was read: a change that arrives while an older one is being applied keeps it dirty, and a failed
apply simply does not commit. That is how a change is never lost.
"""

from collections.abc import Collection, Iterable, Sequence

import msgspec

from kproxy.state.decode import Kind, WireObject
from kproxy.state.wire import EndpointSlice, Node, Service


class ServiceInput(msgspec.Struct, frozen=True, gc=False):
    """All that is known of one service: the object (None: it is gone) and its slices, ordered by name."""

    key: str
    revision: int
    service: Service | None
    slices: tuple[EndpointSlice, ...]


class Tables:
    """Services, EndpointSlices and the Node, with dirty tracking. Not thread-safe: the owner locks."""

    def __init__(self) -> None:
        self._services: dict[str, Service] = {}
        self._slices: dict[str, EndpointSlice] = {}
        self._slices_of: dict[str, dict[str, EndpointSlice]] = {}
        self._dirty: dict[str, int] = {}
        self._revision = 0
        self._synced: set[Kind] = set()
        self.node: Node | None = None

    @property
    def revision(self) -> int:
        """Grows with every relevant change."""
        return self._revision

    @property
    def synced(self) -> frozenset[Kind]:
        """The kinds whose first complete list has arrived."""
        return frozenset(self._synced)

    @property
    def pending(self) -> int:
        """How many services changed since their last commit."""
        return len(self._dirty)

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
            return True
        if kind is Kind.ENDPOINT_SLICE:
            return self._forget_slice(key)
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

    def commit(self, applied: Iterable[ServiceInput]) -> None:
        """Clear the dirty mark of services that are applied and have not changed since they were read."""
        for each in applied:
            if self._dirty.get(each.key) == each.revision:
                del self._dirty[each.key]

    def _keys(self, kind: Kind) -> set[str]:
        if kind is Kind.SERVICE:
            return set(self._services)
        if kind is Kind.ENDPOINT_SLICE:
            return set(self._slices)
        return {self.node.key} if self.node is not None else set()

    def _touch(self, key: str) -> None:
        self._revision += 1
        self._dirty[key] = self._revision

    def _upsert_service(self, service: Service) -> bool:
        labels = service.metadata.labels
        if labels is not None and labels.service_proxy_name is not None:
            return self.delete(Kind.SERVICE, service.key)
        if self._services.get(service.key) == service:
            return False
        self._services[service.key] = service
        self._touch(service.key)
        return True

    def _upsert_slice(self, piece: EndpointSlice) -> bool:
        labels = piece.metadata.labels
        owner = piece.service_key
        if owner is None or (labels is not None and labels.headless is not None):
            return self._forget_slice(piece.key)
        known = self._slices.get(piece.key)
        if known == piece:
            return False
        if known is not None and known.service_key != owner:
            self._forget_slice(piece.key)
        self._slices[piece.key] = piece
        self._slices_of.setdefault(owner, {})[piece.key] = piece
        self._touch(owner)
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
        return True
