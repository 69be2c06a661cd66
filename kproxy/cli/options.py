"""The flags that say what the rules look like, shared by `run` and `render`, under kube-proxy's names.

Flags have no defaults of their own: what was not given is the configuration's business.
"""

from pathlib import Path

import click

from kproxy.backends.iptables.layout_selection import LAYOUTS
from kproxy.cli.params import Decorator, OneOf, OptionalPath, boolean, flag, several, together
from kproxy.config.model import DETECT_LOCAL_MODES, PROXY_MODES

rule_options = together(
    flag(
        "--config",
        type=OptionalPath(dir_okay=False, path_type=Path),
        help="A KubeProxyConfiguration; most other flags do not count next to it, as with kube-proxy.",
    ),
    flag(
        "--proxy-mode",
        usual="iptables",
        type=OneOf(PROXY_MODES),
        help="What carries the traffic.",
    ),
    flag(
        "--cluster-cidr",
        metavar="CIDR[,CIDR]",
        help="Pod addresses of the cluster; traffic from elsewhere to cluster IPs is masqueraded.",
    ),
    flag(
        "--detect-local-mode",
        type=OneOf(DETECT_LOCAL_MODES),
        usual="ClusterCIDR",
        help="How pods' traffic is told from other traffic.",
    ),
    flag("--pod-bridge-interface", metavar="IFACE", help="For mode BridgeInterface."),
    flag("--pod-interface-name-prefix", metavar="PREFIX", help="For mode InterfaceNamePrefix."),
    boolean("--masquerade-all", help="Masquerade all traffic to cluster IPs."),
    flag(
        "--iptables-masquerade-bit",
        type=int,
        metavar="0-31",
        usual="14",
        help="Bit of the packet mark that asks for masquerading.",
    ),
    boolean(
        "--iptables-localhost-nodeports",
        usual="true",
        help="Answer node ports on 127.0.0.1 (IPv4).",
    ),
    several(
        "--nodeport-addresses",
        metavar="CIDR,...|primary",
        help="Local addresses that accept node ports; empty: all, in nftables mode the primary ones.",
    ),
    boolean(
        "--nftables-reject-unallocated",
        usual="true",
        help="Refuse ports of a cluster IP that no service has, instead of routing them on.",
    ),
    several(
        "--service-cidr",
        metavar="CIDR,...",
        help="In nftables mode, drop what goes to addresses in these that no service has.",
    ),
    several(
        "--external-ip-allowed-cidrs",
        metavar="CIDR,...",
        help="Serve only spec.externalIPs within these ranges; empty: any. Addresses of load balancers are "
        "not restricted.",
    ),
    flag(
        "--iptables-layout",
        usual="auto",
        type=click.Choice(LAYOUTS),
        help="kube-proxy's chains, or fewer and smaller ones for large clusters.",
    ),
    flag(
        "--ipvs-scheduler",
        usual="rr",
        metavar="NAME[,FLAG]",
        help="How IPVS chooses endpoints: rr, wrr, lc, wlc, sh, mh, ...",
    ),
    several(
        "--ipvs-exclude-cidrs",
        metavar="CIDR,...",
        help="Virtual servers in these are never removed unless a service has them.",
    ),
    flag(
        "--bind-address",
        metavar="IP",
        usual="0.0.0.0",  # noqa: S104
        help="The node's primary address, if not the Node object's; nothing is bound to it.",
    ),
)
"""For `run` and `render`."""


def duration(name: str, default: str, help: str) -> Decorator:  # noqa: A002
    """A flag that takes a Go duration such as 30s."""
    return flag(name, metavar="DURATION", usual=default, help=help)


def size(name: str, default: str, help: str) -> Decorator:  # noqa: A002
    """A flag that takes a whole number."""
    return flag(name, type=int, metavar="N", usual=default, help=help)
