"""Check whether NetworkPolicies can be enforced here, and what would act beside or against them."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from kproxy.addresses import Family
from kproxy.backends.policy.probe import probe
from kproxy.config.model import ProxyConfig
from kproxy.inspect.preflight.foreign_proxies import NodeInventory
from kproxy.kernel.nft.remedies import remedy
from kproxy.kernel.nft.types import Nft, NftError
from kproxy.modes.findings import Finding, failed, ok, warning

CNI_DIRECTORY = Path("/etc/cni/net.d")
"""Where a container runtime looks for the configuration of networks."""

_CNI_CHAIN = re.compile(r"CNI-[0-9a-f]{24}")
"""The chain in which a CNI plugin with ipMasq masquerades one pod (containernetworking/plugins, pkg/ip)."""

_CNI_TABLE = "cni_plugins_masquerade"
"""The table of family inet in which it does so with nftables."""


class ForeignEnforcer(msgspec.Struct, frozen=True):
    """Another program that enforces NetworkPolicies: what identifies it, and the remedy.

    `processes` are the first 15 characters of their names, `chains` prefixes, `tables` those of nftables.
    """

    name: str
    processes: tuple[str, ...]
    chains: tuple[str, ...]
    links: tuple[str, ...]
    tables: tuple[str, ...]
    remedy: str


FOREIGN_ENFORCERS = (
    ForeignEnforcer(
        "Calico",
        ("calico-felix", "calico-node"),
        ("cali-",),
        ("tunl0.cali", "vxlan.calico", "bpfin.cali"),
        ("calico",),
        "remove Calico's policies, or set --network-policy=false",
    ),
    ForeignEnforcer(
        "Cilium",
        ("cilium-agent",),
        ("CILIUM_", "OLD_CILIUM_"),
        ("cilium_host", "cilium_net", "cilium_vxlan"),
        (),
        "set enable-policy to never in Cilium's configuration, or set --network-policy=false",
    ),
    ForeignEnforcer(
        "kube-router",
        ("kube-router",),
        ("KUBE-NWPLCY", "KUBE-POD-FW", "KUBE-ROUTER-"),
        (),
        (),
        "run kube-router with --run-firewall=false (k3s: --disable-network-policy) and remove its chains",
    ),
    ForeignEnforcer(
        "Antrea",
        ("antrea-agent",),
        ("ANTREA-",),
        ("antrea-gw0", "antrea-tun0"),
        (),
        "it enforces policies itself: set --network-policy=false",
    ),
    ForeignEnforcer(
        "kube-network-policies",
        ("kube-network-po", "kindnetd"),
        (),
        (),
        ("kube-network-policies", "kindnet-network-policies"),
        "remove its DaemonSet, or set --network-policy=false",
    ),
    ForeignEnforcer(
        "Weave Net's policy controller",
        ("weave-npc",),
        ("WEAVE-NPC",),
        (),
        (),
        "run Weave Net with EXPECT_NPC=0, or set --network-policy=false",
    ),
)


def policy_findings(nft: Nft) -> Iterator[Finding]:
    """Try the whole layout for each family."""
    for family in Family:
        subject = f"network policy {family}"
        try:
            probe(nft, family)
        except NftError as error:
            what_helps = f"{remedy(error)}, or set --network-policy=false"
            yield failed(subject, f"its table cannot be made: {error.message}", what_helps)
        else:
            yield ok(subject, "all maps, sets and chains that policies need work")


def enforcer_findings(seen: NodeInventory) -> Iterator[Finding]:
    """Warn of other enforcers that run here, and of rules that they left: packets pass what all allow."""
    for each in FOREIGN_ENFORCERS:
        running = sorted(number for number, name in seen.processes.items() if name in each.processes)
        found = [
            *(f"process {number}" for number in running),
            *(f"chain {name}" for name in _beginning(seen.chains, each.chains)),
            *(f"interface {link}" for link in sorted(seen.links.intersection(each.links))),
            *(f"table {name}" for name in sorted(_table_names(seen).intersection(each.tables))),
        ]
        if found:
            reason = (
                f"it may enforce policies here too ({_some(found)}): then packets pass only what both allow"
            )
            yield warning(each.name, reason, each.remedy)


def hazard_findings(
    config: ProxyConfig, seen: NodeInventory, directory: Path = CNI_DIRECTORY
) -> Iterator[Finding]:
    """Warn of what hides the source of packets before policies see them."""
    if config.masquerade_all:
        reason = "it hides the pods that use services: policies see the node's address in place of theirs"
        yield warning("--masquerade-all", reason, "set it to false; masquerading is done where it is needed")
    masquerading = [
        *(f"{name} of {file}" for file, name in _masquerading_networks(directory)),
        *(f"chain {name}" for name in sorted(filter(_CNI_CHAIN.fullmatch, seen.chains))[:1]),
        *(f"table {name}" for name in seen.inet_tables if name == _CNI_TABLE),
    ]
    if masquerading:
        reason = (
            f"{_some(masquerading)} hides the pods of this node from other nodes: policies there see this "
            "node's address in place of theirs"
        )
        remedy = "set ipMasq to false, and masquerade only what leaves the cluster (ip-masq-agent)"
        yield warning("ipMasq of the CNI", reason, remedy)


def _masquerading_networks(directory: Path) -> Iterator[tuple[str, str]]:
    """File and network of each CNI configuration that masquerades."""
    for file, network, plugins in cni_networks(directory):
        if any(each.get("ipMasq") is True for each in plugins):
            yield file, f"network {network}"


def cni_networks(directory: Path) -> Iterator[tuple[str, str, list[dict[str, object]]]]:
    """File, name and plugins of each CNI network; unreadable files are left out."""
    try:
        files = sorted(file for file in directory.iterdir() if file.suffix in {".conf", ".conflist", ".json"})
    except OSError:
        return
    for file in files:
        try:
            network = json.loads(file.read_bytes())
        except (OSError, ValueError):
            continue
        if not isinstance(network, dict):
            continue
        plugins = network.get("plugins", [network])
        named = [each for each in plugins if isinstance(each, dict)] if isinstance(plugins, list) else []
        yield file.name, str(network.get("name", "")), named


def _table_names(seen: NodeInventory) -> frozenset[str]:
    return seen.inet_tables.union(name for _, name in seen.tables)


def _beginning(found: Iterable[str], prefixes: tuple[str, ...]) -> list[str]:
    return sorted(name for name in found if prefixes and name.startswith(prefixes))


def _some(found: Sequence[str]) -> str:
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(found[:3]) + more
