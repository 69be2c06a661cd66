"""kube-proxy's rules for one service port, in its own spelling: a second statement to hold the renderer to.

Written from the description of pkg/proxy/iptables (1.36), without a look at kproxy's renderer; the two are
compared by meaning, chain by chain, with `canonical_rule`.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
from collections.abc import Iterable

from kproxy.addresses import Family
from kproxy.backends.iptables.canonical import canonical_rule
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.plan.model import EndpointPlan, PortPlan, ServicePlan

Rules = dict[tuple[str, str], list[str]]
"""(table, chain) -> rules in order."""


def rules_of(plan: ServicePlan, config: IptablesConfig, *, large: bool = False) -> Rules:
    """Every rule kube-proxy writes for the service."""
    out: Rules = {}
    for port in plan.ports:
        _port(port, config, large, out)
    return out


def canonical(rules: Rules) -> dict[tuple[str, str], list[object]]:
    """The rules by meaning."""
    return {chain: [canonical_rule(line) for line in lines] for chain, lines in rules.items() if lines}


def parse(text: str) -> Rules:
    """A restore input's rules by (table, chain), `-A` lines only."""
    out: Rules = {}
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith("-A "):
            out.setdefault((table, line.split(" ", 2)[1]), []).append(line)
    return out


def _hash(text: str) -> str:
    return base64.b32encode(hashlib.sha256(text.encode()).digest()).decode()[:16]


def _port(port: PortPlan, config: IptablesConfig, large: bool, out: Rules) -> None:
    spn, p = port.name, str(port.protocol).lower()
    digest = _hash(spn + p)
    svc, svl = f"KUBE-SVC-{digest}", f"KUBE-SVL-{digest}"
    ext, fw = f"KUBE-EXT-{digest}", f"KUBE-FW-{digest}"
    v4 = config.family is Family.IPV4
    has_eps = port.has_endpoints
    internal_chain = svl if port.internal_local else svc
    has_int = has_eps and not (port.internal_local and not port.local)
    has_ext = has_eps and not (port.external_local and not port.local)
    accessible = bool(port.node_port or port.load_balancer_ips or port.external_ips)
    uses_ext = has_eps and accessible
    uses_fw = has_eps and bool(port.load_balancer_ips) and port.source_ranges is not None
    reject = "REJECT"
    verdict = (f"{spn} has no local endpoints", "DROP") if has_eps else (f"{spn} has no endpoints", reject)

    def add(table: str, chain: str, rest: str) -> None:
        out.setdefault((table, chain), []).append(f"-A {chain} {rest}")

    def comment(text: str) -> str:
        return f'-m comment --comment "{text}"'

    def match(ip: str) -> str:
        return f"-m {p} -p {p} -d {ip} --dport {port.port}"

    if has_int:
        add(
            "nat",
            "KUBE-SERVICES",
            f"{comment(spn + ' cluster IP')} {match(port.cluster_ip)} -j {internal_chain}",
        )
    else:
        add("filter", "KUBE-SERVICES", f"{comment(verdict[0])} {match(port.cluster_ip)} -j {verdict[1]}")
    for ip in port.external_ips:
        if has_eps:
            add("nat", "KUBE-SERVICES", f"{comment(spn + ' external IP')} {match(ip)} -j {ext}")
        if not has_ext:
            add("filter", "KUBE-EXTERNAL-SERVICES", f"{comment(verdict[0])} {match(ip)} -j {verdict[1]}")
    for ip in port.load_balancer_ips:
        if has_eps:
            add(
                "nat",
                "KUBE-SERVICES",
                f"{comment(spn + ' loadbalancer IP')} {match(ip)} -j {fw if uses_fw else ext}",
            )
        if uses_fw:
            text = f"{spn} traffic not accepted by {fw}"
            add("filter", "KUBE-PROXY-FIREWALL", f"{comment(text)} {match(ip)} -j DROP")
        if not has_ext:
            add("filter", "KUBE-EXTERNAL-SERVICES", f"{comment(verdict[0])} {match(ip)} -j {verdict[1]}")
    if port.node_port:
        np = port.node_port
        if has_eps:
            if config.localhost_node_ports and v4 and config.count_localhost:
                add(
                    "nat",
                    "KUBE-NODEPORTS",
                    f"{comment(spn)} -m {p} -p {p} -d 127.0.0.0/8 --dport {np} "
                    f"-m nfacct --nfacct-name localhost_nps_accepted_pkts -j {ext}",
                )
            add("nat", "KUBE-NODEPORTS", f"{comment(spn)} -m {p} -p {p} --dport {np} -j {ext}")
        if not has_ext:
            add(
                "filter",
                "KUBE-EXTERNAL-SERVICES",
                f"{comment(verdict[0])} -m addrtype --dst-type LOCAL -m {p} -p {p} --dport {np} "
                f"-j {verdict[1]}",
            )
    if port.health_check_node_port:
        add(
            "filter",
            "KUBE-NODEPORTS",
            f"{comment(spn + ' health check node port')} -m tcp -p tcp "
            f"--dport {port.health_check_node_port} -j ACCEPT",
        )

    if has_int:
        local = config.local_traffic
        if config.masquerade_all:
            detect: str | None = ""
        elif local is None:
            detect = None
        else:
            detect = f"! -s {local.cidr} " if local.cidr else f"! -i {local.interface} "
        if detect is not None:
            add(
                "nat",
                internal_chain,
                f"{comment(spn + ' cluster IP')} {match(port.cluster_ip)} {detect}-j KUBE-MARK-MASQ",
            )
    if uses_ext:
        if not port.external_local:
            add(
                "nat",
                ext,
                f"{comment(f'masquerade traffic for {spn} external destinations')} -j KUBE-MARK-MASQ",
            )
        else:
            if config.local_traffic is not None:
                source = config.local_traffic
                is_local = f"-s {source.cidr}" if source.cidr else f"-i {source.interface}"
                add(
                    "nat",
                    ext,
                    f"{comment(f'pod traffic for {spn} external destinations')} {is_local} -j {svc}",
                )
            add(
                "nat",
                ext,
                f"{comment(f'masquerade LOCAL traffic for {spn} external destinations')} "
                f"-m addrtype --src-type LOCAL -j KUBE-MARK-MASQ",
            )
            add(
                "nat",
                ext,
                f"{comment(f'route LOCAL traffic for {spn} external destinations')} "
                f"-m addrtype --src-type LOCAL -j {svc}",
            )
        if has_ext:
            add("nat", ext, f"-j {svl if port.external_local else svc}")
    if uses_fw:
        _firewall(port, config, fw, ext, add_rule=lambda rest: add("nat", fw, rest))
    uses_cluster = not port.internal_local or accessible
    uses_local = port.internal_local or (port.external_local and accessible)
    if port.cluster and uses_cluster:
        _balance(port, svc, port.cluster, large, out)
    if port.local and uses_local:
        _balance(port, svl, port.local, large, out)
    for ep in port.reachable:
        sep = f"KUBE-SEP-{_hash(spn + p + ep.address_port)}"
        told = "" if large else f"-m comment --comment {spn} "
        recent = f"-m recent --name {sep} --set " if port.affinity_seconds is not None else ""
        add("nat", sep, f"{told}-s {ep.ip} -j KUBE-MARK-MASQ")
        add("nat", sep, f"{told}{recent}-m {p} -p {p} -j DNAT --to-destination {ep.address_port}")


