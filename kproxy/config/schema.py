"""The configuration file: kube-proxy's document, field for field, and kproxy's own.

Names, meanings and defaults are those of KubeProxyConfiguration, kubeproxy.config.k8s.io/v1alpha1, in
Kubernetes 1.36 (k8s.io/kube-proxy/config/v1alpha1/types.go). One default differs: with `minSyncPeriod` unset,
kproxy waits 100 ms between syncs, for its syncs are small.
"""

from collections.abc import Mapping
from typing import Annotated

import msgspec

from kproxy.backends.iptables.layout_selection import LAYOUTS
from kproxy.config.model import DETECT_LOCAL_MODES, PROXY_MODES
from kproxy.config.values import (
    Address,
    Bit,
    Burst,
    Cidr,
    ClusterCidrs,
    Count,
    EmptyIsDefault,
    FlushFrequency,
    HealthzAddress,
    KernelTimeout,
    MetricsAddress,
    MinPeriod,
    NodeName,
    NodePortRange,
    NotNegativeDuration,
    Period,
    Quantity,
    Rate,
    SchedulerName,
    one_of,
    within,
)

KUBE_PROXY = ("kubeproxy.config.k8s.io/v1alpha1", "KubeProxyConfiguration")
KPROXY = ("kproxy.io/v1alpha1", "KproxyConfiguration")

OBSOLETE = frozenset(
    {"conntrack.max", "ipvs.masqueradeAll", "resourceContainer", "udpIdleTimeout", "udpTimeoutMilliseconds"}
)
"""Paths of the first document that are in many clusters' files and that kube-proxy 1.36 has not.

All were fields until Kubernetes 1.9 to 1.26 but `ipvs.masqueradeAll`, which guides tell to write and which
kube-proxy has ignored ever since: IPVS mode obeys that of `iptables`.
"""

MIN_SYNC_PERIOD = 0.1
"""Seconds between the end of a sync and the next where `minSyncPeriod` is not set."""


