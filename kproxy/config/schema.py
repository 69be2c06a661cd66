"""The configuration file: kube-proxy's document, field for field, and kproxy's own.

Names, meanings and defaults are those of KubeProxyConfiguration, kubeproxy.config.k8s.io/v1alpha1, in
Kubernetes 1.36 (k8s.io/kube-proxy/config/v1alpha1/types.go). One default differs: with `minSyncPeriod` unset,
kproxy waits 100 ms between syncs, because its syncs are small.

Each field is the one declaration of a setting: see settings.py. The order is that of `--help`.
"""

from collections.abc import Mapping
from typing import Annotated

import msgspec

from kproxy.config.modes import kube_proxy_modes, mode_names
from kproxy.config.schema_modes import (
    Iptables,
    Ipvs,
    Nftables,
    OwnEbpf,
    OwnIptables,
    OwnIpvs,
    OwnNftables,
)
from kproxy.config.schema_sections import (
    ClientConnection,
    Conntrack,
    DetectLocal,
    OwnExternalIps,
    OwnLimits,
    OwnMetrics,
    OwnNetworkPolicy,
    Winkernel,
)
from kproxy.config.settings import NODE, RULES, Group, Section, ignored, live, restart
from kproxy.config.values import (
    Address,
    Check,
    ClusterCidrs,
    Count,
    DirectoryPath,
    EmptyIsDefault,
    EmptyIsNotWritten,
    FlushFrequency,
    HealthzAddress,
    MetricsAddress,
    NodeName,
    NodePortRange,
    Period,
    Quantity,
    one_of,
    within,
)

KUBE_PROXY = ("kubeproxy.config.k8s.io/v1alpha1", "KubeProxyConfiguration")
KPROXY = ("kproxy.io/v1alpha1", "KproxyConfiguration")

PROXY_MODES = kube_proxy_modes()
"""The values of `mode` of kube-proxy's document; --proxy-mode and kproxy's own document know more."""

DETECT_LOCAL_MODES = ("ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix")

OBSOLETE = frozenset(
    {"conntrack.max", "ipvs.masqueradeAll", "resourceContainer", "udpIdleTimeout", "udpTimeoutMilliseconds"}
)
"""Paths of the first document that many files contain and that kube-proxy 1.36 does not have.

All were fields until Kubernetes 1.9 to 1.26, except `ipvs.masqueradeAll`: guides recommend it, but kube-proxy
has always ignored it. IPVS mode takes the value of `iptables`.
"""


def _mode_of_kube_proxy(value: str) -> None:
    if value in PROXY_MODES:
        return
    if value in mode_names():
        raise ValueError(f"is no mode of kube-proxy: set it as `mode` of {KPROXY[1]} ({KPROXY[0]}) instead")
    raise ValueError(f"is not one of {', '.join(PROXY_MODES)}")


class VerbosityOfFiles(Section, frozen=True):
    """An item of `logging.vmodule`."""

    file_pattern: str = ""
    verbosity: Count = 0


class TextOutput(Section, frozen=True):
    """`logging.options.text`."""

    split_stream: Annotated[bool, ignored("log-text-split-stream", with_file=True)] = False
    info_buffer_size: Annotated[Quantity, ignored("log-text-info-buffer-size", with_file=True)] = "0"


class JsonOutput(Section, frozen=True):
    """`logging.options.json`."""

    split_stream: Annotated[bool, ignored("log-json-split-stream", with_file=True)] = False
    info_buffer_size: Annotated[Quantity, ignored("log-json-info-buffer-size", with_file=True)] = "0"


class LogOptions(Section, frozen=True):
    """`logging.options`."""

    text: TextOutput = TextOutput()
    json: JsonOutput = JsonOutput()


class Logging(Section, frozen=True):
    """`logging` (k8s.io/component-base/logs/api/v1)."""

    verbosity: Annotated[
        Count, live("v", "Log verbosity; 4 logs every sync.", short="v", metavar="LEVEL", with_file=True)
    ] = 0
    format: Annotated[
        str,
        one_of("text", "json"),
        EmptyIsDefault(),
        live(
            "logging-format",
            "Log format: key=value pairs, or one JSON object a line.",
            metavar="text|json",
            with_file=True,
        ),
    ] = "text"
    flush_frequency: Annotated[
        FlushFrequency, EmptyIsDefault(), ignored("log-flush-frequency", with_file=True)
    ] = 5.0
    vmodule: Annotated[
        tuple[VerbosityOfFiles, ...], ignored("vmodule", "PATTERN=LEVEL,...", with_file=True)
    ] = ()
    options: LogOptions = LogOptions()


