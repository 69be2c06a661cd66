"""The exported series: those of kube-proxy with its names, types, labels and buckets, in each mode."""

import subprocess
import sys
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from kproxy.addresses import Family
from kproxy.modes.registry import mode_registry
from kproxy.telemetry import series
from kproxy.telemetry.exposition import CollectionError, Exposition
from kproxy.telemetry.metrics import Metrics, Sample
from kproxy.telemetry.series import Series, SeriesType

SYNC = "0.001 0.002 0.004 0.008 0.016 0.032 0.064 0.128 0.256 0.512 1.024 2.048 4.096 8.192 16.384 +Inf"
PROGRAMMING = (
    "0 0.25 0.5 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 "
    "35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 65 70 75 80 85 90 95 100 "
    "105 110 115 120 150 180 210 240 270 300 +Inf"
)
BUILD = "build_date,compiler,git_commit,git_tree_state,git_version,go_version,major,minor,platform"
REQUESTS = "0.005 0.025 0.1 0.25 0.5 1 2 4 8 15 30 60 +Inf"

EVERYWHERE = f"""
gauge go_goroutines
histogram kubeproxy_conntrack_reconciler_sync_duration_seconds ip_family {SYNC}
counter kubeproxy_conntrack_reconciler_deleted_entries_total ip_family
histogram kubeproxy_network_programming_duration_seconds ip_family {PROGRAMMING}
counter kubeproxy_proxy_healthz_total code
counter kubeproxy_proxy_livez_total code
histogram kubeproxy_sync_proxy_rules_duration_seconds ip_family {SYNC}
gauge kubeproxy_sync_proxy_rules_endpoint_changes_pending
counter kubeproxy_sync_proxy_rules_endpoint_changes_total
gauge kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds ip_family
gauge kubeproxy_sync_proxy_rules_last_timestamp_seconds ip_family
gauge kubeproxy_sync_proxy_rules_no_local_endpoints_total ip_family,traffic_policy
gauge kubeproxy_sync_proxy_rules_service_changes_pending
counter kubeproxy_sync_proxy_rules_service_changes_total
gauge kubernetes_build_info {BUILD}
histogram rest_client_request_duration_seconds host,verb {REQUESTS}
counter rest_client_requests_total code,host,method
counter process_cpu_seconds_total
gauge process_max_fds
gauge process_open_fds
gauge process_resident_memory_bytes
gauge process_start_time_seconds
gauge process_virtual_memory_bytes
"""
RULES = f"""
histogram kubeproxy_sync_full_proxy_rules_duration_seconds ip_family {SYNC}
histogram kubeproxy_sync_partial_proxy_rules_duration_seconds ip_family {SYNC}
"""
RESTORE = "counter kubeproxy_sync_proxy_rules_iptables_restore_failures_total ip_family\n"
IN_MODE = {
    "iptables": f"""
{RULES}{RESTORE}counter kubeproxy_iptables_ct_state_invalid_dropped_packets_total
counter kubeproxy_iptables_localhost_nodeports_accepted_packets_total
gauge kubeproxy_sync_proxy_rules_iptables_last ip_family,table
counter kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total ip_family
gauge kubeproxy_sync_proxy_rules_iptables_total ip_family,table
""",
    "ipvs": RESTORE,
    "nftables": f"""
{RULES}counter kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total ip_family
counter kubeproxy_sync_proxy_rules_nftables_sync_failures_total ip_family
""",
}


def exposed(text: bytes) -> set[str]:
    """A line per metric family: type, name as on the wire, labels, buckets."""
    lines = set()
    for family in text_string_to_metric_families(text.decode()):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        bounds = dict.fromkeys(s.labels["le"] for s in family.samples if s.name.endswith("_bucket"))
        lines.add(" ".join([family.type, name, *([",".join(labels)] if labels else []), *bounds]))
    return lines


def filled() -> Metrics:
    """Every series with one value."""
    metrics = Metrics()
    for each in series.ALL:
        labels = tuple(f"a-{name}" for name in each.labels)
        match each.type:
            case SeriesType.COUNTER:
                metrics.add(each, *labels)
            case SeriesType.GAUGE:
                metrics.set(each, *labels, value=1)
            case SeriesType.HISTOGRAM:
                metrics.observe(each, *labels, value=1)
    return metrics


