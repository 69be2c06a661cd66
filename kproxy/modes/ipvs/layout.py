"""The iptables rules of the IPVS mode: a fixed number, which look up addresses in sets.

IPVS translates only destinations. Rules masquerade sources, drop and reject packets, and prevent that a port
of a service address that no service has reaches a socket of the node. IPVS takes packets in INPUT after table
filter, and in OUTPUT before it (net/netfilter/ipvs/ip_vs_core.c), so rules that concern the node's own
traffic too are in table mangle.

Packets from pods and outsiders to services pass filter INPUT on their way in, and filter OUTPUT on their way
out, where a host firewall may drop them. They are accepted in both, because a firewall that suits
kube-proxy's other modes has no rules for them.

Only services with the external traffic policy Local have rules of their own. Pods and the node itself may
use all their endpoints, outsiders only the local ones, and one virtual server cannot do both: pods and the
node are led to the iptables mode's chain for all endpoints, which translates before IPVS.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from kproxy.addresses import Family, host_cidr
from kproxy.backends.iptables import names
from kproxy.backends.iptables.base_chains import (
    FILTER_NODE_PORTS,
    TABLES,
    Jump,
    jump,
    masquerade_chains,
)
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.iptables.layout import ConfiguredLayout
from kproxy.backends.iptables.names import ChainId
from kproxy.backends.iptables.port_rules import health_check_rule
from kproxy.backends.iptables.render import cluster_policy_chains
from kproxy.backends.iptables.rules import ServiceRules, SharedLines
from kproxy.backends.iptables.shared import Flat, Placement
from kproxy.backends.ipvs.names import OWN_MARK, Sets, sets
from kproxy.kernel.ipset.types import SetSpec
from kproxy.plan.model import PortPlan, ServicePlan

_NEW = "-m conntrack --ctstate NEW "
_SERVICES = (names.KUBE_SERVICES,)
_SHORTCUT: ChainId = ("nat", names.KUBE_IPVS_SHORTCUT)
_SHARED: Mapping[str, Placement] = {
    "nat_services": Flat(_SHORTCUT),
    "filter_node_ports": Flat(FILTER_NODE_PORTS),
}

IPVS_JUMPS: tuple[Jump, ...] = (
    jump("mangle", "PREROUTING", names.KUBE_PROXY_FIREWALL, "kubernetes ipvs firewall", _NEW),
    jump("mangle", "OUTPUT", names.KUBE_PROXY_FIREWALL, "kubernetes ipvs firewall", _NEW),
    jump("mangle", "FORWARD", names.KUBE_IPVS_MISSED, "kubernetes ipvs missed packets"),
    jump("mangle", "INPUT", names.KUBE_IPVS_OWN, "kubernetes ipvs own connections"),
    jump("mangle", "OUTPUT", names.KUBE_IPVS_OWN, "kubernetes ipvs own connections"),
    jump("nat", "PREROUTING", names.KUBE_IPVS_SERVICES, "kubernetes ipvs services", after=_SERVICES),
    jump("nat", "OUTPUT", names.KUBE_IPVS_SERVICES, "kubernetes ipvs services", after=_SERVICES),
    jump("nat", "POSTROUTING", names.KUBE_POSTROUTING, "kubernetes postrouting rules"),
    jump("filter", "FORWARD", names.KUBE_FORWARD, "kubernetes forwarding rules"),
    jump("filter", "INPUT", names.KUBE_NODEPORTS, "kubernetes health check service ports"),
    jump(
        "filter",
        "INPUT",
        names.KUBE_IPVS_FILTER,
        "kubernetes ipvs access filter",
        after=names.POLICY_INPUT,
    ),
    jump(
        "filter",
        "OUTPUT",
        names.KUBE_IPVS_FORWARD,
        "kubernetes ipvs forwarding rules",
        after=names.POLICY_OUTPUT,
    ),
)


@dataclass(frozen=True)
class IpvsLayout(ConfiguredLayout):
    """The chains of one family."""

    @cached_property
    def base(self) -> Mapping[ChainId, str | None]:
        """Chains that depend on no service."""
        known = sets(self.family)
        chains: dict[ChainId, str | None] = {(table, names.CANARY): "" for table in TABLES}
        chains |= masquerade_chains(self.config, first=_loop_back_rule(known, self.config))
        chains["mangle", names.KUBE_PROXY_FIREWALL] = _firewall(known)
        chains["mangle", names.KUBE_IPVS_MISSED] = _missed(known)
        chains["nat", names.KUBE_IPVS_SERVICES] = self._services(known)
        chains["nat", names.KUBE_IPVS_LOCAL] = self._local_policy()
        chains["mangle", names.KUBE_IPVS_OWN] = _own_connections(known)
        chains["filter", names.KUBE_IPVS_FILTER] = _access_filter(known, self.family)
        chains["filter", names.KUBE_IPVS_FORWARD] = _forwarded()
        return chains

    @property
    def shared(self) -> Mapping[str, Placement]:
        """The jumps to all endpoints of Local services, and the health-check ports."""
        return _SHARED

    @property
    def transitional(self) -> Mapping[ChainId, str]:
        """No chains."""
        return {}

    @property
    def jumps(self) -> tuple[Jump, ...]:
        """The jumps from the built-in chains to these chains."""
        return IPVS_JUMPS

    @property
    def batch_size(self) -> int:
        """Large, because most services have no chains of their own."""
        return 1500

    def render(self, plan: ServicePlan, *, comments: bool) -> ServiceRules:
        """The rules of one service; empty unless its external traffic policy is Local."""
        chains: dict[str, str] = {}
        ways: list[str] = []
        health: list[str] = []
        for port in plan.ports:
            if port.health_check_node_port:
                health.append(health_check_rule(port))
            if port.external_local and port.externally_accessible and port.cluster:
                chain, texts = cluster_policy_chains(port, self.config, comments=comments)
                chains |= texts
                ways += self._ways(port, chain)
        return ServiceRules(chains, SharedLines(nat_services=tuple(ways), filter_node_ports=tuple(health)))

    def _ways(self, port: PortPlan, chain: str) -> list[str]:
        proto = port.protocol.value.lower()
        comment = f'-m comment --comment "{port.name} all endpoints"'
        start = f"-A {names.KUBE_IPVS_SHORTCUT} "
        ways = [
            f"{start}-d {host_cidr(ip)} -p {proto} {comment} -m {proto} --dport {port.port} -j {chain}\n"
            for ip in dict.fromkeys((*port.external_ips, *port.load_balancer_ips))
        ]
        if port.node_port:
            ways.append(
                f"{start}-p {proto} {comment} -m addrtype --dst-type LOCAL "
                f"-m {proto} --dport {port.node_port} -j {chain}\n"
            )
        return ways

    def _services(self, known: Sets) -> str:
        """Masquerade service traffic, and accept it in table nat, so that no foreign rule translates it.

        Host ports (the CNI plugin portmap) and published ports (Docker) match connections to any local
        address. The chain is placed after an iptables mode's, which serves until the virtual servers are
        made.
        """
        start = f"-A {names.KUBE_IPVS_SERVICES} "
        return (
            f"{start}{_match(known.draining)} -j RETURN\n"
            f"{start}{_match(known.external_local)} -j {names.KUBE_IPVS_LOCAL}\n"
            f"{start}{_match(known.external)} -j {names.KUBE_MARK_MASQ}\n"
            f"{start}{self._off_cluster(known.cluster_ip)} -j {names.KUBE_MARK_MASQ}\n"
            + "".join(f"{start}{_match(owned)} -j ACCEPT\n" for owned in known.owned_servers)
        )

    def _off_cluster(self, cluster_ip: SetSpec) -> str:
        """The match of cluster-IP traffic to be masqueraded.

        If local pod traffic is not detected, that is only the node's own traffic: its source is the cluster
        IP itself, which the kernel prefers on a route to a local address.
        """
        config = self.config
        local = config.local_traffic
        if config.masquerade_all:
            return _match(cluster_ip)
        if local is None:
            return _match(cluster_ip, "src,dst")
        source = f"! -s {local.cidr}" if local.cidr is not None else f"! -i {local.interface}"
        return f"{source} {_match(cluster_ip)}"

    def _local_policy(self) -> str:
        start = f"-A {names.KUBE_IPVS_LOCAL} "
        rules = [
            f"{start}-m addrtype --src-type LOCAL -j {names.KUBE_MARK_MASQ}\n",
            f"{start}-m addrtype --src-type LOCAL -j {names.KUBE_IPVS_SHORTCUT}\n",
        ]
        local = self.config.local_traffic
        if local is not None:
            match = f"-s {local.cidr}" if local.cidr is not None else f"-i {local.interface}"
            rules.append(f"{start}{match} -j {names.KUBE_IPVS_SHORTCUT}\n")
        return "".join(rules)


def _match(wanted: SetSpec, what: str = "dst,dst") -> str:
    return f"-m set --match-set {wanted.name} {what}"


def _loop_back_rule(known: Sets, config: IptablesConfig) -> str:
    return (
        f'-A {names.KUBE_POSTROUTING} -m comment --comment "a pod that reaches itself through its service" '
        f"{_match(known.loop_back, 'dst,dst,src')} -j {config.masquerade}\n"
    )


def _firewall(known: Sets) -> str:
    """Drop before any translation: policy Local without an endpoint here, and load-balancer source ranges.

    The node's own packets have an address of the device as source, which must not match a range.
    """
    start = f"-A {names.KUBE_PROXY_FIREWALL} "
    return (
        f"{start}{_match(known.no_local_endpoints)} {_match(known.cluster_ip)} -j DROP\n"
        f"{start}-m set ! --match-set {known.restricted.name} dst,dst -j RETURN\n"
        f"{start}{_match(known.source_ip, 'dst,dst,src')} -j RETURN\n"
        f"{start}{_match(known.addresses, 'src')} -j DROP\n"
        f"{start}{_match(known.source_cidr, 'dst,dst,src')} -j RETURN\n"
        f"{start}-j DROP\n"
    )


def _missed(known: Sets) -> str:
    """Drop forwarded packets to an address of the device: they occur only while the device has lost it.

    Forwarded to another interface, a masqueraded connection would lose its conntrack entry
    (nf_nat_oif_changed in net/netfilter/nf_nat_core.c), and a new one would get an entry without translation.
    Packets dropped before POSTROUTING create no entry, and are sent again.
    """
    return f"-A {names.KUBE_IPVS_MISSED} {_match(known.addresses, 'dst')} -j DROP\n"


def _own_connections(known: Sets) -> str:
    """Mark packets for the node itself that are no requests to a service, so that they bypass IPVS.

    IPVS takes every first packet to the address and port of a virtual server as a new connection, also a
    reply (SYN-ACK or datagram) to a connection of the node whose source port is a node port
    (https://github.com/kubernetes/kubernetes/issues/111682). And a draining virtual server refuses new
    connections, although a program of the node may listen at its address and port by now.
    The mark leads both to the virtual server of OWN_MARK, whose only destination is the node.
    """
    start = f"-A {names.KUBE_IPVS_OWN} "
    mark = f"-j MARK --set-xmark {OWN_MARK:#x}/0xffffffff\n"
    return (
        f"{start}{_NEW}{_match(known.draining)} {mark}"
        f"{start}-m conntrack --ctdir ORIGINAL -j RETURN\n"
        + "".join(f"{start}{_match(owned)} {mark}" for owned in known.owned_servers)
    )


def _access_filter(known: Sets, family: Family) -> str:
    """Accept packets to frontends at addresses of the device; reject others, which would reach a socket.

    See https://github.com/kubernetes/kubernetes/issues/72236. Frontends are accepted, because a firewall for
    the node's own ports must not block them (https://github.com/kubernetes/kubernetes/issues/98465). DROP and
    REJECT rules come before that, and source ranges are applied before, in table mangle. Health-check ports
    are accepted: load balancers check them at the address that they balance, and the order of the two jumps
    from INPUT must not matter. The jump is identical to kube-proxy's.
    """
    start = f"-A {names.KUBE_IPVS_FILTER} "
    v4 = family is Family.IPV4
    refuse, icmp = ("icmp-port-unreachable", "icmp") if v4 else ("icmp6-port-unreachable", "ipv6-icmp")
    accepted = "".join(f"{start}{_match(owned)} -j ACCEPT\n" for owned in known.owned_servers)
    addressed = _match(known.addresses, "dst")
    return (
        f"{start}-m conntrack --ctstate INVALID,UNTRACKED -j RETURN\n"
        f"{start}{_NEW}{_match(known.no_local_endpoints)} -j DROP\n"
        f"{start}{_NEW}{_match(known.no_endpoints)} -j REJECT --reject-with {refuse}\n"
        f"{start}{_NEW}{_match(known.draining)} {addressed} -j REJECT --reject-with {refuse}\n"
        f"{start}{_NEW}{_match(known.draining)} -j RETURN\n"
        f"{accepted}"
        f"{start}-p {icmp} -m conntrack --ctstate RELATED {addressed} -j ACCEPT\n"
        f"{start}-m conntrack ! --ctstate NEW -j RETURN\n"
        f"{start}-j {names.KUBE_NODEPORTS}\n"
        f"{start}{addressed} -j REJECT --reject-with {refuse}\n"
    )


def _forwarded() -> str:
    """Accept packets that IPVS has translated and forwards: they leave the node and do not come from it.

    The node's own traffic to services stays subject to the host's rules, as in kube-proxy's other modes.
    """
    return (
        f"-A {names.KUBE_IPVS_FORWARD} -m conntrack --ctdir ORIGINAL "
        "-m addrtype ! --src-type LOCAL -j ACCEPT\n"
    )
