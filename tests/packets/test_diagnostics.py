"""Status and metrics of the real program over HTTP: they follow the cluster and the kernel."""

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kproxy.telemetry.events import Reason
from kproxy.telemetry.series import RESTORE_FAILURES
from kproxy_lab.lab.topology import NODE_IP4
from tests.manifests.queries import KUBERNETES_MIXIN, SILENT, needs_promtool, own, without_answer
from tests.packets.cluster import Cluster
from tests.packets.modes import Capability
from tests.packets.objects import FAMILIES, FAMILY_NAMES, NAMESPACE
from tests.packets.pages import Values, get, scrape, status, value

pytestmark = pytest.mark.root


EXTENSIONS = Path("/usr/lib")

CONNECTIONS = "kproxy_service_connections_total"


def programmed(found: Values) -> float:
    """How many changes of slices have been timed, in both families."""
    name = "kubeproxy_network_programming_duration_seconds_count"
    return sum(value(found, name, ip_family=family) for family in FAMILY_NAMES.values())


def test_a_change_moves_the_numbers_it_should(spare: Cluster) -> None:
    spare.start()
    pod = spare.lab.local_pods[0]
    service = spare.publish([pod])
    before = scrape(spare)

    def without_endpoints(obj: dict[str, Any]) -> None:
        annotations = obj["metadata"].setdefault("annotations", {})
        annotations["endpoints.kubernetes.io/last-change-trigger-time"] = datetime.now(UTC).isoformat()
        obj["endpoints"] = []

    for family in (4, 6):
        spare.api.edit("EndpointSlice", NAMESPACE, f"{service.name}-a-{family}", without_endpoints)
    spare.settle()
    # Packets obey shortly before their sync has ended.
    spare.running.until(lambda: programmed(scrape(spare)) - programmed(before), 2.0)
    after = scrape(spare)

    def gained(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    for family_name in ("IPv4", "IPv6"):
        assert gained("kubeproxy_network_programming_duration_seconds_count", ip_family=family_name) == 1
        assert gained("kubeproxy_sync_proxy_rules_duration_seconds_count", ip_family=family_name) >= 1
        last = value(after, "kubeproxy_sync_proxy_rules_last_timestamp_seconds", ip_family=family_name)
        queued = value(
            after, "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", ip_family=family_name
        )
        assert value(before, "process_start_time_seconds") < queued <= last
    # two slices of the service, two of the fence that settle() writes, and the fence's own spec
    assert gained("kubeproxy_sync_proxy_rules_endpoint_changes_total") == 4
    assert gained("kubeproxy_sync_proxy_rules_service_changes_total") == 1
    assert value(after, "kubeproxy_sync_proxy_rules_endpoint_changes_pending") == 0
    assert value(after, "kubeproxy_sync_proxy_rules_service_changes_pending") == 0
    assert value(after, "rest_client_requests_total", code="200", host="127.0.0.1:6443", method="GET") >= 3


@needs_promtool
def test_every_query_of_dashboards_and_alerts_finds_its_series(spare: Cluster, tmp_path: Path) -> None:
    spare.start()
    service = spare.publish([spare.lab.local_pods[0]])
    spare.ask(spare.lab.client, service.ip(4), 80)
    # Counters per service are read in the background.
    spare.running.until(lambda: {name for name, _ in scrape(spare)} & {CONNECTIONS}, {CONNECTIONS})
    asked = [query for query in (*KUBERNETES_MIXIN, *own()) if not SILENT.search(query)]
    code, body = get(spare, "/metrics")
    mode = get(spare, "/proxyMode")[1].decode()
    empty = without_answer(asked, body.decode(), tmp_path)
    rules = [query for query in asked if "iptables_total" in query]
    assert (code, empty) == (200, [] if mode == "iptables" else rules)


def test_connections_to_a_service_are_counted(spare: Cluster) -> None:
    spare.start()
    lab = spare.lab
    service = spare.publish([lab.local_pods[0]], type="NodePort")
    spare.ask(lab.client, service.ip(4), 80, n=7)
    spare.ask(lab.client, NODE_IP4[0], service.node_port, n=5)
    spare.ask(lab.client, service.ip(6), 80, n=3)
    port = {"namespace": NAMESPACE, "service": service.name, "port": service.ports[0].name, "protocol": "TCP"}
    asked = {"IPv4": 12.0, "IPv6": 3.0}
    # IPVS updates its counters every two seconds, and kproxy caches what it read.
    spare.running.until(
        lambda: {name: value(scrape(spare), CONNECTIONS, **port, ip_family=name) for name in asked}, asked
    )
    found = scrape(spare)
    for family_name, expected in asked.items():
        labels = port | {"ip_family": family_name, "direction": "in"}
        assert value(found, "kproxy_service_packets_total", **labels) >= expected
        assert value(found, "kproxy_service_bytes_total", **labels) >= 40 * expected


@pytest.mark.needs(Capability.LOCALHOST_NODE_PORTS)
def test_packets_to_node_ports_on_localhost_are_counted(spare: Cluster) -> None:
    spare.start()
    lab, name = spare.lab, "kubeproxy_iptables_localhost_nodeports_accepted_packets_total"
    service = spare.publish([lab.local_pods[0]], type="NodePort")
    before = scrape(spare)
    if (name, frozenset[str]()) not in before:
        pytest.skip("this kernel has no nfacct")
    spare.ask(lab.node, "127.0.0.1", service.node_port, n=10)
    spare.ask(lab.node, NODE_IP4[0], service.node_port, n=5)
    assert value(scrape(spare), name) - value(before, name) == 10


def test_series_of_services_are_bounded_to_the_busiest(spare: Cluster) -> None:
    spare.start("--metrics-service-limit", "1")
    service = spare.publish([spare.lab.local_pods[0]])
    spare.ask(spare.lab.client, service.ip(4), 80, n=60)

    def counted() -> dict[frozenset[str], float]:
        return {labels: each for (name, labels), each in scrape(spare).items() if name == CONNECTIONS}

    spare.running.until(lambda: max(counted().values()) >= 60, expected=True)
    assert sorted("ip_family=IPv4" in labels for labels in counted()) == [False, True]
    assert value(scrape(spare), "kproxy_service_ports_omitted", ip_family="IPv4") >= 1


@pytest.mark.needs(Capability.NFTABLES)
def test_elements_and_chains_in_the_kernel_are_counted(spare: Cluster) -> None:
    spare.start()
    spare.publish(spare.lab.local_pods)

    def in_kernel() -> dict[tuple[str, str], int]:
        counts = {}
        for family in FAMILIES:
            table = ("ip", "ip6")[FAMILIES.index(family)]
            listed = spare.lab.node.run(["nft", "-j", "list", "table", table, "kproxy"]).stdout
            objects = json.loads(listed)["nftables"]
            counts["chains", FAMILY_NAMES[family]] = sum("chain" in each for each in objects)
            filled = [each.get("map") or each.get("set") or {} for each in objects]
            counts["elements", FAMILY_NAMES[family]] = sum(len(each.get("elem", ())) for each in filled)
        return counts

    def reported() -> dict[tuple[str, str], float]:
        found = scrape(spare)
        return {
            (kind, family): value(found, "kproxy_nftables_objects", object=kind, ip_family=family)
            for kind, family in in_kernel()
        }

    assert min(in_kernel().values()) > 0
    spare.running.until(lambda: reported() == in_kernel(), expected=True)


@pytest.mark.needs(Capability.SERVICE_CHAINS)
def test_the_rules_in_the_kernel_are_counted(spare: Cluster) -> None:
    spare.start()
    spare.publish(spare.lab.local_pods)

    def in_kernel() -> dict[tuple[str, str], int]:
        counts: dict[tuple[str, str], int] = {}
        for family in FAMILIES:
            table = ""
            for line in spare.rules(family):
                table = line[1:] if line.startswith("*") else table
                if line.startswith("-A KUBE-"):
                    key = table, FAMILY_NAMES[family]
                    counts[key] = counts.get(key, 0) + 1
        return counts

    def reported() -> dict[tuple[str, str], float]:
        found = scrape(spare)
        return {
            (table, family): value(
                found, "kubeproxy_sync_proxy_rules_iptables_total", table=table, ip_family=family
            )
            for table, family in in_kernel()
        }

    assert len(in_kernel()) == 4
    spare.running.until(lambda: reported() == in_kernel(), expected=True)


def test_the_status_names_what_is_wrong_and_events_tell_it_at_the_service(spare: Cluster) -> None:
    program = spare.start()
    pod = spare.lab.local_pods[0]
    assert status(spare)["problems"] == []
    assert spare.lab.node.run([sys.executable, "-m", "kproxy", "status"], check=False).returncode == 0
    address = spare.external_ips()[4]
    spare.publish([pod], externalIPs=[address])
    since = program.mark()
    loser = spare.publish([pod], externalIPs=[address])
    program.wait_log("object_problem", loser.key, since=since)
    # Packets obey, and problems are reported, shortly before their sync has ended.
    program.until(lambda: status(spare)["pending"], {"services": 0, "endpoints": 0, "oldestSeconds": None})
    found = status(spare)
    assert found["mode"] == get(spare, "/proxyMode")[1].decode()
    assert [(each["object"], each["field"]) for each in found["problems"]] == [
        (f"Service {loser.key}", "spec.externalIPs")
    ]
    optional = {"ServiceCIDR"} if Capability.NFTABLES in spare.mode.capabilities else set()
    watched = {"Service", "EndpointSlice", "Node"} | optional
    assert {watch["kind"] for watch in found["watches"] if watch["synced"]} == watched
    now = datetime.now(UTC)
    for watch in found["watches"]:
        connected = datetime.fromisoformat(watch["connectedSince"])
        assert datetime.fromisoformat(found["since"]) - timedelta(minutes=1) < connected < now
    assert found["families"]["IPv4"]["lastSuccess"] > found["since"]
    program.until(lambda: len(events_of(spare, loser.name, Reason.CONFLICT)), 1)
    assert address in events_of(spare, loser.name, Reason.CONFLICT)[0]
    done = spare.lab.node.run([sys.executable, "-m", "kproxy", "status", "-o", "table"], check=False)
    assert done.returncode == 3
    assert loser.key in done.stdout


@pytest.mark.needs(Capability.SERVICE_CHAINS)
def test_damage_and_its_repair_are_counted(spare: Cluster) -> None:
    program = spare.start()
    spare.publish([spare.lab.local_pods[0]])
    spare.iptables(4, "-t", "nat", "-F", "KUBE-SERVICES")
    program.until(lambda: bool(status(spare)["families"]["IPv4"]["drift"]["repaired"]), expected=True)
    drift = status(spare)["families"]["IPv4"]["drift"]
    assert drift["found"] == drift["repaired"]
    assert any("nat/KUBE-SERVICES" in each for each in drift["lastObjects"])
    found = scrape(spare)
    assert value(found, "kproxy_drift_found_total", ip_family="IPv4") == drift["found"]
    assert value(found, "kproxy_drift_repaired_total", ip_family="IPv4") == drift["found"]
    assert value(found, "kproxy_drift_found_total", ip_family="IPv6") == 0


def events_of(cluster: Cluster, service: str, reason: Reason) -> list[str]:
    """The notes of the Events that stand at a service for a reason."""
    return [
        event["note"]
        for event in cluster.api.list("Event.events.k8s.io")
        if event["reason"] == reason.value and event["regarding"]["name"] == service
    ]


@pytest.mark.needs(Capability.SERVICE_CHAINS)
def test_a_service_that_iptables_refuses_is_reported_until_it_is_accepted(
    spare: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extensions = next(EXTENSIONS.glob("*/xtables"), None)
    if extensions is None:
        pytest.skip("no extensions of iptables in the usual place")
    without_recent = tmp_path / "xtables"
    without_recent.mkdir()
    for each in extensions.glob("*.so"):
        (without_recent / each.name).symlink_to(each)
    (without_recent / "libxt_recent.so").unlink()
    monkeypatch.setenv("XTABLES_LIBDIR", str(without_recent))
    program = spare.start("--iptables-sync-period=1s")
    pod = spare.lab.local_pods[0]
    sticky = spare.service(sessionAffinity="ClientIP")
    spare.slices(sticky, [pod])
    good = spare.publish([pod])
    program.wait_log("service_quarantined", sticky.key, "IPv6")
    assert spare.outcome(spare.lab.client, good.ip(4), 80) == pod.name
    program.until(lambda: len(events_of(spare, sticky.name, Reason.QUARANTINED)), 2)
    found = status(spare)["families"]
    for family in FAMILY_NAMES.values():
        (trouble,) = found[family]["quarantined"]
        assert trouble["service"] == sticky.key
        assert "recent" in trouble["reason"]
        assert any(
            note.endswith(f"{family}: {' '.join(trouble['reason'].split())}")
            for note in events_of(spare, sticky.name, Reason.QUARANTINED)
        )
        numbers = scrape(spare)
        assert value(numbers, "kproxy_quarantined_services", ip_family=family) == 1
        assert value(numbers, RESTORE_FAILURES.name, ip_family=family) > 0
    program.until(lambda: status(spare)["pending"]["oldestSeconds"] > 2, expected=True)
    for path in ("/healthz", "/livez"):
        assert get(spare, path, 10256)[0] == 200
    (without_recent / "libxt_recent.so").symlink_to(extensions / "libxt_recent.so")
    program.until(lambda: spare.outcome(spare.lab.client, sticky.ip(4), 80), pod.name)
    program.until(lambda: status(spare)["families"]["IPv4"]["quarantined"], [])


def test_a_health_check_port_that_is_taken_becomes_an_event(spare: Cluster) -> None:
    program = spare.start()
    pod = spare.lab.local_pods[0]
    number = spare.free_node_port()
    with spare.lab.node.listen("0.0.0.0", number):
        service = spare.publish(
            [pod], type="LoadBalancer", externalTrafficPolicy="Local", healthCheckNodePort=number
        )
        program.until(lambda: len(events_of(spare, service.name, Reason.HEALTH_PORT)), 1)
    (note,) = events_of(spare, service.name, Reason.HEALTH_PORT)
    assert f"port {number}: " in note
    assert "in use" in note


def test_healthz_and_livez_answers_are_counted_and_configz_has_the_settings(spare: Cluster) -> None:
    spare.start()
    assert get(spare, "/healthz", 10256)[0] == 200
    assert get(spare, "/livez", 10256)[0] == 200
    node = spare.lab.spec.node_name
    spare.api.edit(
        "Node",
        "",
        node,
        lambda obj: obj["spec"].update(
            taints=[{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]
        ),
    )
    spare.running.until(lambda: get(spare, "/healthz", 10256)[0], 503)
    assert get(spare, "/livez", 10256)[0] == 200
    assert status(spare)["nodeEligible"] is False
    spare.set_node()
    spare.running.until(lambda: get(spare, "/healthz", 10256)[0], 200)
    found = scrape(spare)
    assert value(found, "kubeproxy_proxy_healthz_total", code="503") >= 1
    assert value(found, "kubeproxy_proxy_livez_total", code="200") == 2
    assert get(spare, "/healthz") == (200, b"ok")
    code, body = get(spare, "/metrics/slis")
    assert code == 200
    slis = {line for line in body.decode().splitlines() if not line.startswith("#")}
    assert {
        'kubernetes_healthcheck{name="ping",type="healthz"} 1.0',
        'kubernetes_healthcheck{name="sync",type="healthz"} 1.0',
        'kubernetes_healthcheck{name="sync",type="livez"} 1.0',
        'kubernetes_healthchecks_total{name="ping",status="success",type="healthz"} 1.0',
        'kubernetes_healthchecks_total{name="sync",status="success",type="livez"} 2.0',
    } <= slis
    assert any('name="sync",status="error",type="healthz"' in line for line in slis)
    assert "kubernetes_healthcheck" not in get(spare, "/metrics")[1].decode()
    configuration = json.loads(get(spare, "/configz")[1])["kubeproxy.config.k8s.io"]
    assert configuration["kind"] == "KubeProxyConfiguration"
    assert configuration["hostnameOverride"] == node
