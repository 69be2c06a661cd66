"""The resolved configuration: the settings of both documents and of the process, for one mode."""

from pathlib import Path

import msgspec

from kproxy.addresses import Family, parse_cidr
from kproxy.config.modes import traits_of
from kproxy.config.schema import DETECT_LOCAL_MODES, PROXY_MODES, KproxyConfiguration, KubeProxyConfiguration
from kproxy.config.schema_sections import Conntrack as ConntrackSettings
from kproxy.config.values import LONGEST_INTERFACE, PRIMARY, is_interface
from kproxy.kernel.xtables.types import Variant
from kproxy.plan.limits import Limits

__all__ = [
    "DETECT_LOCAL_MODES",
    "LONGEST_INTERFACE",
    "PRIMARY",
    "PROXY_MODES",
    "ConfigError",
    "ConntrackSettings",
    "ProxyConfig",
    "cidrs_by_family",
    "is_interface",
    "mode_name",
    "validate",
]

_KUBE = KubeProxyConfiguration()
_OWN = KproxyConfiguration()


class ConfigError(ValueError):
    """Invalid settings; `problems` names each of them."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class ProxyConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of one kproxy. Times are seconds. Defaults are those of the schema.

    A field with the name of a flag (dashes as underscores) takes that setting's value; translate.py sets the
    others.

    Objects come from `replay`, from `kubeconfig`, from `manifests`, or with none from the cluster of the pod.
    `replay` is a recording, of which the events up to the number `replay_until` count; 0: all.
    `min_sync_period` is the minimum time between the end of one sync and the start of the next; less than
    100 ms is kept on average, and 100 ms is an upper bound for cheap syncs (agent/schedule.py). `master` is
    the API server's URL, if it is not the kubeconfig's. `bind_address` is the node's primary address of its
    family, unless it is unspecified; nothing is bound to it (the name is kube-proxy's). `once_timeout` is the
    time limit of `once`; 0: no limit.
    """

    node_name: str
    proxy_mode: str = _KUBE.mode
    kubeconfig: Path | None = None
    master: str = ""
    manifests: Path | None = None
    replay: Path | None = None
    replay_until: int = 0
    cluster_cidrs: tuple[str, ...] = ()
    detect_local_mode: str = _KUBE.detect_local_mode
    pod_bridge_interface: str = _KUBE.detect_local.bridge_interface
    pod_interface_name_prefix: str = _KUBE.detect_local.interface_name_prefix
    masquerade_all: bool = _KUBE.iptables.masquerade_all
    masquerade_bit: int = _KUBE.iptables.masquerade_bit
    localhost_node_ports: bool = _KUBE.iptables.localhost_node_ports
    sync_period: float = _KUBE.iptables.sync_period
    min_sync_period: float = _KUBE.iptables.min_sync_period
    node_port_addresses: tuple[str, ...] = _KUBE.node_port_addresses
    bind_address: str = _KUBE.bind_address
    bind_address_hard_fail: bool = _KUBE.bind_address_hard_fail
    healthz_bind_address: str = _KUBE.healthz_bind_address
    metrics_bind_address: str = _KUBE.metrics_bind_address
    conntrack: ConntrackSettings = _KUBE.conntrack
    oom_score_adj: int = _KUBE.oom_score_adj
    verbosity: int = _KUBE.logging.verbosity
    logging_format: str = _KUBE.logging.format
    metrics_service_limit: int = _OWN.metrics.service_limit
    profiling: bool = _KUBE.enable_profiling
    external_ips: bool = True
    external_ip_cidrs: tuple[str, ...] = _OWN.external_ips.allowed_cidrs
    iptables_variant: Variant | None = None
    iptables_layout: str = _OWN.iptables.layout
    ipvs_scheduler: str = _KUBE.ipvs.scheduler
    ipvs_exclude_cidrs: tuple[str, ...] = _KUBE.ipvs.exclude_cidrs
    ipvs_strict_arp: bool = _KUBE.ipvs.strict_arp
    ipvs_tcp_timeout: float = _KUBE.ipvs.tcp_timeout
    ipvs_tcpfin_timeout: float = _KUBE.ipvs.tcp_fin_timeout
    ipvs_udp_timeout: float = _KUBE.ipvs.udp_timeout
    ipvs_graceful_period: float = _OWN.ipvs.graceful_period
    nftables_reject_unallocated: bool = _OWN.nftables.reject_unallocated
    service_cidrs: tuple[str, ...] = _OWN.nftables.service_cidrs
    ebpf_cgroup_root: str = _OWN.ebpf.cgroup_root
    ebpf_pin_directory: str = _OWN.ebpf.pin_directory
    ebpf_host_namespace_only: bool = _OWN.ebpf.host_namespace_only
    limit_endpoints_per_port: int = _OWN.limits.endpoints_per_port
    limit_endpoints_per_service: int = _OWN.limits.endpoints_per_service
    limit_ports_per_service: int = _OWN.limits.ports_per_service
    limit_frontends_per_service: int = _OWN.limits.frontends_per_service
    limit_elements_per_service: int = _OWN.limits.elements_per_service
    limit_source_ranges_per_service: int = _OWN.limits.source_ranges_per_service
    limit_log_lines_per_minute: int = _OWN.limits.log_lines_per_minute
    network_policy: bool = _OWN.network_policy.enabled
    network_policy_unknown_pods: str = _OWN.network_policy.unknown_pods
    network_policy_keep_connections: bool = _OWN.network_policy.keep_connections
    network_policy_reject: bool = _OWN.network_policy.reject
    cleanup_on_exit: bool = _OWN.cleanup_on_exit
    once: bool = False
    once_timeout: float = 0.0

    @property
    def limits(self) -> Limits:
        """What one service may cost."""
        return Limits(**{name: getattr(self, f"limit_{name}") for name in Limits.__struct_fields__})


def cidrs_by_family(texts: tuple[str, ...]) -> dict[Family, list[str]]:
    """Canonical CIDRs by family. Raises ValueError for text that is no CIDR."""
    found: dict[Family, list[str]] = {Family.IPV4: [], Family.IPV6: []}
    for text in texts:
        family, cidr = parse_cidr(text)
        found[family].append(cidr)
    return found


def validate(config: ProxyConfig) -> None:
    """Check the node's name; all settings were checked as they were read. Raises ConfigError."""
    if not config.node_name:
        raise ConfigError(["--hostname-override: the node's name is empty"])


def mode_name(config: ProxyConfig) -> str:
    """The mode, followed by a slash and the iptables variant if one is requested and the mode uses it."""
    if config.iptables_variant is None or not traits_of(config.proxy_mode).writes_iptables:
        return config.proxy_mode
    return f"{config.proxy_mode}/{config.iptables_variant.value}"
