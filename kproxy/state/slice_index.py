"""The index from services to their EndpointSlices. It refers to the objects of the tables."""

from collections.abc import Collection
from collections.abc import Set as AbstractSet

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
    """Service key -> its slices. A service without slices has no entry. Not thread-safe.

    Most services have one slice, which has no dictionary of its own.
    """

    def __init__(self) -> None:
        self._single: dict[str, EndpointSlice] = {}
        self._several: dict[str, dict[str, EndpointSlice]] = {}

    def of(self, service: str) -> Collection[EndpointSlice]:
        """The slices of one service."""
        single = self._single.get(service)
        return self._several.get(service, {}).values() if single is None else (single,)

    def services(self) -> AbstractSet[str]:
        """The keys of all services that have slices."""
        return self._single.keys() | self._several.keys()

    def put(self, service: str, endpoint_slice: EndpointSlice) -> Collection[EndpointSlice]:
        """Add or replace a slice; return all slices of its service."""
        single = self._single.get(service)
        if service not in self._several and (single is None or single.key == endpoint_slice.key):
            self._single[service] = endpoint_slice
            return (endpoint_slice,)
        if single is not None:
            self._several[service] = {single.key: self._single.pop(service)}
        siblings = self._several[service]
        siblings[endpoint_slice.key] = endpoint_slice
        return siblings.values()

    def remove(self, service: str, key: str) -> None:
        """Remove a slice of a service. Raises KeyError if the service has no such slice."""
        single = self._single.get(service)
        if single is not None:
            if single.key != key:
                raise KeyError(key)
            del self._single[service]
            return
        siblings = self._several[service]
        del siblings[key]
        if len(siblings) == 1:
            del self._several[service]
            self._single[service] = next(iter(siblings.values()))
