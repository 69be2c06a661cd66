"""Sections of the configuration file that belong to one mode: kube-proxy's, and kproxy's own (`Own...`).

Each field is the one declaration of a setting: see settings.py. The order is that of `--help`.
"""

from typing import Annotated

import msgspec

from kproxy.backends.iptables.names import LAYOUTS
from kproxy.config.settings import NODE, RULES, Group, Section, live
from kproxy.config.values import (
    Bit,
    CgroupPath,
    Cidr,
    EmptyIsDefault,
    KernelTimeout,
    MinPeriod,
    NotNegativeDuration,
    Period,
    PinPath,
    SchedulerName,
    one_of,
)

MIN_SYNC_PERIOD = 0.1
"""Seconds between the end of a sync and the next where `minSyncPeriod` is not set; cheap syncs wait less
(agent/schedule.py)."""


class Iptables(Section, frozen=True):
    """`iptables`; IPVS mode uses its masquerade settings too."""

    masquerade_all: Annotated[
        bool,
        live(
            "masquerade-all",
            "Masquerade all traffic to cluster IPs, in every mode.",
            RULES,
            group=Group.COMMON,
        ),
    ] = False
    masquerade_bit: Annotated[
        Bit,
        live(
            "iptables-masquerade-bit",
            "Bit of the packet mark that requests masquerading, in iptables and IPVS mode.",
            RULES,
            metavar="0-31",
        ),
    ] = 14
    localhost_node_ports: Annotated[
        bool, live("iptables-localhost-nodeports", "Serve node ports on 127.0.0.1; IPv4 only.", RULES)
    ] = True
    sync_period: Annotated[
        Period,
        live("iptables-sync-period", "Longest wait before a failed sync is retried; also in nftables mode."),
    ] = 30.0
    min_sync_period: Annotated[
        MinPeriod,
        live(
            "iptables-min-sync-period",
            "Least time between two syncs; also in nftables mode. Less than 100ms is kept on average.",
        ),
    ] = MIN_SYNC_PERIOD


class Ipvs(Section, frozen=True):
    """`ipvs`."""

    scheduler: Annotated[
        SchedulerName,
        live(
            "ipvs-scheduler",
            "IPVS scheduler: rr, wrr, lc, wlc, sh, mh, ...",
            RULES,
            metavar="NAME[,FLAG]",
            empty_is_unset=True,
        ),
    ] = "rr"
    exclude_cidrs: Annotated[
        tuple[Cidr, ...],
        live(
            "ipvs-exclude-cidrs",
            "Never remove virtual servers in these ranges, unless a Service owns them.",
            RULES,
            metavar="CIDR,...",
        ),
    ] = msgspec.field(default=(), name="excludeCIDRs")
    strict_arp: Annotated[
        bool,
        live(
            "ipvs-strict-arp",
            "Do not answer ARP for addresses that only kube-ipvs0 holds. MetalLB needs this.",
            NODE,
        ),
    ] = msgspec.field(default=False, name="strictARP")
    tcp_timeout: Annotated[
        KernelTimeout,
        live("ipvs-tcp-timeout", "Timeout of idle IPVS TCP connections; 0 leaves the kernel's value.", NODE),
    ] = 0.0
    tcp_fin_timeout: Annotated[
        KernelTimeout,
        live(
            "ipvs-tcpfin-timeout",
            "Timeout of IPVS TCP connections after a FIN; 0 leaves the kernel's value.",
            NODE,
        ),
    ] = 0.0
    udp_timeout: Annotated[
        KernelTimeout,
        live("ipvs-udp-timeout", "Timeout of IPVS UDP flows; 0 leaves the kernel's value.", NODE),
    ] = 0.0
    sync_period: Annotated[
        Period,
        live(
            "ipvs-sync-period",
            "Longest wait before a failed sync is retried, and the time between drift checks.",
        ),
    ] = 30.0
    min_sync_period: Annotated[MinPeriod, live("ipvs-min-sync-period", "Least time between two syncs.")] = (
        MIN_SYNC_PERIOD
    )


class Nftables(Section, frozen=True):
    """`nftables`."""

    masquerade_all: Annotated[bool, live("masquerade-all", "Masquerade all traffic to cluster IPs.")] = False
    masquerade_bit: Annotated[Bit, live("", "Bit of the packet mark that requests masquerading.")] = 14
    sync_period: Annotated[
        Period, live("iptables-sync-period", "Longest wait before a failed sync is retried.")
    ] = 30.0
    min_sync_period: Annotated[
        MinPeriod, live("iptables-min-sync-period", "Least time between two syncs.")
    ] = MIN_SYNC_PERIOD


class OwnEbpf(Section, frozen=True):
    """`ebpf` of kproxy's own document."""

    cgroup_root: Annotated[
        CgroupPath,
        live(
            "ebpf-cgroup-root",
            "Cgroup whose processes connect by the socket table; empty: the root of cgroup2.",
            NODE,
        ),
    ] = ""
    pin_directory: Annotated[
        PinPath,
        EmptyIsDefault(),
        live("ebpf-pin-directory", "Directory on a bpffs for the socket table.", NODE, empty_is_unset=True),
    ] = "/sys/fs/bpf/kproxy"
    host_namespace_only: Annotated[
        bool,
        live(
            "ebpf-host-namespace-only",
            "Only sockets of the node's network namespace connect by the socket table, not those of pods.",
            NODE,
        ),
    ] = False


class OwnIptables(Section, frozen=True):
    """`iptables` of kproxy's own document."""

    layout: Annotated[
        str,
        one_of(*LAYOUTS),
        live(
            "iptables-layout",
            "Chains as kube-proxy makes them, or fewer and smaller ones for large clusters.",
            RULES,
        ),
    ] = "auto"
    variant: Annotated[
        str,
        one_of("", "legacy", "nft"),
        live("iptables-variant", "iptables programs to use; empty: those that the node already uses.", NODE),
    ] = ""


class OwnIpvs(Section, frozen=True):
    """`ipvs` of kproxy's own document."""

    graceful_period: Annotated[
        NotNegativeDuration,
        live("ipvs-graceful-period", "How long a removed endpoint keeps its open connections.", NODE),
    ] = 3600.0


class OwnNftables(Section, frozen=True):
    """`nftables` of kproxy's own document."""

    reject_unallocated: Annotated[
        bool,
        live(
            "nftables-reject-unallocated",
            "Reject ports of a cluster IP that no Service has, instead of routing the packets.",
            RULES,
        ),
    ] = True
    service_cidrs: Annotated[
        tuple[Cidr, ...],
        live(
            "service-cidr",
            "Drop packets to addresses in these ranges that no Service has.",
            RULES,
            metavar="CIDR,...",
        ),
    ] = msgspec.field(default=(), name="serviceCIDRs")
