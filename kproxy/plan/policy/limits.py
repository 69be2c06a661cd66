"""What one NetworkPolicy may cost: its bounds, each with the reason.

All tenants share one process and one kernel. The work for a policy grows linearly with its size; where two of
its lists are multiplied, as the selectors of peers with the pods of the cluster, or the ports of a rule with
its peers, the product is bounded. A policy beyond a bound is one that cannot be obeyed: it closes its pods
and is named with field, value and limit, because to leave out rules or exceptions of it would open or break
something silently. The API server has only the size of an object (1.5 MB). The bounds are far above what
clusters use.
"""

RULES = 1_000
"""Rules of both directions: each is at least one rule of the kernel (0.08 us a packet) in each group."""

PEERS = 5_000
"""Entries of all `from` and `to` lists: published lists of address ranges have up to 2,000."""

PODS_PEERS = 500
"""Peers with selectors: each is a set in the kernel, and is compared with the pods of its namespaces."""

WIDE_PEERS = 50
"""Different peers with selectors for pods of more than one namespace.

Each is compared with the labels of all pods, and may have all their addresses: 10,000 pods without two that
have equal labels take 25 ms, and 1 MB in the kernel.
"""

EXCEPTS = 5_000
"""Entries of all `except` lists."""

RANGES = 20_000
"""Address ranges of one family that remain of all ipBlocks without their exceptions.

Each exception cuts a block into up to 32 (IPv4) or 128 (IPv6) ranges.
"""

PORTS = 2_000
"""Entries of all `ports` lists: a passive FTP server without endPort has about 1,000."""

PORT_NAMES = 50
"""Different port names: the pods of the cluster are searched for each (1 ms for 10,000)."""

COMBINATIONS = 2_000
"""Peers x ports of each rule, added up: the number of rules in the kernel.

All ipBlocks of a rule count as one peer, and all port numbers of a protocol as one port.
"""

REQUIREMENTS = 100
"""Requirements of one selector."""

REQUIREMENTS_PER_POLICY = 1_000
"""Requirements of all its selectors, each of which may be compared with all pods."""

VALUES = 1_000
"""Values of one selector; there are selectors that list all namespaces of a platform."""

DEFECTS = 20
"""Defects of one policy that are named; one more says how many there are besides."""
