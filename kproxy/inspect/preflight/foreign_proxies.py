"""Detect other service proxies and their leftovers, with their effect on kproxy. Pure."""

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from kproxy.addresses import Family
from kproxy.backends.iptables import names
from kproxy.backends.ipvs.names import KUBE_PROXY_SETS
from kproxy.backends.nftables.names import KUBE_PROXY_TABLE
from kproxy.modes.findings import Finding, ok, warning


class NodeInventory(msgspec.Struct, frozen=True, kw_only=True):
    """Names found on the node.

    `chains` of either iptables variant, `tables` of nftables, `inet_tables` those of both families at once,
    `processes`: process id -> command name.
    """

    chains: frozenset[str] = frozenset()
    links: frozenset[str] = frozenset()
    sets: frozenset[str] = frozenset()
    tables: frozenset[tuple[Family, str]] = frozenset()
    inet_tables: frozenset[str] = frozenset()
    processes: Mapping[int, str] = {}


class ForeignProxy(msgspec.Struct, frozen=True):
    """Another service proxy: the names that identify it, and the remedy."""

    name: str
    chains: tuple[str, ...]
    links: tuple[str, ...]
    sets: tuple[str, ...]
    remedy: str


FOREIGN_PROXIES = (
    ForeignProxy(
        "Cilium",
        ("CILIUM_", "OLD_CILIUM_"),
        ("cilium_host", "cilium_net"),
        (),
        "set kubeProxyReplacement to false in Cilium's configuration, or do without kproxy",
    ),
    ForeignProxy(
        "kube-router's service proxy",
        (),
        ("kube-dummy-if",),
        ("kube-router-svip", "kube-router-local-ips"),
        "run kube-router with --run-service-proxy=false and `kube-router --cleanup-config` once",
    ),
    ForeignProxy(
        "Calico's eBPF data plane",
        (),
        ("bpfin.cali", "bpfout.cali"),
        (),
        "set bpfEnabled to false in the FelixConfiguration, or do without kproxy",
    ),
    ForeignProxy(
        "OVN-Kubernetes",
        ("OVN-KUBE-",),
        (),
        (),
        "it serves services itself: do without kproxy on this node",
    ),
)
"""Prefixes of chains and sets, and names of interfaces."""


def foreign_proxy_findings(seen: NodeInventory) -> Iterator[Finding]:
    """Warn of leftovers of other proxies and of other proxies that run."""
    yield from _kube_proxy(seen)
    for proxy in FOREIGN_PROXIES:
        found = [
            *(f"chain {c}" for c in _beginning(seen.chains, proxy.chains)),
            *(f"interface {link}" for link in sorted(seen.links.intersection(proxy.links))),
            *(f"set {s}" for s in _beginning(seen.sets, proxy.sets)),
        ]
        if found:
            reason = f"{_some(found)}: two programs must not translate the same addresses"
            yield warning(proxy.name, reason, proxy.remedy)


def _kube_proxy(seen: NodeInventory) -> Iterator[Finding]:
    running = sorted(number for number, command in seen.processes.items() if command == "kube-proxy")
    if running:
        yield warning(
            "kube-proxy",
            f"it runs here, as process {', '.join(map(str, running))}, and writes the same chains",
            "stop it before kproxy starts: give its DaemonSet a nodeSelector that this node does not match",
        )
    left = sorted(f"{family} {table}" for family, table in seen.tables if table == KUBE_PROXY_TABLE)
    if left:
        yield warning(
            "kube-proxy",
            f"its nftables mode left rules (nftables tables {', '.join(left)}), which translate too",
            "`kproxy cleanup --peer kube-proxy` once it is stopped; then start kproxy",
        )
    sets = seen.sets & frozenset().union(*KUBE_PROXY_SETS.values())
    chains = seen.chains & {*names.KUBE_PROXY_IPVS_NAT, *names.KUBE_PROXY_IPVS_FILTER}
    if sets or chains:
        yield ok(
            "kube-proxy", f"its IPVS mode left {len(sets)} sets and {len(chains)} chains: kproxy takes over"
        )
    elif names.KUBE_SERVICES in seen.chains:
        yield ok("kube-proxy", "its chains stand here, or those of a kproxy: kproxy takes over")


def _beginning(found: Iterable[str], prefixes: tuple[str, ...]) -> list[str]:
    return sorted(name for name in found if prefixes and name.startswith(prefixes))


def _some(found: list[str]) -> str:
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(found[:3]) + more
