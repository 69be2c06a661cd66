"""Share equal values of endpoints in memory: node names, zones, conditions, ports.

100,000 endpoints on 1,000 nodes have few different conditions and ports, but each decoded object has its own
copies. Long lists of ports are not shared: they are rare, and the cache would keep those of a tenant.
"""

import sys
from functools import lru_cache

from msgspec.structs import force_setattr

from kproxy.state.wire import EndpointConditions, EndpointPort, EndpointSlice

_LONGEST_SHARED = 64
"""Most ports of a list that is shared; the API allows 20,000."""

Ports = tuple[EndpointPort, ...]


def share(decoded: EndpointSlice) -> None:
    """Replace parts of a newly decoded slice by equal shared ones; nothing else may refer to it yet."""
    if decoded.ports is not None and len(decoded.ports) <= _LONGEST_SHARED:
        force_setattr(decoded, "ports", _ports(decoded.ports))
    for endpoint in decoded.endpoints or ():
        if endpoint.conditions is not None:
            force_setattr(endpoint, "conditions", _conditions(endpoint.conditions))
        if endpoint.node_name is not None:
            force_setattr(endpoint, "node_name", sys.intern(endpoint.node_name))
        if endpoint.zone is not None:
            force_setattr(endpoint, "zone", sys.intern(endpoint.zone))
        if endpoint.target_ref is not None and endpoint.target_ref.kind is not None:
            force_setattr(endpoint.target_ref, "kind", sys.intern(endpoint.target_ref.kind))


@lru_cache(maxsize=64)
def _conditions(conditions: EndpointConditions) -> EndpointConditions:
    return conditions


@lru_cache(maxsize=4096)
def _ports(ports: Ports) -> Ports:
    return ports