class KubeProxyConfiguration(Section, frozen=True):
    """The first document.

    An empty `healthzBindAddress` or `metricsBindAddress` turns that server off, but only as a flag: in a file
    it stands for the default, which follows the family of `bindAddress`.
    """

    mode: Annotated[
        str,
        Check(_mode_of_kube_proxy, mode_names()),
        EmptyIsDefault(),
        live("proxy-mode", "Proxy mode.", RULES, empty_is_unset=True),
    ] = "iptables"
    cluster_cidr: Annotated[
        ClusterCidrs,
        live(
            "cluster-cidr",
            "Pod addresses of the cluster. Traffic to cluster IPs from other addresses is masqueraded.",
            RULES,
            metavar="CIDR[,CIDR]",
        ),
    ] = msgspec.field(default="", name="clusterCIDR")
    detect_local_mode: Annotated[
        str,
        one_of(*DETECT_LOCAL_MODES),
        EmptyIsDefault(),
        live("detect-local-mode", "How local pod traffic is detected.", RULES, empty_is_unset=True),
    ] = "ClusterCIDR"
    detect_local: DetectLocal = DetectLocal()
    node_port_addresses: Annotated[
        tuple[NodePortRange, ...],
        live(
            "nodeport-addresses",
            "Local addresses that serve node ports; empty: all, in nftables mode the primary ones.",
            RULES,
            metavar="CIDR,...|primary",
        ),
    ] = ()
    bind_address: Annotated[
        Address,
        live(
            "bind-address",
            "Primary address of the node, if it differs from the Node object. Nothing is bound to it.",
            RULES,
            metavar="IP",
            empty_is_unset=True,
        ),
    ] = "0.0.0.0"  # noqa: S104
    client_connection: ClientConnection = ClientConnection()
    hostname_override: Annotated[
        NodeName,
        restart(
            "hostname-override",
            "Name of this node; empty: the host name.",
            NODE,
            metavar="NAME",
            with_file=True,
            empty_is_unset=True,
        ),
    ] = ""
    feature_gates: Annotated[
        Mapping[str, bool],
        live(
            "feature-gates",
            "AllowServiceExternalIPs=false disables spec.externalIPs. Other gates are ignored.",
            NODE,
            metavar="NAME=BOOL,...",
        ),
    ] = {}
    iptables: Iptables = Iptables()
    ipvs: Ipvs = Ipvs()
    nftables: Nftables = Nftables()
    conntrack: Conntrack = Conntrack()
    oom_score_adj: Annotated[
        int, within(-1000, 1000), live("oom-score-adj", "OOM score adjustment of the process, -1000 to 1000.")
    ] = -999
    healthz_bind_address: Annotated[
        HealthzAddress,
        restart(
            "healthz-bind-address", 'Address of /healthz and /livez; "" disables them.', group=Group.SERVERS
        ),
    ] = "0.0.0.0:10256"
    metrics_bind_address: Annotated[
        MetricsAddress,
        restart(
            "metrics-bind-address",
            'Address of /metrics, /status and /configz; "" disables them.',
            group=Group.SERVERS,
        ),
    ] = "127.0.0.1:10249"
    bind_address_hard_fail: Annotated[
        bool, restart("bind-address-hard-fail", "Exit if a bind address is unavailable.", group=Group.SERVERS)
    ] = False
    enable_profiling: Annotated[
        bool,
        live(
            "profiling",
            "Serve /debug/threads and /debug/profile at the address of /metrics.",
            group=Group.SERVERS,
        ),
    ] = False
    logging: Logging = Logging()
    show_hidden_metrics_for_version: Annotated[str, ignored("show-hidden-metrics-for-version", "1.X")] = ""
    config_sync_period: Annotated[Period, ignored("config-sync-period")] = 900.0
    port_range: Annotated[str, ignored()] = ""
    windows_run_as_service: Annotated[bool, ignored()] = False
    winkernel: Winkernel = Winkernel()


class KproxyConfiguration(Section, frozen=True):
    """The second document, which is kproxy's own and optional.

    It is a document rather than a field of the first, because kube-proxy reads only the first document of a
    file: the same file works for both, and a return to kube-proxy needs no change.
    """

    mode: Annotated[
        str,
        one_of("", *mode_names()),
        EmptyIsNotWritten(),
        live("", "Proxy mode, also one that kube-proxy does not have; empty: `mode` of its document.", RULES),
    ] = ""
    manifests: Annotated[
        DirectoryPath,
        restart(
            "manifests",
            "Read objects from the YAML and JSON files of this directory, not from an API server.",
            NODE,
        ),
    ] = ""
    cleanup_on_exit: Annotated[
        bool, live("cleanup-on-exit", "Remove all kernel objects of kproxy when a signal ends it.")
    ] = False
    ebpf: OwnEbpf = OwnEbpf()
    external_ips: OwnExternalIps = msgspec.field(default=OwnExternalIps(), name="externalIPs")
    iptables: OwnIptables = OwnIptables()
    limits: OwnLimits = OwnLimits()
    metrics: OwnMetrics = OwnMetrics()
    network_policy: OwnNetworkPolicy = OwnNetworkPolicy()
    nftables: OwnNftables = OwnNftables()
    ipvs: OwnIpvs = OwnIpvs()
