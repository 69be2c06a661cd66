"""Behaviour of the nftables mode only: its tables, its defaults, and changes from and to iptables."""

import re
import sys

import pytest

from kproxy_lab.apiserver import Fault
from kproxy_lab.lab.topology import NODE_IP4, NODE_IP6, Family
from tests.packets.cluster import Cluster
from tests.packets.modes import Capability
from tests.packets.objects import FAMILIES, JSON, Service
from tests.packets.outcomes import Target, Traffic, names
from tests.packets.pages import status

pytestmark = [pytest.mark.root, pytest.mark.needs(Capability.NFTABLES)]

FLAGS = {
    "nftables": (),
    "iptables-nft": ("--proxy-mode", "iptables", "--iptables-variant", "nft"),
    "iptables-legacy": ("--proxy-mode", "iptables", "--iptables-variant", "legacy"),
}
TABLES = {4: "ip kproxy", 6: "ip6 kproxy"}


def nft(cluster: Cluster, *words: str) -> str:
    return cluster.lab.node.run(["nft", *words]).stdout


def contents(cluster: Cluster, table: str) -> list[str]:
    """Everything in a table, in an order that does not depend on the kernel's hashing."""
    listing = cluster.lab.node.run(["nft", "-nn", "-s", f"list table {table}"], check=False).stdout
    return sorted(part.strip(" \t}") for part in re.split(r"[\n,]|elements = \{", listing))


def picking(cluster: Cluster, table: str, count: int) -> str:
    """The one chain that picks an endpoint of so many."""
    (name,) = set(re.findall(rf"chain (all-{count}-\d+) ", nft(cluster, f"list table {table}")))
    return str(name)


def tables(cluster: Cluster) -> list[str]:
    return [line.removeprefix("table ") for line in nft(cluster, "list", "tables").splitlines()]


def clean_node(cluster: Cluster) -> None:
    cluster.lab.node.run([sys.executable, "-m", "kproxy", "cleanup"])


def chains_of_iptables(cluster: Cluster) -> list[str]:
    found = []
    for family in ("", "6"):
        for variant in ("nft", "legacy"):
            dump = cluster.lab.node.run([f"ip{family}tables-{variant}-save"]).stdout
            found += [line for line in dump.splitlines() if "KUBE" in line]
    return found


def targets(cluster: Cluster, service: Service) -> list[Target]:
    client, pod = cluster.lab.client, cluster.lab.local_pods[2]
    found: list[Target] = [(client, NODE_IP4[0], service.node_port)]
    for family in FAMILIES:
        found += [(client, service.ip(family), 80), (pod, service.ip(family), 80)]
    return found


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("iptables-nft", "nftables"),
        ("iptables-legacy", "nftables"),
        ("nftables", "iptables-nft"),
        ("nftables", "iptables-legacy"),
    ],
)
def test_a_switch_cuts_no_connection_and_leaves_nothing(spare: Cluster, first: str, second: str) -> None:
    clean_node(spare)
    lab = spare.lab
    spare.start(*FLAGS[first])
    service = spare.publish(lab.local_pods[:2], type="NodePort")
    refused = spare.publish([])
    with lab.hold(lab.client, service.ip(4), 80) as held, lab.hold(lab.client, service.ip(6), 80) as held6:
        who, who6 = held.exchange("who?").pod, held6.exchange("who?").pod
        with Traffic(lab, targets(spare, service)) as traffic:
            spare.stop()
            spare.start(*FLAGS[second])
            traffic.flow()
        assert held.exchange("still there?").pod == who
        assert held6.exchange("still there?").pod == who6
    assert traffic.failures == []
    for family in FAMILIES:
        assert spare.outcome(lab.client, refused.ip(family), 80) == "Refused"
        assert spare.ask(lab.client, service.ip(family), 80, n=20).pods == names(lab.local_pods[:2])
    if second == "nftables":
        spare.running.until(lambda: len(chains_of_iptables(spare)), 0)
    else:
        spare.running.until(lambda: any("kproxy" in table for table in tables(spare)), expected=False)
    spare.scale(service, lab.local_pods[1:2])
    assert spare.ask(lab.client, service.ip(4), 80, n=5).pods == names(lab.local_pods[1:2])


