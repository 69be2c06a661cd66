"""Restarts, crashes, outages and foreign changes: traffic goes on, and drift is repaired."""

import fcntl
import shlex
import signal
import sys

import pytest

from kproxy.kernel.xtables.lock import lock_file_in_use
from kproxy_lab.lab.topology import NODE_IP4, Family
from tests.packets.cluster import Cluster
from tests.packets.modes import Capability
from tests.packets.objects import FAMILIES
from tests.packets.outcomes import Traffic, names

pytestmark = pytest.mark.root


def test_connections_outlive_changes_of_their_service(spare: Cluster) -> None:
    spare.start()
    lab = spare.lab
    first, second, third = lab.pods[:3]
    service = spare.publish([first])
    for family in FAMILIES:
        with lab.hold(lab.client, service.ip(family), 80) as held:
            for endpoints in ([first, second, third], [second, third], [], [third]):
                spare.scale(service, endpoints)
                assert held.exchange("still there?").pod == first.name
        spare.scale(service, [first])


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["term", "kill"])
def test_a_restart_interrupts_nothing(spare: Cluster, end: signal.Signals) -> None:
    program = spare.start()
    lab = spare.lab
    pods = lab.pods[:2]
    service = spare.publish(pods, type="NodePort")
    before = {family: spare.rules(family) for family in FAMILIES}
    targets = [(lab.client, service.ip(family), 80) for family in FAMILIES]
    with lab.hold(lab.client, service.ip(4), 80) as held, Traffic(lab, targets) as traffic:
        program.end(end)
        traffic.flow()
        assert {family: spare.rules(family) for family in FAMILIES} == before
        spare.start()
        traffic.flow()
        spare.scale(service, pods[:1])
        held.exchange("still there?")
    assert traffic.failures == []
    assert spare.ask(lab.client, service.ip(4), 80, n=10).pods == names(pods[:1])


def test_changes_made_while_it_was_down_are_caught_up(spare: Cluster) -> None:
    spare.start()
    one, other = spare.lab.local_pods[:2]
    gone, stays = spare.publish([one]), spare.publish([one])
    spare.stop()
    spare.delete(gone)
    spare.slices(stays, [other])
    fresh = spare.service()
    spare.slices(fresh, [one])
    spare.start()
    for family in FAMILIES:
        assert spare.outcome(spare.lab.client, gone.ip(family), 80) == spare.mode.unserved
        assert spare.outcome(spare.lab.client, stays.ip(family), 80) == other.name
        assert spare.outcome(spare.lab.client, fresh.ip(family), 80) == one.name


def test_an_api_server_that_comes_back_empty_handed_takes_nothing_away(spare: Cluster) -> None:
    spare.start()
    lab = spare.lab
    pod = lab.local_pods[0]
    service = spare.publish([pod])
    with Traffic(lab, [(lab.client, service.ip(family), 80) for family in FAMILIES]) as traffic:
        spare.api.restart()
        later = spare.publish([pod])
        traffic.flow()
    assert traffic.failures == []
    assert spare.outcome(lab.client, later.ip(4), 80) == pod.name


@pytest.mark.needs(Capability.SERVICE_CHAINS)
@pytest.mark.parametrize("damage", ["flush nat", "rule", "jump", "filter"])
def test_damage_is_named_and_repaired(spare: Cluster, damage: str) -> None:
    program = spare.start()
    lab = spare.lab
    pod = lab.local_pods[0]
    service, empty = spare.publish([pod]), spare.publish([])
    before = sorted(spare.rules(4))
    since = program.mark()
    jump = next(line for line in before if line.startswith("-A PREROUTING") and "KUBE-SERVICES" in line)
    chain = next(
        line.split()[-1] for line in before if service.key in line and line.startswith("-A KUBE-SERVICES")
    )
    match damage:
        case "flush nat":
            spare.iptables(4, "-t", "nat", "-F")
            expected = "KUBE-SERVICES"
        case "rule":
            spare.iptables(4, "-t", "nat", "-D", chain, "1")
            expected = chain
        case "jump":
            spare.iptables(4, "-t", "nat", "-D", "PREROUTING", "1")
            expected = "PREROUTING"
        case _:
            spare.iptables(4, "-F", "KUBE-SERVICES")
            expected = "filter/KUBE-SERVICES"
    assert jump
    program.wait_log("drift_found", expected, since=since)
    program.until(lambda: spare.outcome(lab.client, service.ip(4), 80), pod.name)
    program.until(lambda: spare.outcome(lab.client, empty.ip(4), 80), "Refused")
    program.until(lambda: sorted(spare.rules(4)), before)


