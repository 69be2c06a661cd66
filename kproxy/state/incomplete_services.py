"""Track incomplete services: the Service arrived before its EndpointSlices, or they before it.

Objects that are created together arrive through two watches. A sync may wait briefly for the missing part,
because one sync for both costs half as much as two. That part may never arrive, so a sync waits only once.
"""

import itertools
from collections.abc import Iterable

from kproxy.state.wire import EndpointSlice, Service

_MOST_SLICES = 100
_MOST_PORTS = 2000
"""Ports of all slices together."""


class IncompleteServices:
    """Holds the services with a new part that has no effect without a missing one."""

    def __init__(self) -> None:
        self._keys: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._keys)

    def service_came(self, old: Service | None, new: Service, slices: Iterable[EndpointSlice]) -> None:
        """Note that a Service is new or has changed."""
        if not _ports(new) <= _ports(old) and lacks_slices(new, slices):
            self._keys.add(new.key)
        else:
            self._settle(new.key, new, slices)

    def slice_came(
        self, key: str, service: Service | None, slices: Iterable[EndpointSlice], *, first: bool
    ) -> None:
        """Note that one of the `slices` of a service has changed, or is new; `first`: there were none."""
        if service is None and first:
            self._keys.add(key)
        else:
            self._settle(key, service, slices)

    def forget(self, key: str) -> None:
        """Note that a Service or slice of this key is gone: no further part is expected."""
        self._keys.discard(key)

    def forget_all(self) -> None:
        """Note that everything that arrived is being applied."""
        self._keys.clear()

    def _settle(self, key: str, service: Service | None, slices: Iterable[EndpointSlice]) -> None:
        if key in self._keys and service is not None and not lacks_slices(service, slices):
            self._keys.discard(key)


def lacks_slices(service: Service, slices: Iterable[EndpointSlice]) -> bool:
    """Whether a slice is missing: of one of the Service's families, or with one of its ports.

    The controller keeps at least one slice for each family of a Service; one that has no endpoints has no
    ports either. A service with very many slices or ports counts as complete: this is asked for each of its
    slices, and to look at all the others each time would take longer than a sync without the missing part.
    """
    slices = list(itertools.islice(slices, _MOST_SLICES + 1))
    if len(slices) > _MOST_SLICES:
        return False
    if sum(len(endpoint_slice.ports or ()) for endpoint_slice in slices) > _MOST_PORTS:
        return False
    ports = _ports(service)
    named: dict[str, set[str]] = {}
    for endpoint_slice in slices:
        names = (
            {port.name or "" for port in endpoint_slice.ports or ()} if endpoint_slice.endpoints else ports
        )
        named.setdefault(endpoint_slice.address_type, set()).update(names)
    return bool(ports) and any(not ports <= named.get(family, set()) for family in _families(service))


def _ports(service: Service | None) -> set[str]:
    """The names of the ports that a proxy has to serve."""
    if service is None or service.spec is None or not _families(service):
        return set()
    return {port.name or "" for port in service.spec.ports or ()}


def _families(service: Service) -> set[str]:
    spec = service.spec
    if spec is None or spec.type == "ExternalName":
        return set()
    ips = spec.cluster_ips or ((spec.cluster_ip,) if spec.cluster_ip else ())
    return {"IPv6" if ":" in ip else "IPv4" for ip in ips if ip and ip != "None"}
