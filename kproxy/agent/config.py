"""What an operator can set, under kube-proxy's names, checked as a whole before anything starts."""

import re
from pathlib import Path

import msgspec

from kproxy.addresses import Family, parse_cidr
from kproxy.kernel.xtables.types import Variant
from kproxy.plan.schedulers import parse_scheduler

PRIMARY = "primary"
"""The value of --nodeport-addresses that stands for the node's own primary addresses."""

PROXY_MODES = ("iptables", "ipvs", "nftables")

DETECT_LOCAL_MODES = ("ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix")

TIMEOUT_MAX = (1 << 31) // 1000
"""Upper bound of IPVS timeouts in seconds: INT_MAX jiffies at the usual HZ of 1000 (ip_vs_ctl.c)."""

_INTERFACE = re.compile(r"[A-Za-z0-9_.@-]{1,15}")


class ConfigError(ValueError):
    """Settings that cannot be used; `problems` names every one of them."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class ProxyConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of one kproxy. Times are seconds.

    Exactly one of `kubeconfig`, `manifests` and neither (in-cluster) says where objects come from.
    `min_sync_period` is the least time between the end of one sync and the start of the next.
    """

    node_name: str
    proxy_mode: str = "iptables"
    kubeconfig: Path | None = None
    manifests: Path | None = None
    cluster_cidrs: tuple[str, ...] = ()
    detect_local_mode: str = "ClusterCIDR"
    pod_bridge_interface: str = ""
    pod_interface_name_prefix: str = ""
    masquerade_all: bool = False
    masquerade_bit: int = 14
    localhost_node_ports: bool = True
    sync_period: float = 30.0
    min_sync_period: float = 0.1
    node_port_addresses: tuple[str, ...] = ()
    healthz_bind_address: str = "0.0.0.0:10256"
    iptables_variant: Variant | None = None
    ipvs_scheduler: str = "rr"
    ipvs_exclude_cidrs: tuple[str, ...] = ()
    ipvs_strict_arp: bool = False
    ipvs_tcp_timeout: float = 0.0
    ipvs_tcpfin_timeout: float = 0.0
    ipvs_udp_timeout: float = 0.0
    ipvs_graceful_period: float = 3600.0
    nftables_reject_unallocated: bool = True
    service_cidrs: tuple[str, ...] = ()
    once: bool = False


def cidrs_by_family(texts: tuple[str, ...]) -> dict[Family, list[str]]:
    """Canonical CIDRs by family. Raises ValueError for one that is none."""
    found: dict[Family, list[str]] = {Family.IPV4: [], Family.IPV6: []}
    for text in texts:
        family, cidr = parse_cidr(text)
        found[family].append(cidr)
    return found


def validate(config: ProxyConfig) -> None:
    """Raise ConfigError naming every setting that cannot be used."""
    problems: list[str] = []
    if config.proxy_mode not in PROXY_MODES:
        problems.append(f"--proxy-mode {config.proxy_mode!r}: not one of {', '.join(PROXY_MODES)}")
    if config.kubeconfig is not None and config.manifests is not None:
        problems.append("--kubeconfig and --manifests exclude each other")
    for name, values in (
        ("--cluster-cidr", config.cluster_cidrs),
        ("--nodeport-addresses", config.node_port_addresses),
        ("--ipvs-exclude-cidrs", config.ipvs_exclude_cidrs),
        ("--service-cidr", config.service_cidrs),
    ):
        for value in values:
            if name == "--nodeport-addresses" and value == PRIMARY:
                if len(values) > 1:
                    problems.append(f"{name}: {PRIMARY!r} cannot be combined with CIDRs")
                continue
            try:
                parse_cidr(value)
            except ValueError as error:
                problems.append(f"{name} {value!r}: {error}")
    if not 0 <= config.masquerade_bit <= 31:
        problems.append(f"--iptables-masquerade-bit {config.masquerade_bit}: not in 0-31")
    if config.sync_period <= 0:
        problems.append(f"--iptables-sync-period {config.sync_period:g}s: must be positive")
    if config.min_sync_period < 0 or config.min_sync_period > config.sync_period:
        problems.append(
            f"--iptables-min-sync-period {config.min_sync_period:g}s: not between 0 and the sync period"
        )
    problems += _local_mode_problems(config)
    problems += _ipvs_problems(config)
    if not config.node_name:
        problems.append("--hostname-override: the node's name is empty")
    if problems:
        raise ConfigError(problems)


def _ipvs_problems(config: ProxyConfig) -> list[str]:
    problems = []
    try:
        parse_scheduler(config.ipvs_scheduler)
    except ValueError as error:
        problems.append(f"--ipvs-scheduler {config.ipvs_scheduler!r}: {error}")
    for flag, seconds in (
        ("--ipvs-tcp-timeout", config.ipvs_tcp_timeout),
        ("--ipvs-tcpfin-timeout", config.ipvs_tcpfin_timeout),
        ("--ipvs-udp-timeout", config.ipvs_udp_timeout),
    ):
        if seconds and not 1 <= seconds <= TIMEOUT_MAX:
            problems.append(f"{flag} {seconds:g}s: not 0 (leave as it is) or 1s to {TIMEOUT_MAX}s")
    if config.ipvs_graceful_period < 0:
        problems.append(f"--ipvs-graceful-period {config.ipvs_graceful_period:g}s: negative")
    return problems


def _local_mode_problems(config: ProxyConfig) -> list[str]:
    mode = config.detect_local_mode
    if mode not in DETECT_LOCAL_MODES:
        return [f"--detect-local-mode {mode!r}: not one of {', '.join(DETECT_LOCAL_MODES)}"]
    for wanted, flag, value in (
        ("BridgeInterface", "--pod-bridge-interface", config.pod_bridge_interface),
        ("InterfaceNamePrefix", "--pod-interface-name-prefix", config.pod_interface_name_prefix),
    ):
        if mode == wanted and _INTERFACE.fullmatch(value) is None:
            return [f"{flag} {value!r}: not an interface name, and --detect-local-mode {mode} needs one"]
    return []
