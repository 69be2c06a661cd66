"""Configuration of the nftables mode of one family, from settings and node facts."""

import msgspec

from kproxy.addresses import Family
from kproxy.backends.core.base import LocalTraffic


class NftablesConfig(msgspec.Struct, frozen=True):
    """Settings of one family.

    `node_addresses` are the local addresses that accept node ports. `reject_unallocated`: packets to a port
    of a cluster IP that no service has are rejected, not forwarded. `service_cidrs`: packets to addresses in
    these that are no service's cluster IP are dropped.
    """

    family: Family
    masquerade_bit: int = 14
    masquerade_all: bool = False
    local_traffic: LocalTraffic | None = None
    node_addresses: tuple[str, ...] = ()
    reject_unallocated: bool = True
    service_cidrs: tuple[str, ...] = ()

    @property
    def mark(self) -> str:
        """The masquerade mark, e.g. `0x4000`."""
        return f"{1 << self.masquerade_bit:#x}"

    @property
    def ip(self) -> str:
        """The family's name in nftables, of tables and of header expressions alike: `ip` or `ip6`."""
        return "ip" if self.family is Family.IPV4 else "ip6"