def _firewall(port: PortPlan, config: IptablesConfig, fw: str, ext: str, *, add_rule: object) -> None:
    assert callable(add_rule)
    told = f'-m comment --comment "{port.name} loadbalancer IP"'
    for cidr in port.source_ranges or ():
        assert ipaddress.ip_network(cidr).version == (4 if config.family is Family.IPV4 else 6)
        add_rule(f"{told} -s {cidr} -j {ext}")
    if port.node_in_source_ranges:
        for ip in port.load_balancer_ips:
            add_rule(f"{told} -s {ip} -j {ext}")
    add_rule(f'-m comment --comment "other traffic to {port.name} will be dropped by KUBE-PROXY-FIREWALL"')


def _balance(port: PortPlan, chain: str, eps: Iterable[EndpointPlan], large: bool, out: Rules) -> None:
    p = str(port.protocol).lower()
    ordered = list(eps)
    rules = out.setdefault(("nat", chain), [])

    def told(ep: EndpointPlan) -> str:
        return "" if large else f'-m comment --comment "{port.name} -> {ep.address_port}" '

    if port.affinity_seconds is not None:
        for ep in ordered:
            sep = f"KUBE-SEP-{_hash(port.name + p + ep.address_port)}"
            rules.append(
                f"-A {chain} {told(ep)}-m recent --name {sep} --rcheck --seconds {port.affinity_seconds} "
                f"--reap -j {sep}"
            )
    for i, ep in enumerate(ordered):
        n = len(ordered)
        sep = f"KUBE-SEP-{_hash(port.name + p + ep.address_port)}"
        share = f"-m statistic --mode random --probability {1 / (n - i):.10f} " if i < n - 1 else ""
        rules.append(f"-A {chain} {told(ep)}{share}-j {sep}")
