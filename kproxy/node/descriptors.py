"""How the servers share the descriptors of this process with all that must never lack one.

A sync starts tools and opens netlink sockets; a watch opens connections. Remote clients multiply connections
to the servers, and tenants multiply health-check ports; both are bounded, so that they cannot use up what
syncs and watches need.
"""

import msgspec

RESERVED = 256
"""Descriptors that no server uses. The rest of the process holds about 40, a running tool about 10 more."""

_HEALTHZ, _METRICS, _CHECKS = 256, 128, 512


class DescriptorShares(msgspec.Struct, frozen=True):
    """The most descriptors of each server.

    `healthz`, `metrics` and `checks` count open connections: of the two servers, and of all health-check
    ports together. `ports` counts listening health-check sockets.
    """

    healthz: int = _HEALTHZ
    metrics: int = _METRICS
    checks: int = _CHECKS
    ports: int = 1 << 16


def share(limit: int) -> DescriptorShares:
    """Divide `limit` descriptors: RESERVED are kept back, at most three quarters; the servers get the rest.

    Of that, at least half is for health-check ports.
    """
    left = limit - min(RESERVED, limit * 3 // 4)
    healthz = min(_HEALTHZ, max(1, left // 6))
    metrics = min(_METRICS, max(1, left // 12))
    checks = min(_CHECKS, max(1, left // 4))
    return DescriptorShares(healthz, metrics, checks, max(1, left - healthz - metrics - checks))
