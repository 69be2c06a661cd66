"""From what the operator wrote to what kproxy works with, and what of it does nothing here."""

from collections.abc import Iterator
from pathlib import Path

from kproxy.addresses import Family
from kproxy.config.codec import flatten
from kproxy.config.documents import Settings
from kproxy.config.model import PRIMARY, ConntrackSettings, ProxyConfig, cidrs_by_family
from kproxy.config.schema import Iptables, Ipvs, KubeProxyConfiguration, Nftables
from kproxy.kernel.xtables.types import Variant

WITHOUT_EFFECT = (
    "clientConnection.acceptContentTypes",
    "clientConnection.burst",
    "clientConnection.contentType",
    "clientConnection.qps",
    "configSyncPeriod",
    "logging.flushFrequency",
    "logging.format",
    "logging.options.",
    "logging.vmodule",
    "portRange",
    "showHiddenMetricsForVersion",
    "windowsRunAsService",
    "winkernel.",
)
"""Paths, and with a dot at the end sections, that mean nothing here: kproxy has three long watches and no
other requests, reads JSON, hides no metrics, writes every log line at once in one form, and needs Linux."""

KNOWN_GATES = frozenset(
    {
        "AllAlpha",
        "AllBeta",
        "ComponentFlagz",
        "ComponentStatusz",
        "ContextualLogging",
        "KubeProxyDrainingTerminatingNodes",
        "KubeProxyIPVS",
        "LoggingAlphaOptions",
        "LoggingBetaOptions",
        "MultiCIDRServiceAllocator",
        "NFTablesProxyMode",
        "PreferSameTrafficDistribution",
        "ServiceTrafficDistribution",
        "TopologyAwareHints",
        "WatchListClient",
    }
)
"""Gates that kube-proxy has or had a use for, and that change nothing here."""

EXTERNAL_IPS = "AllowServiceExternalIPs"
"""The gate that takes away spec.externalIPs (KEP-5707); on by default in 1.36."""


def proxy_config(
    settings: Settings, *, host: str, master: str = "", once: bool = False, once_timeout: float = 0.0
) -> ProxyConfig:
    """The settings of this process. `host` is the host's name; it is the node's if no other is given."""
    kube, own = settings.kube, settings.own
    section: Iptables | Ipvs | Nftables = kube.iptables
    if kube.mode == "ipvs":
        section = kube.ipvs
    elif kube.mode == "nftables":
        section = kube.nftables
    masquerading = kube.nftables if kube.mode == "nftables" else kube.iptables
    from_cluster = not own.manifests
    kubeconfig = kube.client_connection.kubeconfig
    return ProxyConfig(
        node_name=(kube.hostname_override.strip() or host).strip().lower(),
        proxy_mode=kube.mode,
        kubeconfig=Path(kubeconfig) if kubeconfig and from_cluster else None,
        master=master,
        manifests=Path(own.manifests) if own.manifests else None,
        cluster_cidrs=_parts(kube.cluster_cidr),
        detect_local_mode=kube.detect_local_mode,
        pod_bridge_interface=kube.detect_local.bridge_interface,
        pod_interface_name_prefix=kube.detect_local.interface_name_prefix,
        masquerade_all=masquerading.masquerade_all,
        masquerade_bit=masquerading.masquerade_bit,
        localhost_node_ports=kube.iptables.localhost_node_ports,
        sync_period=section.sync_period,
        min_sync_period=section.min_sync_period,
        node_port_addresses=kube.node_port_addresses,
        bind_address=kube.bind_address,
        bind_address_hard_fail=kube.bind_address_hard_fail,
        healthz_bind_address=kube.healthz_bind_address,
        metrics_bind_address=kube.metrics_bind_address,
        metrics_service_limit=own.metrics.service_limit,
        profiling=kube.enable_profiling,
        external_ips=kube.feature_gates.get(EXTERNAL_IPS, True),
        external_ip_cidrs=own.external_ips.allowed_cidrs,
        nftables_reject_unallocated=own.nftables.reject_unallocated,
        service_cidrs=own.nftables.service_cidrs,
        iptables_variant=Variant(own.iptables.variant) if own.iptables.variant else None,
        iptables_layout=own.iptables.layout,
        ipvs_scheduler=kube.ipvs.scheduler,
        ipvs_exclude_cidrs=kube.ipvs.exclude_cidrs,
        ipvs_strict_arp=kube.ipvs.strict_arp,
        ipvs_tcp_timeout=kube.ipvs.tcp_timeout,
        ipvs_tcpfin_timeout=kube.ipvs.tcp_fin_timeout,
        ipvs_udp_timeout=kube.ipvs.udp_timeout,
        ipvs_graceful_period=own.ipvs.graceful_period,
        conntrack=ConntrackSettings(
            max_per_core=kube.conntrack.max_per_core,
            min=kube.conntrack.min,
            tcp_established_timeout=kube.conntrack.tcp_established_timeout,
            tcp_close_wait_timeout=kube.conntrack.tcp_close_wait_timeout,
            tcp_be_liberal=kube.conntrack.tcp_be_liberal,
            udp_timeout=kube.conntrack.udp_timeout,
            udp_stream_timeout=kube.conntrack.udp_stream_timeout,
        ),
        oom_score_adj=kube.oom_score_adj,
        verbosity=kube.logging.verbosity,
        cleanup_on_exit=own.cleanup_on_exit,
        once=once,
        once_timeout=once_timeout,
    )


def without_effect(kube: KubeProxyConfiguration) -> list[str]:
    """Paths that are set to something other than their default, and do nothing."""
    gates = [f"featureGates.{name}" for name in kube.feature_gates if name in KNOWN_GATES]
    return sorted([*_changed(kube), *gates])


def unknown_gates(kube: KubeProxyConfiguration) -> list[str]:
    """Feature gates that kube-proxy has no use for either."""
    return sorted(kube.feature_gates.keys() - KNOWN_GATES - {EXTERNAL_IPS})


def unrestricted(kube: KubeProxyConfiguration) -> list[str]:
    """Families of `clusterCIDR` whose node ports answer everywhere, though `nodePortAddresses` is not empty.

    A list of one family leaves the other as it is, which few expect (checkBadConfig of kube-proxy warns too).
    """
    ranges = kube.node_port_addresses
    if not ranges or PRIMARY in ranges:
        return []
    restricted = cidrs_by_family(ranges)
    used = cidrs_by_family(_parts(kube.cluster_cidr))
    return [family.value for family in Family if used[family] and not restricted[family]]


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def has_no_effect(path: str) -> bool:
    """Whether a path of KubeProxyConfiguration means nothing here."""
    return any(path == each or (each.endswith(".") and path.startswith(each)) for each in WITHOUT_EFFECT)


def _changed(kube: KubeProxyConfiguration) -> Iterator[str]:
    defaults = dict(flatten(KubeProxyConfiguration()))
    for path, value in flatten(kube):
        if has_no_effect(path) and value != defaults[path]:
            yield path