@pytest.mark.parametrize("mode", IN_MODE)
def test_kube_proxys_series_have_its_names_types_labels_and_buckets(mode: str) -> None:
    found = exposed(Exposition(filled(), lambda: mode_registry().foreign_metrics(mode), ()).text())
    expected = {line for line in (EVERYWHERE + IN_MODE[mode]).splitlines() if line}
    assert {line for line in found if " kproxy_" not in line} == expected
    assert {line.split()[1] for line in found if " kproxy_" in line} == {
        each.name
        for each in series.ALL
        if each.name.startswith("kproxy_") and each.name not in mode_registry().foreign_metrics(mode)
    }


def values(metrics: Metrics, name: str, *readers: Iterable[Sample]) -> dict[str, float]:
    named = [(f"reader-{n}", lambda samples=samples: samples) for n, samples in enumerate(readers)]
    text = Exposition(metrics, lambda: mode_registry().foreign_metrics("iptables"), named).text().decode()
    lines = (line.rpartition(" ") for line in text.splitlines() if line.startswith(name))
    return {key.removeprefix(name): float(value) for key, _, value in lines}


def test_counters_begin_at_nothing() -> None:
    metrics = Metrics()
    metrics.begin([Family.IPV4, Family.IPV6])
    assert values(metrics, series.DRIFT_REPAIRED.name) == {'{ip_family="IPv4"}': 0, '{ip_family="IPv6"}': 0}
    metrics.add(series.DRIFT_REPAIRED, "IPv6", amount=3)
    metrics.begin([Family.IPV6])
    assert values(metrics, series.DRIFT_REPAIRED.name) == {'{ip_family="IPv4"}': 0, '{ip_family="IPv6"}': 3}


def test_a_histogram_is_there_before_its_first_observation() -> None:
    metrics = Metrics()
    metrics.begin([Family.IPV4])
    name = series.PROGRAMMING.name
    assert values(metrics, name)['_bucket{ip_family="IPv4",le="+Inf"}'] == 0
    metrics.observe(series.PROGRAMMING, "IPv4", value=0.3)
    metrics.begin([Family.IPV4])
    assert values(metrics, f"{name}_bucket") == {
        f'{{ip_family="IPv4",le="{bound}"}}': float(bound not in {"0", "0.25"})
        for bound in PROGRAMMING.split()
    }


def test_what_is_read_at_a_scrape_takes_the_place_of_the_first_nothing() -> None:
    metrics = Metrics()
    metrics.begin([Family.IPV4])
    read = [Sample(series.SERVICE_CHANGES, (), 7.0)]
    assert values(metrics, series.SERVICE_CHANGES.name, read) == {"": 7}


def test_a_part_that_cannot_be_read_leaves_the_others_and_is_counted() -> None:
    metrics = Metrics()

    def broken() -> list[Sample]:
        raise CollectionError("no permission")

    exposition = Exposition(
        metrics,
        lambda: mode_registry().foreign_metrics("iptables"),
        [("kernel", broken), ("changes", lambda: [Sample(series.SERVICE_PENDING, (), 2.0)])],
    )
    text = exposition.text().decode()
    assert f"{series.SERVICE_PENDING.name} 2.0" in text
    assert f'{series.COLLECTION_FAILURES.name}{{part="kernel"}} 1.0' in exposition.text().decode()


@given(st.lists(st.floats(0, 400, allow_nan=False), max_size=50))
def test_a_histogram_counts_each_observation_in_every_bucket_above_it(observed: list[float]) -> None:
    metrics = Metrics()
    metrics.observe(series.PROGRAMMING, "IPv4", value=1)
    for value in observed:
        metrics.observe(series.PROGRAMMING, "IPv4", value=value)
    found = values(metrics, series.PROGRAMMING.name)
    for bound in (*series.PROGRAMMING.buckets, float("inf")):
        text = "+Inf" if bound == float("inf") else f"{bound:g}"
        expected = sum(value <= bound for value in (*observed, 1.0))
        assert found[f'_bucket{{ip_family="IPv4",le="{text}"}}'] == expected
    assert found['_count{ip_family="IPv4"}'] == len(observed) + 1
    assert found['_sum{ip_family="IPv4"}'] == pytest.approx(sum(observed) + 1)


def test_no_two_series_share_a_name() -> None:
    names = [each.name for each in series.ALL]
    assert len(set(names)) == len(names)
    assert all(isinstance(each, Series) and each.help for each in series.ALL)


def test_no_client_library_is_loaded_before_the_first_scrape() -> None:
    loaded = "import sys, kproxy.agent.main; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert "kproxy.telemetry.exposition" in modules
    assert not {"prometheus_client", "kubernetes"} & modules
