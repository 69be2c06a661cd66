"""The flags of `kproxy run` that do not shape rules: the rest of kube-proxy 1.36's, and our own."""

from pathlib import Path

import click

from kproxy.cli.options import duration, size
from kproxy.cli.params import OptionalPath, boolean, flag, several, shorthand_number, together

_MEANINGLESS = "Accepted; means nothing here."

node_options = together(
    # Where objects come from
    flag(
        "--kubeconfig",
        type=OptionalPath(dir_okay=False, path_type=Path),
        help="How to reach the API server; without it and --manifests, as a pod of the cluster.",
    ),
    flag("--master", metavar="URL", help="The API server's address, instead of the kubeconfig's."),
    flag(
        "--manifests",
        type=OptionalPath(file_okay=False, path_type=Path),
        help="Take objects from the YAML and JSON files of this directory instead.",
    ),
    flag("--hostname-override", metavar="NAME", help="This node's name, if it is not the host's."),
    # How to work here
    flag(
        "--iptables-variant",
        type=click.Choice(["legacy", "nft"]),
        help="Which iptables to use, instead of the one this node already uses.",
    ),
    boolean(
        "--ipvs-strict-arp",
        help="Do not answer ARP for addresses that only kube-ipvs0 holds (for MetalLB and its like).",
    ),
    duration("--ipvs-tcp-timeout", "0", "Timeout of idle TCP connections; 0: the kernel's."),
    duration("--ipvs-tcpfin-timeout", "0", "The same after a FIN; 0: the kernel's."),
    duration("--ipvs-udp-timeout", "0", "Timeout of UDP flows; 0: the kernel's."),
    duration(
        "--ipvs-graceful-period", "1h", "How long an endpoint that left is kept for its connections, at most."
    ),
    size("--conntrack-max-per-core", "32768", "Tracked connections for each core; 0: the kernel's limit."),
    size("--conntrack-min", "131072", "Tracked connections at least."),
    duration(
        "--conntrack-tcp-timeout-established", "24h", "Timeout of idle TCP connections; 0: the kernel's."
    ),
    duration("--conntrack-tcp-timeout-close-wait", "1h", "The same in CLOSE_WAIT; 0: the kernel's."),
    boolean("--conntrack-tcp-be-liberal", help="Do not take packets out of window for invalid."),
    duration("--conntrack-udp-timeout", "0", "Timeout of unanswered UDP flows; 0: the kernel's."),
    duration("--conntrack-udp-timeout-stream", "0", "Timeout of answered UDP flows; 0: the kernel's."),
    several(
        "--feature-gates",
        metavar="NAME=BOOL,...",
        help="AllowServiceExternalIPs=false serves no spec.externalIPs; others are accepted.",
    ),
)
"""For `check` and `diff` as well: where objects come from, and what a node is asked to do."""

run_options = together(
    # What to do
    flag(
        "--write-config-to",
        type=OptionalPath(dir_okay=False, path_type=Path),
        help="Write the configuration that results to this file, and end.",
    ),
    boolean("--once", help="End as soon as one complete sync is applied: 0 if all of it was."),
    duration(
        "--timeout",
        "5m",
        "How long --once may take: then it names what it waits for, and ends with 1; 0: no limit.",
    ),
    boolean("--init-only", help="Set the kernel parameters that need all of root's rights, and end."),
    boolean("--cleanup", help="Remove what kproxy made, and end (as `kproxy cleanup`)."),
    boolean(
        "--cleanup-on-exit",
        help="Remove what kproxy made when a signal ends it, instead of leaving it for the next one.",
    ),
    # Syncs
    duration("--iptables-sync-period", "30s", "Longest wait before a failed sync is tried again."),
    duration(
        "--iptables-min-sync-period",
        "100ms",
        "Least time between the end of a sync and the next; up to 100ms, on average.",
    ),
    duration("--ipvs-sync-period", "30s", "The same in IPVS mode, and the time between looks for drift."),
    duration("--ipvs-min-sync-period", "100ms", "The same in IPVS mode."),
    # Servers
    flag(
        "--metrics-service-limit",
        type=int,
        usual="500",
        metavar="N",
        help="Count connections, packets and bytes for the N busiest service ports of a family; 0: for none.",
    ),
    flag(
        "--healthz-bind-address",
        usual="0.0.0.0:10256",
        metavar="IP:PORT",
        help='Where /healthz and /livez answer; "" turns them off.',
    ),
    flag(
        "--metrics-bind-address",
        usual="127.0.0.1:10249",
        metavar="IP:PORT",
        help='Where /metrics answers; "" turns it off.',
    ),
    boolean("--bind-address-hard-fail", help="End if one of these addresses cannot be bound."),
    size("--healthz-port", "10256", "Deprecated, see --healthz-bind-address; 0 turns it off."),
    size("--metrics-port", "10249", "Deprecated, see --metrics-bind-address; 0 turns it off."),
    # The node
    size(
        "--oom-score-adj", "-999", "How readily the kernel ends kproxy when memory is short: -1000 to 1000."
    ),
    boolean("--profiling", help="Answer /debug/threads and /debug/profile next to /metrics."),
    # Logs
    flag(
        "-v",
        "--v",
        type=shorthand_number,
        metavar="LEVEL",
        usual="0",
        help="Log verbosity; 4 logs every sync.",
    ),
    # Without a meaning here
    several("--vmodule", metavar="PATTERN=LEVEL,...", help=_MEANINGLESS),
    flag("--logging-format", metavar="text|json", help=_MEANINGLESS),
    duration("--log-flush-frequency", "5s", _MEANINGLESS),
    boolean("--log-text-split-stream", help=_MEANINGLESS),
    flag("--log-text-info-buffer-size", metavar="QUANTITY", help=_MEANINGLESS),
    boolean("--log-json-split-stream", help=_MEANINGLESS),
    flag("--log-json-info-buffer-size", metavar="QUANTITY", help=_MEANINGLESS),
    flag("--show-hidden-metrics-for-version", metavar="1.X", help=_MEANINGLESS),
    duration("--config-sync-period", "15m", _MEANINGLESS),
    flag("--kube-api-content-type", metavar="TYPE", help=_MEANINGLESS),
    size("--kube-api-burst", "10", _MEANINGLESS),
    flag("--kube-api-qps", type=float, metavar="N", help=_MEANINGLESS),
)
"""For `run`."""
