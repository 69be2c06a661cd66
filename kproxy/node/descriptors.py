"""Limit the descriptors of the servers, so that syncs and watches always have enough.

A sync starts tools and opens netlink sockets; a watch opens connections. Remote clients multiply connections
to the servers, and tenants multiply health-check ports; both are bounded, so that they cannot use up what
syncs and watches need.
"""

import msgspec

RESERVED = 256
"""Descriptors reserved from the servers. The process uses about 40 otherwise, a running tool 10 more."""

_HEALTHZ, _METRICS, _CHECKS = 256, 128, 512


class DescriptorShares(msgspec.Struct, frozen=True):
    """The maximum number of descriptors of each server.

    `healthz`, `metrics` and `checks` count open connections: of the two servers, and of all health-check
    ports together. `ports` counts listening health-check sockets.
    """

    healthz: int = _HEALTHZ
    metrics: int = _METRICS
    checks: int = _CHECKS
    ports: int = 1 << 16


def share(limit: int) -> DescriptorShares:
    """Divide `limit` descriptors: RESERVED ones, but at most 75 %, are kept back; the servers get the rest.

    At least half of the rest is for health-check ports.
    """
    left = limit - min(RESERVED, limit * 3 // 4)
    healthz = min(_HEALTHZ, max(1, left // 6))
    metrics = min(_METRICS, max(1, left // 12))
    checks = min(_CHECKS, max(1, left // 4))
    return DescriptorShares(healthz, metrics, checks, max(1, left - healthz - metrics - checks))
