"""Configuration of the iptables rules of one family, from settings and node facts."""

import msgspec

from kproxy.addresses import Family
from kproxy.backends.core.base import LocalTraffic


class IptablesConfig(msgspec.Struct, frozen=True):
    """Settings of one family's rules.

    `node_port_addresses` are the local addresses that accept node ports, or None for all of them.
    `drop_invalid` is off where conntrack is liberal (net.netfilter.nf_conntrack_tcp_be_liberal).
    `count_invalid` and `count_localhost`: the nfacct counters that kube-proxy uses exist on this node.
    `large_cluster_endpoints`: above this many endpoints, comments are left out of endpoint rules.
    """

    family: Family
    masquerade_bit: int = 14
    masquerade_all: bool = False
    local_traffic: LocalTraffic | None = None
    localhost_node_ports: bool = True
    node_port_addresses: tuple[str, ...] | None = None
    random_fully: bool = True
    drop_invalid: bool = True
    count_invalid: bool = False
    count_localhost: bool = False
    large_cluster_endpoints: int = 1000

    @property
    def mark(self) -> str:
        """The masquerade mark as iptables-save prints it, e.g. `0x4000`."""
        return f"{1 << self.masquerade_bit:#x}"

    @property
    def masquerade(self) -> str:
        """The target that masquerades, with its options."""
        return "MASQUERADE --random-fully" if self.random_fully else "MASQUERADE"

    @property
    def localhost(self) -> bool:
        """Whether node ports answer on 127.0.0.1: IPv4 only, the kernel has no route_localnet for IPv6."""
        return self.localhost_node_ports and self.family is Family.IPV4
