"""Look at the node without changing anything: capabilities, kernel parameters, what others have left."""

import os
import socket
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from kproxy.addresses import Family
from kproxy.agent.check.judge import Sysctl
from kproxy.agent.check.peers import Sight
from kproxy.agent.config import ProxyConfig
from kproxy.agent.iptables_mode import ROUTE_LOCALNET
from kproxy.agent.ipvs_mode import CONNTRACK, wanted_sysctls
from kproxy.kernel import nft_tables, sysctl
from kproxy.kernel.ipset.netlink import NetlinkIpset
from kproxy.kernel.ipset.types import IpsetError
from kproxy.kernel.xtables import legacy_rules
from kproxy.kernel.xtables.detect import find_tools
from kproxy.kernel.xtables.legacy_rules import Counts
from kproxy.kernel.xtables.programs import SubprocessXtables
from kproxy.kernel.xtables.types import RestoreError, Variant, XtablesUnavailable

_STATUS = Path("/proc/thread-self/status")
_PROC = Path("/proc")
_FORWARDING = {Family.IPV4: "net/ipv4/ip_forward", Family.IPV6: "net/ipv6/conf/all/forwarding"}
_BRIDGED = "traffic between pods of one bridge passes the rules"
_BRIDGES = {
    Family.IPV4: "net/bridge/bridge-nf-call-iptables",
    Family.IPV6: "net/bridge/bridge-nf-call-ip6tables",
}


def capabilities() -> int:
    """The effective capabilities of this thread, as the kernel's bit set."""
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def sysctls(config: ProxyConfig, families: Collection[Family]) -> tuple[Sysctl, ...]:
    """The kernel parameters that the mode depends on, as they are."""
    wanted: dict[str, tuple[str, str, bool, bool]] = {}
    if config.proxy_mode == "ipvs":
        wanted[CONNTRACK] = ("1", "connections can be masqueraded", True, True)
        for name, (value, effect) in wanted_sysctls(strict_arp=config.ipvs_strict_arp).items():
            wanted[name] = (str(value), effect, True, False)
    elif config.localhost_node_ports and config.proxy_mode == "iptables":
        wanted[ROUTE_LOCALNET] = ("1", "node ports answer on 127.0.0.1", True, False)
    for family in families:
        wanted.setdefault(_FORWARDING[family], ("1", f"{family} packets are forwarded", False, False))
        if sysctl.path(_BRIDGES[family]).exists():
            wanted[_BRIDGES[family]] = ("1", _BRIDGED, False, False)
    return tuple(
        Sysctl(name, value, _value(name), _writable(name), effect, sets, essential)
        for name, (value, effect, sets, essential) in wanted.items()
    )


def legacy_counts() -> tuple[dict[Family, Counts], dict[Family, str]]:
    """Rules in the legacy tables by family, and why those of a family cannot be read."""
    found: dict[Family, Counts] = {}
    unreadable: dict[Family, str] = {}
    for family in Family:
        try:
            found[family] = legacy_rules.count(family)
        except legacy_rules.LegacyRulesError as error:
            unreadable[family] = str(error)
    return found, unreadable


def nft_counts() -> dict[Family, Counts]:
    """Rules that iptables-nft wrote, by family; none where its programs are not installed."""
    found: dict[Family, Counts] = {}
    for family in Family:
        try:
            xtables = SubprocessXtables(family, find_tools(family, Variant.NFT, probe=False))
            found[family] = legacy_rules.counted(xtables.save())
        except (XtablesUnavailable, RestoreError):
            continue
    return found


def others(counts: Collection[Mapping[Family, Counts]]) -> Sight:
    """What tells of other proxies; `counts` are the rules of either variant."""
    chains = {
        chain
        for by_family in counts
        for tables in by_family.values()
        for found in tables.values()
        for chain in found
    }
    return Sight(
        chains=frozenset(chains),
        links=frozenset(name for _, name in socket.if_nameindex()),
        sets=_sets(),
        tables=frozenset((family, table) for family in Family for table in _tables(family)),
        processes=dict(_processes()),
    )


def _sets() -> frozenset[str]:
    try:
        return frozenset(NetlinkIpset().headers())
    except IpsetError:
        return frozenset()


def _tables(family: Family) -> frozenset[str]:
    try:
        return nft_tables.tables(family)
    except nft_tables.NftablesError:
        return frozenset()


def _processes() -> Iterator[tuple[int, str]]:
    """Those in this network namespace: what runs in another one writes other rules."""
    here = (_PROC / "thread-self/ns/net").readlink()
    for directory in _PROC.iterdir():
        if directory.name.isdigit():
            try:
                if (directory / "ns/net").readlink() == here:
                    yield int(directory.name), (directory / "comm").read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError):
                continue


def _value(name: str) -> str | None:
    try:
        return sysctl.read(name)
    except sysctl.SysctlError:
        return None


def _writable(name: str) -> bool:
    return os.access(sysctl.path(name), os.W_OK)
