"""Node ports on loopback addresses: whether the settings ask for them, and which cannot be served."""

import ipaddress

from kproxy.addresses import Family, cidr_contains, is_loopback, parse_cidr, parse_ip
from kproxy.config.model import PRIMARY, ProxyConfig, cidrs_by_family


def covers_loopback(ranges: list[str]) -> bool:
    """Whether node-port addresses of IPv4 have 127.0.0.0/8 among them, as none at all do."""
    return not ranges or any(cidr.startswith("127.") or cidr_contains(cidr, "127.0.0.0") for cidr in ranges)


def unserved(config: ProxyConfig) -> tuple[str, ...]:
    """Ranges of --nodeport-addresses that have loopback addresses, at which node ports do not answer.

    Only iptables mode can serve them, those of IPv4 alone, where --iptables-localhost-nodeports allows it. A
    range of all addresses is named in nftables mode only, where it is no default: kube-proxy does so too
    (pkg/proxy/nftables/proxier.go). `primary` stands for a loopback address where --bind-address is one.
    """
    mode, given = config.proxy_mode, config.node_port_addresses
    if given == (PRIMARY,) or (mode == "nftables" and not given):
        _, bound = parse_ip(config.bind_address)
        at_loopback = is_loopback(bound) and not _serves_loopback(config, bound)
        return (f"{PRIMARY} ({bound})",) if at_loopback else ()
    return tuple(
        text
        for text in given
        if _has_loopback(cidr := parse_cidr(text)[1])
        and not _serves_loopback(config, cidr)
        and (mode == "nftables" or not cidr.endswith("/0"))
    )


def why_unserved(config: ProxyConfig) -> str:
    """What to say of `unserved` ranges."""
    if config.proxy_mode == "iptables":
        return "node ports answer at loopback addresses of IPv4 only, with --iptables-localhost-nodeports"
    return f"node ports do not answer at loopback addresses in {config.proxy_mode} mode"


def _has_loopback(cidr: str) -> bool:
    loopback = ipaddress.ip_network("::1/128" if ":" in cidr else "127.0.0.0/8")
    return ipaddress.ip_network(cidr).overlaps(loopback)


def _serves_loopback(config: ProxyConfig, address: str) -> bool:
    return config.proxy_mode == "iptables" and config.localhost_node_ports and ":" not in address


def is_wanted(config: ProxyConfig) -> bool:
    """Whether node ports shall answer on 127.0.0.1, as far as settings tell without the node's addresses."""
    if config.proxy_mode != "iptables" or PRIMARY in config.node_port_addresses:
        return False
    ranges = cidrs_by_family(config.node_port_addresses)[Family.IPV4]
    return config.localhost_node_ports and covers_loopback(ranges)
