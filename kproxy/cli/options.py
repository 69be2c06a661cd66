"""The flags that say what the rules look like, shared by `run` and `render`, under kube-proxy's names."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import click

from kproxy.agent.config import DETECT_LOCAL_MODES, PROXY_MODES
from kproxy.cli.params import CommaList, boolean

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_RULES: tuple[Decorator, ...] = (
    click.option(
        "--proxy-mode",
        default="iptables",
        show_default=True,
        type=click.Choice(PROXY_MODES),
        help="What carries the traffic.",
    ),
    click.option(
        "--cluster-cidr",
        "cluster_cidrs",
        type=CommaList(),
        default="",
        metavar="CIDR[,CIDR]",
        help="Pod addresses of the cluster; traffic from elsewhere to cluster IPs is masqueraded.",
    ),
    click.option(
        "--detect-local-mode",
        type=click.Choice(DETECT_LOCAL_MODES),
        default="ClusterCIDR",
        show_default=True,
        help="How pods' traffic is told from other traffic.",
    ),
    click.option("--pod-bridge-interface", default="", metavar="IFACE", help="For mode BridgeInterface."),
    click.option(
        "--pod-interface-name-prefix", default="", metavar="PREFIX", help="For mode InterfaceNamePrefix."
    ),
    boolean("--masquerade-all", default=False, help="Masquerade all traffic to cluster IPs."),
    click.option(
        "--iptables-masquerade-bit",
        "--nftables-masquerade-bit",
        "masquerade_bit",
        type=click.IntRange(0, 31),
        default=14,
        show_default=True,
        help="Bit of the packet mark that asks for masquerading.",
    ),
    boolean(
        "--iptables-localhost-nodeports",
        "localhost_node_ports",
        default=True,
        help="Answer node ports on 127.0.0.1 (IPv4).",
    ),
    click.option(
        "--nodeport-addresses",
        "node_port_addresses",
        type=CommaList(),
        default="",
        metavar="CIDR,...|primary",
        help="Local addresses that accept node ports; empty: all, in nftables mode the primary ones.",
    ),
    boolean(
        "--nftables-reject-unallocated",
        default=True,
        help="Refuse ports of a cluster IP that no service has, instead of routing them on.",
    ),
    click.option(
        "--service-cidr",
        "service_cidrs",
        type=CommaList(),
        default="",
        metavar="CIDR,...",
        help="In nftables mode, drop what goes to addresses in these that no service has.",
    ),
    click.option(
        "--ipvs-scheduler",
        default="rr",
        show_default=True,
        metavar="NAME[,FLAG]",
        help="How IPVS chooses endpoints: rr, wrr, lc, wlc, sh, mh, ...",
    ),
    click.option(
        "--ipvs-exclude-cidrs",
        type=CommaList(),
        default="",
        metavar="CIDR,...",
        help="Virtual servers in these are never removed unless a service has them.",
    ),
)


def rule_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags to a command."""
    return reduce(lambda wrapped, option: option(wrapped), reversed(_RULES), command)
