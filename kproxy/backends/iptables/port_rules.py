"""The rules of one service port, each in exactly the form in which iptables-save prints it.

The semantics are kube-proxy's (pkg/proxy/iptables/proxier.go, 1.36).
"""

from collections.abc import Sequence
from functools import lru_cache

from kproxy.addresses import Family, host_cidr
from kproxy.backends.core import hashes
from kproxy.backends.iptables import names
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.iptables.rules import ServiceRules, SharedLines
from kproxy.plan.model import EndpointPlan, PortPlan, Verdict
from kproxy.plan.weights import effective


class Lines:
    """Collects a service's lines while its ports are rendered."""

    def __init__(self) -> None:
        self.chains: dict[str, str] = {}
        self.nat_services: list[str] = []
        self.nat_node_ports: list[str] = []
        self.filter_services: list[str] = []
        self.filter_external: list[str] = []
        self.filter_firewall: list[str] = []
        self.filter_node_ports: list[str] = []

    def finish(self) -> ServiceRules:
        """The rules of the service."""
        return ServiceRules(
            self.chains,
            SharedLines(
                tuple(self.nat_services),
                tuple(self.nat_node_ports),
                tuple(self.filter_services),
                tuple(self.filter_external),
                tuple(self.filter_firewall),
                tuple(self.filter_node_ports),
            ),
        )


