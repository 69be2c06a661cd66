"""Every series that is exported: name, type, labels and buckets.

Each mode lists the series that not every mode has (kproxy/modes/base.py, ModeSpec).

Those named kubeproxy_* are kube-proxy 1.36's (pkg/proxy/metrics/metrics.go), so that its dashboards and
alerts work with kproxy. Some of its gauges end in `_total`, against Prometheus' conventions; these names
stay. Series that kube-proxy does not have are named kproxy_*.
"""

import enum
from itertools import accumulate, repeat

import msgspec


class SeriesType(enum.StrEnum):
    """The types of the text exposition format."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Series(msgspec.Struct, frozen=True):
    """One metric family. `buckets` are upper bounds without +Inf."""

    name: str
    type: SeriesType
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()

    def __hash__(self) -> int:
        return hash(self.name)


SYNC_BUCKETS = tuple(accumulate(repeat(2.0, 14), float.__mul__, initial=0.001))
"""0.001 s, doubled 14 times (ExponentialBuckets(0.001, 2, 15))."""
PROGRAMMING_BUCKETS = (
    0.0,
    0.25,
    0.5,
    *map(float, range(1, 60)),
    *map(float, range(60, 120, 5)),
    *map(float, range(120, 301, 30)),
)
"""Seconds from 0.25 to 300, as in the network programming latency SLI (sig-scalability).