@pytest.mark.needs(Capability.SERVICE_CHAINS)
def test_all_its_chains_are_made_again(spare: Cluster, family: Family) -> None:
    """Chains are deleted one by one while a repair may run; the final rules are complete."""
    program = spare.start()
    pod = spare.lab.local_pods[0]
    service, empty = spare.publish([pod], type="NodePort"), spare.publish([])
    before = sorted(spare.rules(family))
    jumps, chains, table = [], [], ""
    for line in spare.rules(family):
        if line.startswith("*"):
            table = line[1:]
        elif "-j KUBE-" in line and not line.startswith("-A KUBE-"):
            jumps.append(["-t", table, "-D", *shlex.split(line)[1:]])
        elif line.startswith(":KUBE-"):
            chains.append([table, line[1:].split()[0]])
    emptied = [["-t", table, "-F", chain] for table, chain in chains]
    deleted = [["-t", table, "-X", chain] for table, chain in chains]
    for arguments in (*jumps, *emptied, *deleted):
        spare.lab.node.run([spare.mode.program(family), "-w", "5", *arguments], check=False)
    program.until(lambda: spare.outcome(spare.lab.client, service.ip(family), 80), pod.name)
    program.until(lambda: spare.outcome(spare.lab.client, empty.ip(family), 80), "Refused")
    program.until(lambda: sorted(spare.rules(family)), before)


@pytest.mark.needs(Capability.XTABLES_LOCK)
def test_a_held_lock_is_reported_and_waited_for(spare: Cluster) -> None:
    program = spare.start()
    one, other = spare.lab.local_pods[:2]
    service = spare.publish([one])
    since = program.mark()
    with lock_file_in_use().open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        spare.slices(service, [other])
        assert "lock" in program.wait_log("sync_failed", "xtables", since=since)
        assert spare.outcome(spare.lab.client, service.ip(4), 80) == one.name
    spare.settle()
    assert spare.outcome(spare.lab.client, service.ip(4), 80) == other.name


def test_garbage_is_named_and_harms_no_other_object(spare: Cluster) -> None:
    program = spare.start()
    pod = spare.lab.local_pods[0]
    good = spare.publish([pod])
    since = program.mark()
    for number, spec in enumerate(
        (
            {"clusterIP": "10.96.9.9 -j ACCEPT", "ports": [{"port": 80}]},
            {
                "clusterIP": "10.96.9.8",
                "externalIPs": ["1.2.3.4\n-A INPUT -j ACCEPT"],
                "ports": [{"port": 80}],
            },
            {"clusterIP": "10.96.9.7", "ports": [{"port": "eighty"}]},
            {"clusterIP": "10.96.9.6", "ports": [{"port": 70000, "protocol": "ICMP"}]},
        )
    ):
        metadata = {"name": f"bad-{number}", "namespace": "default"}
        obj = {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}
        spare.apply(obj, validate=False)
    spare.scale(good, [pod])
    for number, word in ((0, "clusterIP"), (1, "externalIPs"), (3, "protocol")):
        program.wait_log("object_problem", f"default/bad-{number}", word, since=since)
    program.wait_log("object_rejected", "default/bad-2", "eighty", since=since)
    assert spare.outcome(spare.lab.client, good.ip(4), 80) == pod.name
    assert not [line for line in spare.rules(4) if "1.2.3.4" in line or "10.96.9.9" in line]


def test_once_leaves_rules_that_deliver_and_cleanup_takes_all_away(spare: Cluster) -> None:
    lab = spare.lab
    kproxy = [sys.executable, "-m", "kproxy"]
    lab.node.run([*kproxy, "cleanup"])
    spare.iptables(4, "-t", "nat", "-N", "FOREIGN")
    spare.iptables(4, "-t", "nat", "-A", "FOREIGN", "-d", "192.0.2.99/32", "-j", "RETURN")
    untouched = {family: sorted(line for line in spare.rules(family) if line != "") for family in FAMILIES}
    pod = lab.local_pods[0]
    service = spare.service(type="NodePort")
    spare.slices(service, [pod])
    assert lab.node.run([*kproxy, *spare.command("--once")]).returncode == 0
    for family in FAMILIES:
        assert spare.outcome(lab.client, service.ip(family), 80) == pod.name
    assert spare.outcome(lab.client, NODE_IP4[0], service.node_port) == pod.name
    lab.node.run([*kproxy, "cleanup"])
    for family in FAMILIES:
        left = [line for line in spare.rules(family) if line not in untouched[family]]
        assert not [line for line in left if "KUBE" in line]
    assert "-A FOREIGN -d 192.0.2.99/32 -j RETURN" in spare.rules(4)
    assert spare.outcome(lab.client, service.ip(4), 80) == "Unreachable"
    spare.iptables(4, "-t", "nat", "-F", "FOREIGN")
    spare.iptables(4, "-t", "nat", "-X", "FOREIGN")
