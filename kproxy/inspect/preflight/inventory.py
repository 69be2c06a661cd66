"""Read the state of the node without changing it: capabilities, objects of other proxies."""

import socket
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from kproxy.addresses import Family
from kproxy.inspect.preflight.foreign_proxies import NodeInventory
from kproxy.kernel import nft_tables
from kproxy.kernel.ipset.netlink import NetlinkIpset
from kproxy.kernel.ipset.types import IpsetError
from kproxy.kernel.xtables import legacy_rules
from kproxy.kernel.xtables.detect import find_tools
from kproxy.kernel.xtables.legacy_rules import Counts
from kproxy.kernel.xtables.programs import SubprocessXtables
from kproxy.kernel.xtables.types import RestoreError, Variant, XtablesUnavailable

_STATUS = Path("/proc/thread-self/status")
_PROC = Path("/proc")


def capabilities() -> int:
    """The effective capabilities of this thread, as the kernel's bit set."""
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def legacy_counts() -> tuple[dict[Family, Counts], dict[Family, str]]:
    """Rules in the legacy tables by family, and the reason for each family that cannot be read."""
    found: dict[Family, Counts] = {}
    unreadable: dict[Family, str] = {}
    for family in Family:
        try:
            found[family] = legacy_rules.count(family)
        except legacy_rules.LegacyRulesError as error:
            unreadable[family] = str(error)
    return found, unreadable


def nft_counts() -> dict[Family, Counts]:
    """Rules that iptables-nft wrote, by family; none if its programs are not installed."""
    found: dict[Family, Counts] = {}
    for family in Family:
        try:
            xtables = SubprocessXtables(family, find_tools(family, Variant.NFT, probe=False))
            found[family] = legacy_rules.counted(xtables.save())
        except (XtablesUnavailable, RestoreError):
            continue
    return found


def others(counts: Collection[Mapping[Family, Counts]]) -> NodeInventory:
    """The names that identify other proxies; `counts` are the rules of either variant."""
    chains = {
        chain
        for by_family in counts
        for tables in by_family.values()
        for found in tables.values()
        for chain in found
    }
    return NodeInventory(
        chains=frozenset(chains),
        links=frozenset(name for _, name in socket.if_nameindex()),
        sets=_sets(),
        tables=frozenset((family, table) for family in Family for table in _tables(family)),
        inet_tables=_tables(None),
        processes=dict(_processes()),
    )


def _sets() -> frozenset[str]:
    try:
        return frozenset(NetlinkIpset().headers())
    except IpsetError:
        return frozenset()


def _tables(family: Family | None) -> frozenset[str]:
    try:
        return nft_tables.tables(family)
    except nft_tables.NftablesError:
        return frozenset()


def _processes() -> Iterator[tuple[int, str]]:
    """The processes in this network namespace: those in another one write other rules."""
    here = (_PROC / "thread-self/ns/net").readlink()
    for directory in _PROC.iterdir():
        if directory.name.isdigit():
            try:
                if (directory / "ns/net").readlink() == here:
                    yield int(directory.name), (directory / "comm").read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError):
                continue
