"""Names of the IPVS mode's kernel objects, and of those that kube-proxy's IPVS mode leaves.

The device has kube-proxy's name, because operators and network plugins know it. The sets have their own
names: those of kube-proxy are limited to 65,536 entries, and kproxy's sets mark the virtual servers that they
list as made by kproxy, so no other state is needed.
"""

from collections.abc import Mapping
from functools import cache

import msgspec

from kproxy.addresses import Family
from kproxy.kernel.ipset.types import Entry, SetKind, SetSpec
from kproxy.kernel.ipvs.types import ServerId

DEVICE = "kube-ipvs0"

OWN_MARK = 0x306B
"""The firewall mark of packets that bypass IPVS, such as replies to connections that the node opened.

It has none of the bits that a kubelet (0x8000), kube-proxy (0x4000), Calico, Cilium or Weave use in chains
INPUT and OUTPUT.
"""

PREFIX = {Family.IPV4: "KPROXY-", Family.IPV6: "KPROXY-6-"}


class Sets(msgspec.Struct, frozen=True):
    """The sets of one family.

    cluster_ip, external, external_local: the addresses and ports of virtual servers, by masqueraded traffic:
    that from outside the pods; all; that of the node itself (external traffic policy Local).
    Together they list the virtual servers that kproxy made (`owned_servers`).
    no_endpoints, no_local_endpoints: frontends whose packets are rejected, or dropped.
    restricted: frontends with load-balancer source ranges; source_cidr and source_ip list allowed sources.
    loop_back: endpoint, port, endpoint: hairpin traffic.
    addresses: the addresses of the device.
    draining: virtual servers that no service wants, and that drain.
    """

    cluster_ip: SetSpec
    external: SetSpec
    external_local: SetSpec
    no_endpoints: SetSpec
    no_local_endpoints: SetSpec
    restricted: SetSpec
    source_cidr: SetSpec
    source_ip: SetSpec
    loop_back: SetSpec
    addresses: SetSpec
    draining: SetSpec

    @property
    def all(self) -> tuple[SetSpec, ...]:
        """Every set."""
        return msgspec.structs.astuple(self)

    @property
    def owned_servers(self) -> tuple[SetSpec, SetSpec, SetSpec]:
        """The sets that together list every virtual server that kproxy made."""
        return self.cluster_ip, self.external, self.external_local


@cache
def sets(family: Family) -> Sets:
    """The sets of one family."""

    def spec(name: str, kind: SetKind) -> SetSpec:
        return SetSpec(PREFIX[family] + name, kind, family)

    return Sets(
        cluster_ip=spec("CLUSTER-IP", SetKind.IP_PORT),
        external=spec("EXTERNAL-IP", SetKind.IP_PORT),
        external_local=spec("EXTERNAL-IP-LOCAL", SetKind.IP_PORT),
        no_endpoints=spec("NO-ENDPOINTS", SetKind.IP_PORT),
        no_local_endpoints=spec("NO-LOCAL-ENDPOINTS", SetKind.IP_PORT),
        restricted=spec("SOURCE-RANGES", SetKind.IP_PORT),
        source_cidr=spec("SOURCE-CIDR", SetKind.IP_PORT_NET),
        source_ip=spec("SOURCE-IP", SetKind.IP_PORT_IP),
        loop_back=spec("LOOP-BACK", SetKind.IP_PORT_IP),
        addresses=spec("IPVS-IPS", SetKind.IP),
        draining=spec("DRAINING", SetKind.IP_PORT),
    )


_KUBE_PROXY_SET_NAMES = (
    "CLUSTER-IP",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
    "LOAD-BALANCER",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-SOURCE-CIDR",
    "LOAD-BALANCER-SOURCE-IP",
    "LOOP-BACK",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-SCTP-HASH",
    "NODE-PORT-TCP",
    "NODE-PORT-UDP",
)
_KUBE_PROXY_PREFIX = {Family.IPV4: "KUBE-", Family.IPV6: "KUBE-6-"}
_NAME_MAX = 31

KUBE_PROXY_SETS: Mapping[Family, frozenset[str]] = {
    family: frozenset((prefix + name)[:_NAME_MAX] for name in _KUBE_PROXY_SET_NAMES)
    for family, prefix in _KUBE_PROXY_PREFIX.items()
}
"""The sets of kube-proxy's IPVS mode (pkg/proxy/ipvs/ipset.go); it cuts long names."""


def kube_proxy_servers(family: Family) -> tuple[SetSpec, ...]:
    """The sets in which kube-proxy lists addresses and ports of its virtual servers (not its node ports)."""
    prefix = _KUBE_PROXY_PREFIX[family]
    return tuple(
        SetSpec(prefix + name, SetKind.IP_PORT, family)
        for name in ("CLUSTER-IP", "EXTERNAL-IP", "EXTERNAL-IP-LOCAL", "LOAD-BALANCER")
    )


def entry_of(server: ServerId) -> Entry:
    """The entry that stands for a virtual server in sets of addresses and ports."""
    return Entry(server.ip, server.protocol, server.port)


def server_of(entry: Entry) -> ServerId:
    """The virtual server for which an entry stands."""
    return ServerId(entry.protocol, entry.ip, entry.port)