def test_cleanup_removes_its_own_tables_and_no_others(spare: Cluster) -> None:
    clean_node(spare)
    nft(
        spare, "add table ip foreign; add chain ip foreign kproxy; add map ip foreign m { type mark : mark; }"
    )
    before = nft(spare, "list table ip foreign")
    spare.start()
    service = spare.publish([spare.lab.local_pods[0]])
    assert set(TABLES.values()) <= set(tables(spare))
    spare.stop()
    assert spare.outcome(spare.lab.client, service.ip(4), 80) == spare.lab.local_pods[0].name
    clean_node(spare)
    assert not [table for table in tables(spare) if "kproxy" in table]
    assert nft(spare, "list table ip foreign") == before
    assert spare.outcome(spare.lab.client, service.ip(4), 80) == "Unreachable"
    nft(spare, "delete table ip foreign")


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_what_kube_proxy_left_in_nftables_is_named_and_stays(spare: Cluster, flags: tuple[str, ...]) -> None:
    nft(spare, "add table ip kube-proxy; add chain ip kube-proxy services")
    try:
        program = spare.start(*flags)
        assert "['ip kube-proxy']" in program.wait_log("foreign_proxy_tables_found")
        pods = spare.lab.local_pods[:1]
        service = spare.publish(pods)
        assert spare.ask(spare.lab.client, service.ip(4), 80).pods == names(pods)
        spare.stop()
        cleaned = spare.lab.node.run([sys.executable, "-m", "kproxy", "cleanup"])
        assert "event=foreign_proxy_tables_found" in cleaned.stderr
        assert [table for table in tables(spare) if "proxy" in table] == ["ip kube-proxy"]
    finally:
        nft(spare, "delete table ip kube-proxy")


@pytest.mark.parametrize("damage", ["delete table", "element", "frontend", "rule", "pick", "base chain"])
def test_damage_is_named_and_repaired(spare: Cluster, family: Family, damage: str) -> None:
    program = spare.start()
    lab, table = spare.lab, TABLES[family]
    pods = lab.local_pods[:2]
    service, empty = spare.publish(pods), spare.publish([])
    before = contents(spare, table)
    asked = f"{service.ip(family)} . tcp . 80"
    since = program.mark()
    match damage:
        case "delete table":
            nft(spare, f"delete table {table}")
            damaged = "table"
        case "element":
            nft(spare, f"delete element {table} endpoint-0 {{ {asked} }}")
            damaged = "endpoint-0"
        case "frontend":
            nft(spare, f"delete element {table} services {{ {asked} }}")
            damaged = "services"
        case "rule":
            nft(spare, f"flush chain {table} refuse")
            damaged = "refuse"
        case "pick":
            nft(spare, f"flush chain {table} {picking(spare, table, 2)}")
            damaged = "table"
        case _:
            nft(spare, f"flush chain {table} nat-prerouting")
            damaged = "nat-prerouting"
    program.wait_log("drift_found", damaged, since=since)
    program.until(lambda: contents(spare, table), before)
    assert spare.ask(lab.client, service.ip(family), 80).pods == names(pods)
    assert spare.outcome(lab.client, empty.ip(family), 80) == "Refused"


def test_by_default_unallocated_ports_are_refused_and_node_ports_are_at_the_primary_address(
    spare: Cluster,
) -> None:
    spare.start("--nftables-reject-unallocated", "--nodeport-addresses", "")
    pod, client = spare.lab.local_pods[0], spare.lab.client
    service = spare.publish([pod], type="NodePort")
    for family in FAMILIES:
        addresses = NODE_IP4 if family == 4 else NODE_IP6
        assert spare.outcome(client, service.ip(family), 80) == pod.name
        assert spare.outcome(client, service.ip(family), 81) == "Refused"
        assert spare.outcome(spare.lab.node, service.ip(family), 81) == "Refused"
        first, *others = [spare.outcome(client, address, service.node_port) for address in addresses]
        assert first == pod.name
        assert set(others) == {"Refused"}