class Section(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A mapping in the file. Times are seconds here, Go durations there."""


class Iptables(Section, frozen=True):
    """`iptables`; IPVS mode takes its masquerading from here too."""

    masquerade_bit: Bit = 14
    masquerade_all: bool = False
    localhost_node_ports: bool = True
    sync_period: Period = 30.0
    min_sync_period: MinPeriod = MIN_SYNC_PERIOD


class Ipvs(Section, frozen=True):
    """`ipvs`."""

    sync_period: Period = 30.0
    min_sync_period: MinPeriod = MIN_SYNC_PERIOD
    scheduler: SchedulerName = "rr"
    exclude_cidrs: tuple[Cidr, ...] = msgspec.field(default=(), name="excludeCIDRs")
    strict_arp: bool = msgspec.field(default=False, name="strictARP")
    tcp_timeout: KernelTimeout = 0.0
    tcp_fin_timeout: KernelTimeout = 0.0
    udp_timeout: KernelTimeout = 0.0


class Nftables(Section, frozen=True):
    """`nftables`."""

    masquerade_bit: Bit = 14
    masquerade_all: bool = False
    sync_period: Period = 30.0
    min_sync_period: MinPeriod = MIN_SYNC_PERIOD


class Conntrack(Section, frozen=True):
    """`conntrack`; a timeout of 0 leaves the kernel's, and so does `maxPerCore: 0` the limit."""

    max_per_core: Count = 32768
    min: Count = 131072
    tcp_established_timeout: NotNegativeDuration = 86400.0
    tcp_close_wait_timeout: NotNegativeDuration = 3600.0
    tcp_be_liberal: bool = False
    udp_timeout: NotNegativeDuration = 0.0
    udp_stream_timeout: NotNegativeDuration = 0.0


class DetectLocal(Section, frozen=True):
    """`detectLocal`."""

    bridge_interface: str = ""
    interface_name_prefix: str = ""


class ClientConnection(Section, frozen=True):
    """`clientConnection`."""

    kubeconfig: str = ""
    accept_content_types: str = ""
    content_type: Annotated[str, EmptyIsDefault()] = "application/vnd.kubernetes.protobuf"
    qps: Rate = 5.0
    burst: Burst = 10


class VerbosityOfFiles(Section, frozen=True):
    """An item of `logging.vmodule`."""

    file_pattern: str = ""
    verbosity: Count = 0


class LogOutput(Section, frozen=True):
    """`logging.options.text` and `.json`."""

    split_stream: bool = False
    info_buffer_size: Quantity = "0"


class LogOptions(Section, frozen=True):
    """`logging.options`."""

    text: LogOutput = LogOutput()
    json: LogOutput = LogOutput()


class Logging(Section, frozen=True):
    """`logging` (k8s.io/component-base/logs/api/v1)."""

    format: Annotated[str, one_of("text", "json"), EmptyIsDefault()] = "text"
    flush_frequency: Annotated[FlushFrequency, EmptyIsDefault()] = 5.0
    verbosity: Count = 0
    vmodule: tuple[VerbosityOfFiles, ...] = ()
    options: LogOptions = LogOptions()


class Winkernel(Section, frozen=True):
    """`winkernel`."""

    network_name: str = ""
    source_vip: str = ""
    enable_dsr: bool = msgspec.field(default=False, name="enableDSR")
    root_hns_endpoint_name: str = ""
    forward_health_check_vip: bool = False


class KubeProxyConfiguration(Section, frozen=True):
    """The first document.

    An empty `healthzBindAddress` or `metricsBindAddress` turns that server off, but only flags can say so: in
    a file it stands for the default, which follows the family of `bindAddress`.
    """

    feature_gates: Mapping[str, bool] = {}
    client_connection: ClientConnection = ClientConnection()
    logging: Logging = Logging()
    hostname_override: NodeName = ""
    bind_address: Address = "0.0.0.0"  # noqa: S104
    healthz_bind_address: HealthzAddress = "0.0.0.0:10256"
    metrics_bind_address: MetricsAddress = "127.0.0.1:10249"
    bind_address_hard_fail: bool = False
    enable_profiling: bool = False
    show_hidden_metrics_for_version: str = ""
    mode: Annotated[str, one_of(*PROXY_MODES), EmptyIsDefault()] = "iptables"
    iptables: Iptables = Iptables()
    ipvs: Ipvs = Ipvs()
    nftables: Nftables = Nftables()
    winkernel: Winkernel = Winkernel()
    detect_local_mode: Annotated[str, one_of(*DETECT_LOCAL_MODES), EmptyIsDefault()] = "ClusterCIDR"
    detect_local: DetectLocal = DetectLocal()
    cluster_cidr: ClusterCidrs = msgspec.field(default="", name="clusterCIDR")
    node_port_addresses: tuple[NodePortRange, ...] = ()
    oom_score_adj: Annotated[int, within(-1000, 1000)] = -999
    conntrack: Conntrack = Conntrack()
    config_sync_period: Period = 900.0
    port_range: str = ""
    windows_run_as_service: bool = False


class OwnExternalIps(Section, frozen=True):
    """`externalIPs` of kproxy's own document; without a range of any family all addresses are allowed."""

    allowed_cidrs: tuple[Cidr, ...] = msgspec.field(default=(), name="allowedCIDRs")


class OwnIptables(Section, frozen=True):
    """`iptables` of kproxy's own document."""

    layout: Annotated[str, one_of(*LAYOUTS)] = "auto"
    variant: Annotated[str, one_of("", "legacy", "nft")] = ""


class OwnIpvs(Section, frozen=True):
    """`ipvs` of kproxy's own document."""

    graceful_period: NotNegativeDuration = 3600.0


class OwnMetrics(Section, frozen=True):
    """`metrics` of kproxy's own document."""

    service_limit: Count = 500


class OwnNftables(Section, frozen=True):
    """`nftables` of kproxy's own document."""

    reject_unallocated: bool = True
    service_cidrs: tuple[Cidr, ...] = msgspec.field(default=(), name="serviceCIDRs")


class KproxyConfiguration(Section, frozen=True):
    """The second document, which is kproxy's own and may be left out.

    It is a document rather than a field of the first, because kube-proxy reads the first document of a file
    and no other: the same file serves both, and going back changes nothing.
    """

    manifests: str = ""
    cleanup_on_exit: bool = False
    external_ips: OwnExternalIps = msgspec.field(default=OwnExternalIps(), name="externalIPs")
    iptables: OwnIptables = OwnIptables()
    metrics: OwnMetrics = OwnMetrics()
    nftables: OwnNftables = OwnNftables()
    ipvs: OwnIpvs = OwnIpvs()
