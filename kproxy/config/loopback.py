"""Node ports on loopback addresses: whether the settings request them, and which cannot be served."""

import ipaddress

from kproxy.addresses import Family, cidr_contains, is_loopback, parse_cidr, parse_ip
from kproxy.config.model import PRIMARY, ProxyConfig, cidrs_by_family
from kproxy.config.modes import traits_of


def covers_loopback(ranges: list[str]) -> bool:
    """Whether the IPv4 node-port addresses include 127.0.0.0/8, as an empty list does."""
    return not ranges or any(cidr.startswith("127.") or cidr_contains(cidr, "127.0.0.0") for cidr in ranges)


def unserved(config: ProxyConfig) -> tuple[str, ...]:
    """Ranges of --nodeport-addresses with loopback addresses at which node ports do not answer.

    A mode that serves loopback serves IPv4 only, and only with --iptables-localhost-nodeports. A range of all
    addresses is returned only in a mode where it is not the default, as in kube-proxy
    (pkg/proxy/nftables/proxier.go). `primary` stands for a loopback address where --bind-address is one.
    """
    by_default, ranges = traits_of(config.proxy_mode).primary_by_default, config.node_port_addresses
    if ranges == (PRIMARY,) or (by_default and not ranges):
        _, bound = parse_ip(config.bind_address)
        at_loopback = is_loopback(bound) and not _serves_loopback(config, bound)
        return (f"{PRIMARY} ({bound})",) if at_loopback else ()
    return tuple(
        text
        for text in ranges
        if _has_loopback(cidr := parse_cidr(text)[1])
        and not _serves_loopback(config, cidr)
        and (by_default or not cidr.endswith("/0"))
    )


def why_unserved(config: ProxyConfig) -> str:
    """The reason why `unserved` ranges are not served."""
    if traits_of(config.proxy_mode).serves_loopback:
        return "node ports answer at loopback addresses of IPv4 only, with --iptables-localhost-nodeports"
    return f"node ports do not answer at loopback addresses in {config.proxy_mode} mode"


def _has_loopback(cidr: str) -> bool:
    loopback = ipaddress.ip_network("::1/128" if ":" in cidr else "127.0.0.0/8")
    return ipaddress.ip_network(cidr).overlaps(loopback)


def _serves_loopback(config: ProxyConfig, address: str) -> bool:
    serves = traits_of(config.proxy_mode).serves_loopback
    return serves and config.localhost_node_ports and ":" not in address


def is_wanted(config: ProxyConfig) -> bool:
    """Whether the settings request node ports on 127.0.0.1; the node's addresses are not considered."""
    if not traits_of(config.proxy_mode).serves_loopback or PRIMARY in config.node_port_addresses:
        return False
    ranges = cidrs_by_family(config.node_port_addresses)[Family.IPV4]
    return config.localhost_node_ports and covers_loopback(ranges)
