"""Sections of the configuration file that all modes share: kube-proxy's, and kproxy's own (`Own...`).

Each field is the one declaration of a setting: see settings.py. The order is that of `--help`.
"""

from typing import Annotated

import msgspec

from kproxy.config.settings import NODE, RULES, Group, Section, ignored, live, restart
from kproxy.config.values import (
    Bound,
    Burst,
    Cidr,
    Count,
    EmptyIsDefault,
    FilePath,
    NotNegativeDuration,
    Rate,
    one_of,
)
from kproxy.plan.limits import DEFAULT_LIMITS


class DetectLocal(Section, frozen=True):
    """`detectLocal`."""

    bridge_interface: Annotated[
        str,
        live(
            "pod-bridge-interface",
            "Bridge of the local pods, for mode BridgeInterface.",
            RULES,
            metavar="IFACE",
        ),
    ] = ""
    interface_name_prefix: Annotated[
        str,
        live(
            "pod-interface-name-prefix",
            "Prefix of the local pods' interfaces, for mode InterfaceNamePrefix.",
            RULES,
            metavar="PREFIX",
        ),
    ] = ""


class ClientConnection(Section, frozen=True):
    """`clientConnection`."""

    kubeconfig: Annotated[
        FilePath,
        restart(
            "kubeconfig", "Kubeconfig file; without it and --manifests, the in-cluster configuration.", NODE
        ),
    ] = ""
    accept_content_types: Annotated[str, ignored()] = ""
    content_type: Annotated[str, EmptyIsDefault(), ignored("kube-api-content-type", "TYPE")] = (
        "application/vnd.kubernetes.protobuf"
    )
    qps: Annotated[Rate, ignored("kube-api-qps")] = 5.0
    burst: Annotated[Burst, ignored("kube-api-burst")] = 10


class Conntrack(Section, frozen=True):
    """`conntrack`; 0 leaves the kernel's value of a timeout, and of `maxPerCore`."""

    max_per_core: Annotated[
        Count,
        live("conntrack-max-per-core", "Tracked connections per core; 0 leaves the kernel's limit.", NODE),
    ] = 32768
    min: Annotated[Count, live("conntrack-min", "Minimum of the limit of tracked connections.", NODE)] = (
        131072
    )
    tcp_established_timeout: Annotated[
        NotNegativeDuration,
        live(
            "conntrack-tcp-timeout-established",
            "Timeout of idle TCP connections; 0 leaves the kernel's value.",
            NODE,
        ),
    ] = 86400.0
    tcp_close_wait_timeout: Annotated[
        NotNegativeDuration,
        live(
            "conntrack-tcp-timeout-close-wait",
            "Timeout of TCP connections in CLOSE_WAIT; 0 leaves the kernel's value.",
            NODE,
        ),
    ] = 3600.0
    tcp_be_liberal: Annotated[
        bool, restart("conntrack-tcp-be-liberal", "Do not treat out-of-window TCP packets as invalid.", NODE)
    ] = False
    udp_timeout: Annotated[
        NotNegativeDuration,
        live("conntrack-udp-timeout", "Timeout of unanswered UDP flows; 0 leaves the kernel's value.", NODE),
    ] = 0.0
    udp_stream_timeout: Annotated[
        NotNegativeDuration,
        live(
            "conntrack-udp-timeout-stream",
            "Timeout of answered UDP flows; 0 leaves the kernel's value.",
            NODE,
        ),
    ] = 0.0


class Winkernel(Section, frozen=True):
    """`winkernel`."""

    network_name: Annotated[str, ignored()] = ""
    source_vip: Annotated[str, ignored()] = ""
    enable_dsr: Annotated[bool, ignored()] = msgspec.field(default=False, name="enableDSR")
    root_hns_endpoint_name: Annotated[str, ignored()] = ""
    forward_health_check_vip: Annotated[bool, ignored()] = False


class OwnExternalIps(Section, frozen=True):
    """`externalIPs` of kproxy's own document."""

    allowed_cidrs: Annotated[
        tuple[Cidr, ...],
        live(
            "external-ip-allowed-cidrs",
            "Serve only spec.externalIPs in these ranges; empty: all.",
            RULES,
            metavar="CIDR,...",
        ),
    ] = msgspec.field(default=(), name="allowedCIDRs")


class OwnMetrics(Section, frozen=True):
    """`metrics` of kproxy's own document."""

    service_limit: Annotated[
        Count,
        restart(
            "metrics-service-limit",
            "Traffic counters for the N busiest service ports per family; 0: for none.",
            group=Group.SERVERS,
        ),
    ] = 500


UNKNOWN_PODS = ("hold", "drop", "allow")
"""What may happen to packets of a local pod that is not known yet."""


class OwnNetworkPolicy(Section, frozen=True):
    """`networkPolicy` of kproxy's own document."""

    enabled: Annotated[
        bool,
        live(
            "network-policy",
            "Enforce NetworkPolicies, in every mode; needs nf_tables in the kernel.",
            RULES,
        ),
    ] = False
    unknown_pods: Annotated[
        str,
        one_of(*UNKNOWN_PODS),
        live(
            "network-policy-unknown-pods",
            "Packets of a local pod that is not known yet: held until it is, dropped, or allowed.",
            RULES,
        ),
    ] = "allow"
    keep_connections: Annotated[
        bool,
        live(
            "network-policy-keep-connections",
            "Keep established connections that a new policy forbids, instead of ending them.",
        ),
    ] = False
    reject: Annotated[
        bool,
        live(
            "network-policy-reject", "Reject refused connections, instead of dropping their packets.", RULES
        ),
    ] = False


class OwnLimits(Section, frozen=True):
    """`limits` of kproxy's own document: what one Service may cost in each family. See kproxy.plan.limits."""

    endpoints_per_port: Annotated[
        Bound,
        live(
            "limit-endpoints-per-port",
            "Most endpoints of a service port; of more, some are left out.",
            RULES,
        ),
    ] = DEFAULT_LIMITS.endpoints_per_port
    endpoints_per_service: Annotated[
        Bound,
        live(
            "limit-endpoints-per-service",
            "Most endpoints of a Service, summed over its ports; of more, some are left out.",
            RULES,
        ),
    ] = DEFAULT_LIMITS.endpoints_per_service
    ports_per_service: Annotated[
        Bound,
        live("limit-ports-per-service", "Most ports of a Service; further ones are not served.", RULES),
    ] = DEFAULT_LIMITS.ports_per_service
    frontends_per_service: Annotated[
        Bound,
        live(
            "limit-frontends-per-service",
            "Most pairs of address and port of a Service; further outside addresses are not served.",
            RULES,
        ),
    ] = DEFAULT_LIMITS.frontends_per_service
    elements_per_service: Annotated[
        Bound,
        live(
            "limit-elements-per-service",
            "Most map elements or destinations of a Service in the kernel.",
            RULES,
        ),
    ] = DEFAULT_LIMITS.elements_per_service
    source_ranges_per_service: Annotated[
        Bound,
        live(
            "limit-source-ranges-per-service",
            "Most loadBalancerSourceRanges of a Service; further ones are not admitted.",
            RULES,
        ),
    ] = DEFAULT_LIMITS.source_ranges_per_service
    log_lines_per_minute: Annotated[
        Bound,
        live("limit-log-lines-per-minute", "Most log lines about the problems of one Service in a minute."),
    ] = DEFAULT_LIMITS.log_lines_per_minute
