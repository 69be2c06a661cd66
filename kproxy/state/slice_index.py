"""The index from services to their EndpointSlices. It refers to the objects of the tables."""

from collections.abc import Collection, KeysView, Mapping

import msgspec

from kproxy.state.wire import EndpointSlice


class Trigger(msgspec.Struct, frozen=True, gc=False):
    """The time of the cause of a change: the slice's key and address type, the annotation's text."""

    slice: str
    address_type: str
    text: str


def split_trigger(endpoint_slice: EndpointSlice) -> tuple[EndpointSlice, Trigger | None]:
    """Return the slice without annotations, and its trigger.

    The trigger is not part of a slice's state: slices that differ only in it must compare equal.
    """
    annotations = endpoint_slice.metadata.annotations
    if annotations is None:
        return endpoint_slice, None
    bare = msgspec.structs.replace(
        endpoint_slice, metadata=msgspec.structs.replace(endpoint_slice.metadata, annotations=None)
    )
    if annotations.trigger_time is None:
        return bare, None
    return bare, Trigger(endpoint_slice.key, endpoint_slice.address_type, annotations.trigger_time)


class SliceIndex:
    """Service key -> slice key -> slice. A service without slices has no entry. Not thread-safe."""

    def __init__(self) -> None:
        self._of: dict[str, dict[str, EndpointSlice]] = {}

    def of(self, service: str) -> Mapping[str, EndpointSlice]:
        """The slices of one service by key."""
        return self._of.get(service, {})

    def services(self) -> KeysView[str]:
        """The keys of all services that have slices."""
        return self._of.keys()

    def put(self, service: str, endpoint_slice: EndpointSlice) -> Collection[EndpointSlice]:
        """Add or replace a slice; return all slices of its service."""
        siblings = self._of.setdefault(service, {})
        siblings[endpoint_slice.key] = endpoint_slice
        return siblings.values()

    def remove(self, service: str, key: str) -> None:
        """Remove a slice of a service. Raises KeyError if the service has no such slice."""
        siblings = self._of[service]
        del siblings[key]
        if not siblings:
            del self._of[service]