The first bound is a by-product of how kube-proxy joins the parts (component-base/metrics/buckets.go).
"""
REQUEST_BUCKETS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
"""component-base/metrics/prometheus/restclient."""

_FAMILY = ("ip_family",)


def _counter(name: str, labels: tuple[str, ...], text: str) -> Series:
    return Series(name, SeriesType.COUNTER, labels, text)


def _gauge(name: str, labels: tuple[str, ...], text: str) -> Series:
    return Series(name, SeriesType.GAUGE, labels, text)


def _seconds(name: str, labels: tuple[str, ...], text: str, buckets: tuple[float, ...]) -> Series:
    return Series(name, SeriesType.HISTOGRAM, labels, text, buckets)


SYNC = _seconds("kubeproxy_sync_proxy_rules_duration_seconds", _FAMILY, "Duration of syncs.", SYNC_BUCKETS)
SYNC_FULL = _seconds(
    "kubeproxy_sync_full_proxy_rules_duration_seconds",
    _FAMILY,
    "Duration of syncs that first read the rules in the kernel.",
    SYNC_BUCKETS,
)
SYNC_PARTIAL = _seconds(
    "kubeproxy_sync_partial_proxy_rules_duration_seconds",
    _FAMILY,
    "Duration of syncs that handled changes only.",
    SYNC_BUCKETS,
)
PROGRAMMING = _seconds(
    "kubeproxy_network_programming_duration_seconds",
    _FAMILY,
    "Time from the change of a pod or service, as noted in its EndpointSlice, until it is applied.",
    PROGRAMMING_BUCKETS,
)
LAST_SYNC = _gauge(
    "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
    _FAMILY,
    "Time of the last sync, or of the last check that found nothing to change.",
)
LAST_QUEUED = _gauge(
    "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
    _FAMILY,
    "Time at which a sync was last requested.",
)
ENDPOINT_CHANGES = _counter(
    "kubeproxy_sync_proxy_rules_endpoint_changes_total", (), "Changes of endpoints that arrived."
)
ENDPOINT_PENDING = _gauge(
    "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
    (),
    "Services with a change of endpoints that is not applied yet.",
)
SERVICE_CHANGES = _counter(
    "kubeproxy_sync_proxy_rules_service_changes_total", (), "Changes of services that arrived."
)
SERVICE_PENDING = _gauge(
    "kubeproxy_sync_proxy_rules_service_changes_pending",
    (),
    "Services with a change of their own that is not applied yet.",
)
NO_LOCAL_ENDPOINTS = _gauge(
    "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
    ("traffic_policy", "ip_family"),
    "Service ports with a Local policy that have endpoints on other nodes only.",
)
HEALTHZ = _counter("kubeproxy_proxy_healthz_total", ("code",), "Answers of /healthz by HTTP status.")
LIVEZ = _counter("kubeproxy_proxy_livez_total", ("code",), "Answers of /livez by HTTP status.")
RESTORE_FAILURES = _counter(
    "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
    _FAMILY,
    "Syncs in which iptables-restore failed or refused a service.",
)
PARTIAL_RESTORE_FAILURES = _counter(
    "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total",
    _FAMILY,
    "Syncs of changes only in which iptables-restore failed or refused a service.",
)
RULES = _gauge(
    "kubeproxy_sync_proxy_rules_iptables_total",
    ("table", "ip_family"),
    "iptables rules of kproxy in the kernel.",
)
RULES_LAST = _gauge(
    "kubeproxy_sync_proxy_rules_iptables_last",
    ("table", "ip_family"),
    "iptables rules that the last sync wrote.",
)
INVALID_DROPPED = _counter(
    "kubeproxy_iptables_ct_state_invalid_dropped_packets_total",
    (),
    "Packets dropped because conntrack marks them as invalid.",
)
LOCALHOST_ACCEPTED = _counter(
    "kubeproxy_iptables_localhost_nodeports_accepted_packets_total",
    (),
    "First packets of connections to node ports on localhost.",
)
NFTABLES_SYNC_FAILURES = _counter(
    "kubeproxy_sync_proxy_rules_nftables_sync_failures_total",
    _FAMILY,
    "Syncs in which nftables failed.",
)
NFTABLES_CLEANUP_FAILURES = _counter(
    "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total",
    _FAMILY,
    "Deletions of stale chains in which nftables failed.",
)
CONNTRACK_SYNC = _seconds(
    "kubeproxy_conntrack_reconciler_sync_duration_seconds",
    _FAMILY,
    "Duration of searches for stale flows.",
    SYNC_BUCKETS,
)
CONNTRACK_DELETED = _counter(
    "kubeproxy_conntrack_reconciler_deleted_entries_total", _FAMILY, "Stale flows that were deleted."
)
BUILD_INFO = _gauge(
    "kubernetes_build_info",
    (
        "major",
        "minor",
        "git_version",
        "git_commit",
        "git_tree_state",
        "build_date",
        "go_version",
        "compiler",
        "platform",
    ),
    "Always 1; the labels describe the version.",
)
REQUESTS = _counter(
    "rest_client_requests_total", ("code", "host", "method"), "Requests to the API server by status."
)
REQUEST_SECONDS = _seconds(
    "rest_client_request_duration_seconds",
    ("host", "verb"),
    "Seconds until the API server began to answer.",
    REQUEST_BUCKETS,
)
THREADS = _gauge(
    "go_goroutines", (), "Threads of this process, under the name that dashboards for Go programs use."
)

QUARANTINED = _gauge(
    "kproxy_quarantined_services", _FAMILY, "Services that the kernel refused and that are tried again."
)
DEGRADED = _gauge("kproxy_degraded_services", _FAMILY, "Services that work with a restriction.")
LEFTOVERS = _gauge(
    "kproxy_leftover_objects", _FAMILY, "Objects that no service needs and the kernel would not delete yet."
)
PROBLEMS = _gauge("kproxy_services_with_problems", (), "Services with a field that cannot be applied.")
REJECTED = _gauge("kproxy_rejected_objects", (), "Objects that could not be decoded at all.")
SYNC_FAILURES = _counter("kproxy_sync_failures_total", _FAMILY, "Syncs that failed as a whole.")
DRIFT_FOUND = _counter("kproxy_drift_found_total", _FAMILY, "Objects of kproxy found changed by others.")
DRIFT_REPAIRED = _counter("kproxy_drift_repaired_total", _FAMILY, "Drifted objects that were repaired.")
WRITES = _counter(
    "kproxy_sync_writes_total",
    ("ip_family", "object"),
    "Objects that syncs wrote: rules, chains, messages, ...",
)
NFTABLES_OBJECTS = _gauge(
    "kproxy_nftables_objects",
    ("object", "ip_family"),
    "Elements of maps and sets, and chains, of kproxy in the kernel.",
)
SOCKET_TABLE = _gauge(
    "kproxy_ebpf_socket_table",
    ("state",),
    "1 for the state of the socket table, 0 for others: serving; starting; degraded (nftables serves alone).",
)
FRONTENDS = _gauge(
    "kproxy_ebpf_frontends", _FAMILY, "Addresses and ports of services that the socket table has."
)
OLDEST_PENDING = _gauge(
    "kproxy_oldest_pending_change_seconds", (), "Age of the oldest change that is not applied; 0: none."
)
EVENTS = _counter("kproxy_events_total", ("outcome",), "Kubernetes Events: sent, dropped or failed.")
COLLECTION_FAILURES = _counter(
    "kproxy_collection_failures_total", ("part",), "Parts of a scrape that could not be read."
)

HEALTHY = _gauge("kproxy_healthy", (), "1 if this agent is healthy, as in `kproxy status`, else 0.")
STATE = _gauge("kproxy_state", ("state",), "1 for the state of this agent, 0 for the others.")
CONDITION = _gauge("kproxy_condition", ("reason",), "1 for each current reason not to be healthy, else 0.")
CONFIGURATION_REJECTED = _gauge(
    "kproxy_configuration_rejected",
    (),
    "1 while the configuration file is rejected; the former one stays in force.",
)
MODE_SWITCHES = _counter(
    "kproxy_mode_switches_total", ("outcome",), "Changes of the mode while running: done, or failed."
)
MODE_REFUSED = _gauge(
    "kproxy_mode_refused",
    (),
    "1 while the mode named in the file could not be started; the former one stays in use.",
)

_PORT = ("ip_family", "namespace", "service", "port", "protocol")
CONNECTIONS = _counter("kproxy_service_connections_total", _PORT, "Connections to a service port.")
PACKETS = _counter(
    "kproxy_service_packets_total",
    (*_PORT, "direction"),
    "Packets of a service port; in iptables and nftables mode, the first ones of its connections.",
)
BYTES = _counter(
    "kproxy_service_bytes_total",
    (*_PORT, "direction"),
    "Bytes of a service port; in iptables and nftables mode, of the first packets of its connections.",
)
OMITTED = _gauge(
    "kproxy_service_ports_omitted",
    _FAMILY,
    "Service ports beyond --metrics-service-limit, those with the least traffic.",
)

AFFINITY_CLIENTS = _gauge(
    "kproxy_affinity_clients",
    _PORT,
    "Clients that session affinity remembers for a service port, in nftables mode; most ones first.",
)
AFFINITY_LIMIT = _gauge(
    "kproxy_affinity_clients_limit",
    _FAMILY,
    "Clients of a service port that session affinity can remember; further ones are balanced without it.",
)

_POLICIES = "kproxy_network_policy_"
POLICIES = _gauge(_POLICIES + "policies", (), "NetworkPolicies of the cluster.")
POLICIES_REJECTED = _gauge(
    _POLICIES + "rejected", (), "NetworkPolicies that cannot be obeyed; the pods that they select are closed."
)
POLICIES_QUARANTINED = _gauge(
    _POLICIES + "quarantined",
    _FAMILY,
    "NetworkPolicies that the kernel refused; the pods that they select are closed.",
)
ISOLATED_PODS = _gauge(
    _POLICIES + "isolated_pods", ("direction",), "Pods of this node that policies isolate."
)
POLICY_GROUPS = _gauge(
    _POLICIES + "groups",
    _FAMILY,
    "Groups of rules: one for each set of policies that isolate pods of this node alike.",
)
POLICY_SYNC = _seconds(
    _POLICIES + "sync_duration_seconds", _FAMILY, "Duration of syncs of policies.", SYNC_BUCKETS
)
POLICY_PROGRAMMING = _seconds(
    _POLICIES + "programming_duration_seconds",
    _FAMILY,
    "Time from the arrival of a change of pods, namespaces or policies until it is in the kernel.",
    SYNC_BUCKETS,
)
POLICY_SYNC_FAILURES = _counter(
    _POLICIES + "sync_failures_total", _FAMILY, "Syncs of policies that failed as a whole."
)
POLICY_WRITES = _counter(
    _POLICIES + "writes_total", ("ip_family", "object"), "Objects that syncs of policies wrote."
)
POLICY_LAST_SYNC = _gauge(
    _POLICIES + "last_sync_timestamp_seconds",
    _FAMILY,
    "Time of the last sync of policies, or of the last check that found nothing to change.",
)
POLICY_DRIFT_FOUND = _counter(
    _POLICIES + "drift_found_total", _FAMILY, "Objects of policies found changed by others."
)
POLICY_DRIFT_REPAIRED = _counter(
    _POLICIES + "drift_repaired_total", _FAMILY, "Drifted objects of policies that were repaired."
)
POLICY_DROPS = _counter(
    _POLICIES + "drops_total",
    ("policy", "namespace", "direction"),
    "Packets that were refused at a pod of this node that the policy isolates.",
)
POLICY_DROPS_OMITTED = _gauge(
    _POLICIES + "drops_omitted", (), "Policies and directions beyond the limit, those that refused least."
)
POLICY_CONNECTIONS_ENDED = _counter(
    _POLICIES + "connections_ended_total",
    _FAMILY,
    "Established connections that a changed policy forbids, and that were ended.",
)
POLICY_HELD_PACKETS = _counter(
    _POLICIES + "held_packets_total",
    ("outcome",),
    "Packets of pods that were not known yet: released to the rules, expired, or refused for lack of room.",
)

_CHECK = ("name", "type")
HEALTHCHECK = _gauge("kubernetes_healthcheck", _CHECK, "1 if the last health check succeeded, else 0.")
HEALTHCHECKS = _counter("kubernetes_healthchecks_total", (*_CHECK, "status"), "Answers of health checks.")
SLIS = (HEALTHCHECK, HEALTHCHECKS)
"""The series of /metrics/slis (KEP-3466, component-base/metrics/prometheus/slis), not in /metrics."""

ALL: tuple[Series, ...] = tuple(
    value for value in list(globals().values()) if isinstance(value, Series) and value not in SLIS
)
"""All series, in the order above."""

OF_POLICIES = frozenset(each.name for each in ALL if each.name.startswith(_POLICIES))
"""The names of those that exist only while NetworkPolicies are enforced."""