def test_unallocated_cluster_ips_are_dropped_where_that_is_asked_for(spare: Cluster) -> None:
    spare.start("--service-cidr", "10.96.0.0/16,fd00:10:96::/112")
    pod, client = spare.lab.local_pods[0], spare.lab.client
    service = spare.publish([pod])
    unallocated = {4: "10.96.250.250", 6: "fd00:10:96::fafa"}
    for family in FAMILIES:
        assert spare.outcome(client, service.ip(family), 80) == pod.name
        assert spare.silent(client, unallocated[family], 80)


UNALLOCATED: dict[Family, str] = {4: "10.96.250.250", 6: "fd00:10:96::fafa"}


def service_cidr(name: str, *cidrs: str) -> JSON:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": name},
        "spec": {"cidrs": cidrs},
    }


def test_unallocated_cluster_ips_are_dropped_as_service_cidrs_say(spare: Cluster) -> None:
    pod, client = spare.lab.local_pods[0], spare.lab.client

    def drops(*wanted: str) -> bool:
        spare.settle()
        return all(spare.silent(client, ip, 80) for ip in wanted)

    spare.apply(service_cidr("first", "10.96.128.0/17", "fd00:10:96::8000/113"))
    spare.start("--nftables-reject-unallocated")
    service = spare.publish([pod])
    served = dict.fromkeys(FAMILIES, pod.name)
    other = {4: "10.96.100.100", 6: "fd00:10:96::6464"}
    assert drops(*UNALLOCATED.values())
    for family in FAMILIES:
        assert spare.silent(spare.lab.node, UNALLOCATED[family], 80)
        assert spare.outcome(client, service.ip(family), 81) == "Refused"
        assert spare.outcome(client, other[family], 80) == "Unreachable"
    spare.apply(service_cidr("second", "10.96.0.0/16", "fd00:10:96::/112"))
    spare.running.until(lambda: drops(*other.values()), expected=True)
    assert drops(*UNALLOCATED.values())
    for family in FAMILIES:
        assert spare.outcome(client, service.ip(family), 81) == "Refused"
    assert {family: spare.outcome(client, service.ip(family), 80) for family in FAMILIES} == served
    spare.api.delete("ServiceCIDR", "", "second")
    for family in FAMILIES:
        spare.running.until(lambda ip=other[family]: spare.outcome(client, ip, 80), "Unreachable")  # type: ignore[misc]
    assert drops(*UNALLOCATED.values())


def test_where_service_cidrs_may_not_be_read_all_else_works(spare: Cluster) -> None:
    with spare.api.faults.during(Fault.status(403, resource="servicecidrs", times=None)):
        program = spare.start()
        assert "ServiceCIDR" in program.wait_log("kind_unavailable")
        pod, client = spare.lab.local_pods[0], spare.lab.client
        service = spare.publish([pod])
        for family in FAMILIES:
            assert spare.outcome(client, service.ip(family), 80) == pod.name
            assert spare.outcome(client, UNALLOCATED[family], 80) == "Unreachable"
        found = status(spare)
        assert found["healthy"]
        assert "ServiceCIDR" not in {watch["kind"] for watch in found["watches"]}
        done = spare.lab.node.run([sys.executable, "-m", "kproxy", "status"], check=False)
        assert (done.returncode, "ServiceCIDR" in done.stdout) == (0, False)


def test_only_the_counts_in_use_have_chains(spare: Cluster) -> None:
    spare.start()
    lab = spare.lab
    service = spare.publish(lab.pods[:4])
    assert picking(spare, TABLES[4], 4)
    spare.scale(service, lab.pods[:3])
    listing = nft(spare, "list table ip kproxy")
    assert "all-4-" not in listing
    assert "endpoints-4-" not in listing
    assert spare.ask(lab.client, service.ip(4), 80).pods == names(lab.pods[:3])
