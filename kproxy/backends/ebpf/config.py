"""Configuration of the socket table of one family, from settings and node facts."""

import msgspec

from kproxy.addresses import Family


class SocketConfig(msgspec.Struct, frozen=True):
    """Settings of one family.

    `local_addresses`: all addresses of the node; a cluster IP among them, as NodeLocal DNSCache has one, is
    not translated at the socket. `masquerade_all`: clients are to be masqueraded, which only packets can be.
    `enabled`: False empties the table. `drift_check_interval`: seconds between quick checks of the maps: the
    kernel does not count their changes.
    """

    family: Family
    local_addresses: frozenset[str] = frozenset()
    masquerade_all: bool = False
    enabled: bool = True
    drift_check_interval: float = 30.0
