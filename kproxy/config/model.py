"""What an operator can set, under kube-proxy's names, checked as a whole before anything starts."""

import re
from pathlib import Path

import msgspec

from kproxy.addresses import Family, parse_cidr, parse_ip, split_host_port
from kproxy.backends.iptables.layout_selection import LAYOUTS
from kproxy.kernel.xtables.types import Variant
from kproxy.plan.schedulers import parse_scheduler

PRIMARY = "primary"
"""The value of --nodeport-addresses that stands for the node's own primary addresses."""

PROXY_MODES = ("iptables", "ipvs", "nftables")

DETECT_LOCAL_MODES = ("ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix")

TIMEOUT_MAX = (1 << 31) // 1000
"""Upper bound of IPVS timeouts in seconds: INT_MAX jiffies at the usual HZ of 1000 (ip_vs_ctl.c)."""

LONGEST_INTERFACE = 15
"""Characters that the name of an interface can have (IFNAMSIZ is 16 with the closing zero)."""

_INTERFACE = re.compile(rf"[A-Za-z0-9_.@-]{{1,{LONGEST_INTERFACE}}}")


class ConfigError(ValueError):
    """Settings that cannot be used; `problems` names every one of them."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class ConntrackSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Kernel parameters of connection tracking, as kube-proxy sets them at start.

    Times in seconds, 0: the kernel's own. `max_per_core` 0: the kernel's own limit, whatever `min` says.
    """

    max_per_core: int = 32768
    min: int = 131072
    tcp_established_timeout: float = 86400.0
    tcp_close_wait_timeout: float = 3600.0
    tcp_be_liberal: bool = False
    udp_timeout: float = 0.0
    udp_stream_timeout: float = 0.0


class ProxyConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of one kproxy. Times are seconds.

    Exactly one of `kubeconfig`, `manifests` and neither (in-cluster) says where objects come from.
    `min_sync_period` is the least time between the end of one sync and the start of the next; one of 100 ms
    or less is kept on average (agent/schedule.py). `master` is the API server's URL, if it is not the
    kubeconfig's. `bind_address` is the node's primary address of its family, unless it is unspecified;
    nothing is bound to it (kube-proxy's name is history). `once_timeout` is how long `once` may take; 0: as
    long as it takes.
    """

    node_name: str
    proxy_mode: str = "iptables"
    kubeconfig: Path | None = None
    master: str = ""
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
    bind_address: str = "0.0.0.0"  # noqa: S104
    bind_address_hard_fail: bool = False
    healthz_bind_address: str = "0.0.0.0:10256"
    metrics_bind_address: str = "127.0.0.1:10249"
    conntrack: ConntrackSettings = ConntrackSettings()
    oom_score_adj: int = -999
    verbosity: int = 0
    metrics_service_limit: int = 500
    profiling: bool = False
    external_ips: bool = True
    external_ip_cidrs: tuple[str, ...] = ()
    iptables_variant: Variant | None = None
    iptables_layout: str = "auto"
    ipvs_scheduler: str = "rr"
    ipvs_exclude_cidrs: tuple[str, ...] = ()
    ipvs_strict_arp: bool = False
    ipvs_tcp_timeout: float = 0.0
    ipvs_tcpfin_timeout: float = 0.0
    ipvs_udp_timeout: float = 0.0
    ipvs_graceful_period: float = 3600.0
    nftables_reject_unallocated: bool = True
    service_cidrs: tuple[str, ...] = ()
    cleanup_on_exit: bool = False
    once: bool = False
    once_timeout: float = 0.0


def is_interface(name: str) -> bool:
    """Whether this can be the name of a network interface."""
    return _INTERFACE.fullmatch(name) is not None


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
        ("--external-ip-allowed-cidrs", config.external_ip_cidrs),
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
    if config.iptables_layout not in LAYOUTS:
        problems.append(f"--iptables-layout {config.iptables_layout!r}: not one of {', '.join(LAYOUTS)}")
    try:
        parse_ip(config.bind_address)
    except ValueError as error:
        problems.append(f"--bind-address {config.bind_address!r}: {error}")
    if not 0 <= config.masquerade_bit <= 31:
        problems.append(f"--iptables-masquerade-bit {config.masquerade_bit}: not in 0-31")
    if config.sync_period <= 0:
        problems.append(f"--iptables-sync-period {config.sync_period:g}s: must be positive")
    if config.min_sync_period < 0 or config.min_sync_period > config.sync_period:
        problems.append(
            f"--iptables-min-sync-period {config.min_sync_period:g}s: not between 0 and the sync period"
        )
    for flag, address in (
        ("--healthz-bind-address", config.healthz_bind_address),
        ("--metrics-bind-address", config.metrics_bind_address),
    ):
        try:
            if address:
                split_host_port(address)
        except ValueError as error:
            problems.append(f"{flag}: {error}")
    if config.metrics_service_limit < 0:
        problems.append(f"--metrics-service-limit {config.metrics_service_limit}: negative")
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
        if mode == wanted and not is_interface(value):
            return [f"{flag} {value!r}: not an interface name, and --detect-local-mode {mode} needs one"]
    return []


def mode_name(config: ProxyConfig) -> str:
    """`iptables`, with the variant behind a slash where one is asked for: `ipvs/legacy`."""
    if config.iptables_variant is None or config.proxy_mode == "nftables":
        return config.proxy_mode
    return f"{config.proxy_mode}/{config.iptables_variant.value}"
