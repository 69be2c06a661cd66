"""What one Service may cost: every bound of its planning in one place, with the reason for each.

All tenants share one process and one kernel, so a Service is bounded in what it may cost them. Work grows
linearly with the size of an object, and a product of two of its lists, such as addresses x ports, is cut.
What goes beyond a bound is refused by name: a Problem says field, value and limit, and the rest of the
Service is served. The defaults are far above what clusters use; the API server itself has only the size of
an object (1.5 MB), 1,000 endpoints and 20,000 ports a slice.
"""

import msgspec


class Limits(msgspec.Struct, frozen=True):
    """The bounds that are settings, because clusters differ: section `limits` of KproxyConfiguration.

    Each counts for one Service and one IP family.

    `endpoints_per_port`: a plan costs about 5 us an endpoint, and the largest Services known have 5,000 to
    10,000. The endpoints kept are usable ones before others, then those on this node, then by address.
    `endpoints_per_service`: the sum over all ports, each of which has a list of its own: 10,000 x 5. An
    endpoint of a service with session affinity counts as AFFINITY_COUNTS.
    `ports_per_service`: a media server may have one port a stream; each needs rules or map elements.
    `frontends_per_service`: (cluster IP + external IPs + load-balancer addresses) x ports, plus node ports:
    5,000 ports with one outside address.
    `elements_per_service`: the kernel's objects for frontends, endpoints and weights: nftables map elements
    or IPVS destinations, of which each takes 100 to 500 bytes of kernel memory.
    `source_ranges_per_service`: published lists of providers have up to 2,000. Clients in a range that is
    left out are not admitted.
    `log_lines_per_minute`: lines about problems of one Service, so that a flapping one cannot fill the disk.
    """

    endpoints_per_port: int = 20_000
    endpoints_per_service: int = 50_000
    ports_per_service: int = 5_000
    frontends_per_service: int = 10_000
    elements_per_service: int = 200_000
    source_ranges_per_service: int = 5_000
    log_lines_per_minute: int = 30


DEFAULT_LIMITS = Limits()

AFFINITY_COUNTS = 25
"""Endpoints as which one with session affinity counts, so that 2,000 of them are served.

Each is two rules, which are written together with all others of its port: 0.1 ms; a map element: 0.01 ms.
"""

RANGES_BY_PORTS = 50_000
"""Source ranges x ports of a Service: iptables has a rule for each pair. 5,000 ranges with 10 ports."""

ANNOTATION_CHARACTERS = 16_384
"""Longest annotation that is read: 100 selectors with names of 150 characters. The API allows 256 KB."""

YAML_CHARACTERS = 4_096
"""Longest annotation that is read as YAML, whose parser takes 20 us a character; JSON has no such bound."""

SELECTORS = 100
"""Selectors of kproxy.io/weights: each is compared with each endpoint."""

GLOB_CHARACTERS = 512
"""Longest selector: the longest name of a pod or node has 253 characters (RFC 1123, core/v1 validation)."""

PROBLEMS_PER_SERVICE = 100
"""Problems kept of one Service; one more says how many there are besides."""

EXAMPLES = 3
"""Equal problems, such as addresses that one other Service has, that are named one by one."""