class PortRenderer:
    """Renders one service port; its attributes are parts of the rules."""

    def __init__(self, port: PortPlan, config: IptablesConfig, lines: Lines, *, comments: bool) -> None:
        self.port = port
        self.config = config
        self.lines = lines
        self.comments = comments
        self.proto = port.protocol.value.lower()
        digest = hashes.port_hash(port.name, self.proto)
        self.svc = names.CLUSTER_POLICY + digest
        self.svl = names.LOCAL_POLICY + digest
        self.ext = names.EXTERNAL + digest
        self.fw = names.FIREWALL + digest
        self.sep = self._endpoint_names()
        self.uses_firewall = (
            port.has_endpoints and bool(port.load_balancer_ips) and port.source_ranges is not None
        )

    def _endpoint_names(self) -> dict[str, str]:
        """The chain of each endpoint, by its `address_port`."""
        texts = [endpoint.address_port for endpoint in self.port.reachable]
        return {text: names.endpoint_chain(self.port.name, self.proto, text) for text in texts}

    def render(self) -> None:
        """Add all lines of the port."""
        port = self.port
        self._cluster_ip()
        for ip in port.external_ips:
            self._external(ip, "external IP", self.ext)
        for ip in port.load_balancer_ips:
            self._external(ip, "loadbalancer IP", self.fw if self.uses_firewall else self.ext)
            if self.uses_firewall:
                comment = f"{port.name} traffic not accepted by {self.fw}"
                self.lines.filter_firewall.append(
                    f"-A {names.KUBE_PROXY_FIREWALL} {self._to(ip, comment)} -j DROP\n"
                )
        if port.node_port:
            self._node_port()
        if port.health_check_node_port:
            self.lines.filter_node_ports.append(health_check_rule(port))
        if port.has_endpoints and port.externally_accessible:
            self._external_chain()
        if self.uses_firewall:
            self._firewall_chain()
        masquerade = self._masquerade_off_cluster()
        if port.cluster:
            self._policy_chain(self.svc, port.cluster, "" if port.internal_local else masquerade)
        if port.local and port.uses_local:
            self._policy_chain(self.svl, port.local, masquerade if port.internal_local else "")
        for endpoint in port.reachable:
            self._endpoint_chain(endpoint)

    def spread_over_all(self) -> None:
        """Render the chain for all endpoints without a masquerade rule, and the endpoints' chains."""
        self._policy_chain(self.svc, self.port.cluster, "")
        for endpoint in self.port.cluster:
            self._endpoint_chain(endpoint)

    def _to(self, ip: str, comment: str) -> str:
        """The match of one frontend address and this port."""
        return (
            f'-d {host_cidr(ip)} -p {self.proto} -m comment --comment "{comment}" '
            f"-m {self.proto} --dport {self.port.port}"
        )

    def _refusal(self, verdict: Verdict) -> tuple[str, str]:
        """Comment and target for traffic without an endpoint."""
        if verdict is Verdict.DROP:
            return f"{self.port.name} has no local endpoints", "DROP"
        kind = "icmp-port-unreachable" if self.config.family is Family.IPV4 else "icmp6-port-unreachable"
        return f"{self.port.name} has no endpoints", f"REJECT --reject-with {kind}"

    def _cluster_ip(self) -> None:
        port = self.port
        if port.internal is Verdict.FORWARD:
            chain = self.svl if port.internal_local else self.svc
            match = self._to(port.cluster_ip, f"{port.name} cluster IP")
            self.lines.nat_services.append(f"-A {names.KUBE_SERVICES} {match} -j {chain}\n")
        else:
            comment, target = self._refusal(port.internal)
            match = self._to(port.cluster_ip, comment)
            self.lines.filter_services.append(f"-A {names.KUBE_SERVICES} {match} -j {target}\n")

    def _external(self, ip: str, kind: str, chain: str) -> None:
        port = self.port
        if port.has_endpoints:
            match = self._to(ip, f"{port.name} {kind}")
            self.lines.nat_services.append(f"-A {names.KUBE_SERVICES} {match} -j {chain}\n")
        if port.external is not Verdict.FORWARD:
            comment, target = self._refusal(port.external)
            self.lines.filter_external.append(
                f"-A {names.KUBE_EXTERNAL_SERVICES} {self._to(ip, comment)} -j {target}\n"
            )

    def _node_port(self) -> None:
        port, proto = self.port, self.proto
        match = f'-p {proto} -m comment --comment "{port.name}" -m {proto} --dport {port.node_port}'
        if port.has_endpoints:
            if self.config.localhost and self.config.count_localhost:
                self.lines.nat_node_ports.append(
                    f"-A {names.KUBE_NODEPORTS} -d 127.0.0.0/8 {match} "
                    f"-m nfacct --nfacct-name  {names.LOCALHOST_COUNTER} -j {self.ext}\n"
                )
            self.lines.nat_node_ports.append(f"-A {names.KUBE_NODEPORTS} {match} -j {self.ext}\n")
        if port.external is not Verdict.FORWARD:
            comment, target = self._refusal(port.external)
            self.lines.filter_external.append(
                f'-A {names.KUBE_EXTERNAL_SERVICES} -p {proto} -m comment --comment "{comment}" '
                f"-m addrtype --dst-type LOCAL -m {proto} --dport {port.node_port} -j {target}\n"
            )

    def _masquerade_off_cluster(self) -> str:
        """The first rule of the chain for cluster traffic, without `-A CHAIN`; "" if there is none.

        Traffic from outside the cluster to a cluster IP may be routed to any node. The reply has to take the
        same way back, so the source is masqueraded.
        """
        port, config = self.port, self.config
        if port.internal is not Verdict.FORWARD:
            return ""
        source = interface = ""
        if not config.masquerade_all:
            local = config.local_traffic
            if local is None:
                return ""
            if local.cidr is not None:
                source = f"! -s {local.cidr} "
            else:
                interface = f"! -i {local.interface} "
        return (
            f"{source}-d {host_cidr(port.cluster_ip)} {interface}-p {self.proto} "
            f"{self._masquerade_comment()}-m {self.proto} --dport {port.port} -j {names.KUBE_MARK_MASQ}\n"
        )

    def _masquerade_comment(self) -> str:
        return f'-m comment --comment "{self.port.name} cluster IP" '

    def _external_chain(self) -> None:
        """Render the chain for node ports, external and load-balancer IPs: masquerade and policy.

        Pods and the node itself are not outside: with policy Local they may still use every endpoint.
        """
        port, name, start = self.port, self.port.name, f"-A {self.ext} "
        rules: list[str] = []
        if not port.external_local:
            rules.append(
                f'{start}-m comment --comment "masquerade traffic for {name} external destinations" '
                f"-j {names.KUBE_MARK_MASQ}\n"
            )
        else:
            local = self.config.local_traffic
            if local is not None:
                match = f"-s {local.cidr}" if local.cidr is not None else f"-i {local.interface}"
                rules.append(
                    f'{start}{match} -m comment --comment "pod traffic for {name} external destinations" '
                    f"-j {self.svc}\n"
                )
            rules.append(
                f'{start}-m comment --comment "masquerade LOCAL traffic for {name} external destinations" '
                f"-m addrtype --src-type LOCAL -j {names.KUBE_MARK_MASQ}\n"
            )
            rules.append(
                f'{start}-m comment --comment "route LOCAL traffic for {name} external destinations" '
                f"-m addrtype --src-type LOCAL -j {self.svc}\n"
            )
        if port.external is Verdict.FORWARD:
            rules.append(f"{start}-j {self.svl if port.external_local else self.svc}\n")
        self.lines.chains[self.ext] = "".join(rules)

    def _firewall_chain(self) -> None:
        """Admit the source ranges; other packets stay untranslated, and KUBE-PROXY-FIREWALL drops them."""
        port, start = self.port, f"-A {self.fw} "
        comment = f'-m comment --comment "{port.name} loadbalancer IP"'
        sources = list(port.source_ranges or ())
        if port.node_in_source_ranges:
            sources += [host_cidr(ip) for ip in port.load_balancer_ips]
        rules = [f"{start}-s {source} {comment} -j {self.ext}\n" for source in sources]
        rules.append(
            f'{start}-m comment --comment "other traffic to {port.name} will be dropped by '
            f'{names.KUBE_PROXY_FIREWALL}"\n'
        )
        self.lines.chains[self.fw] = "".join(rules)

    def _policy_chain(self, chain: str, endpoints: Sequence[EndpointPlan], first: str) -> None:
        """Balance connections over endpoints: affinity first, then each by its share of the rest."""
        port, start = self.port, f"-A {chain} "
        weighted = [(e, w) for e, w in zip(endpoints, effective(endpoints), strict=True) if w]
        rules = [start + first] if first else []
        if port.affinity_seconds is not None:
            rules += [start + self._remembered(e, port.affinity_seconds) for e, _ in weighted]
        left = sum(weight for _, weight in weighted)
        for endpoint, weight in weighted:
            share = ""
            if left > weight:
                share = f"-m statistic --mode random --probability {probability(weight, left)} "
            rules.append(start + self._chosen(endpoint, share))
            left -= weight
        self.lines.chains[chain] = "".join(rules)

    def _remembered(self, endpoint: EndpointPlan, seconds: int) -> str:
        """The rule that leads a client to its endpoint of the last `seconds` (session affinity)."""
        chain = self.sep[endpoint.address_port]
        return (
            f"{self._to_endpoint(endpoint)}-m recent --rcheck --seconds {seconds} --reap "
            f"--name {chain} --mask {self._recent_mask} --rsource -j {chain}\n"
        )

    def _chosen(self, endpoint: EndpointPlan, share: str) -> str:
        """The rule that leads a share of the other connections to an endpoint."""
        return f"{self._to_endpoint(endpoint)}{share}-j {self.sep[endpoint.address_port]}\n"

    def _endpoint_chain(self, endpoint: EndpointPlan) -> None:
        """Masquerade hairpin traffic, then translate."""
        port, proto = self.port, self.proto
        target = endpoint.address_port
        chain = self.sep[target]
        comment = self._comment(port.name)
        recent = ""
        if port.affinity_seconds is not None:
            recent = f"-m recent --set --name {chain} --mask {self._recent_mask} --rsource "
        self.lines.chains[chain] = (
            f"-A {chain} -s {host_cidr(endpoint.ip)} {comment}-j {names.KUBE_MARK_MASQ}\n"
            f"-A {chain} -p {proto} {comment}{recent}-m {proto} -j DNAT --to-destination {target}\n"
        )

    def _to_endpoint(self, endpoint: EndpointPlan) -> str:
        return self._comment(f"{self.port.name} -> {endpoint.address_port}")

    def _comment(self, text: str) -> str:
        return f'-m comment --comment "{text}" ' if self.comments else ""

    @property
    def _recent_mask(self) -> str:
        ipv4 = self.config.family is Family.IPV4
        return "255.255.255.255" if ipv4 else "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"


def health_check_rule(port: PortPlan) -> str:
    """The rule that accepts a load balancer's health checks of a service with policy Local."""
    return (
        f'-A {names.KUBE_NODEPORTS} -p tcp -m comment --comment "{port.name} health check node port" '
        f"-m tcp --dport {port.health_check_node_port} -j ACCEPT\n"
    )


@lru_cache(maxsize=4096)
def probability(share: int, left: int) -> str:
    """Return share/left as iptables-save prints it: the kernel stores kube-proxy's `%0.10f` in 31 bits.

    The smallest share is one unit.
    """
    units = round(float(f"{share / left:.10f}") * 2**31)
    return f"{max(units, 1) / 2**31:.11f}"
