"""From one mode to the other and back, from kube-proxy's too: no request fails, and nothing is left."""

import random
import signal
import sys
from collections.abc import Sequence

import pytest

from kproxy_lab.lab.topology import NODE_IP4
from tests.packets.cluster import Cluster
from tests.packets.modes import Capability
from tests.packets.objects import FAMILIES, Ep, Service
from tests.packets.outcomes import Traffic, names

pytestmark = [pytest.mark.root, pytest.mark.needs(Capability.VIRTUAL_SERVERS)]

TO_IPTABLES = ("--proxy-mode", "iptables")


def clean_node(cluster: Cluster) -> None:
    """Remove leftovers of earlier tests."""
    cluster.lab.node.run([sys.executable, "-m", "kproxy", "cleanup"])


def ipvs_remains(cluster: Cluster) -> list[str]:
    """Return all objects of an IPVS mode in the node's kernel."""
    node = cluster.lab.node
    found = node.run(["ipvsadm", "-Sn"]).stdout.splitlines()
    found += node.run(["ipset", "list", "-n"]).stdout.splitlines()
    found += [line for line in node.run(["ip", "-o", "link"]).stdout.splitlines() if "kube-ipvs0" in line]
    return found + [rule for family in FAMILIES for rule in cluster.rules(family) if "IPVS" in rule]


def iptables_remains(cluster: Cluster) -> list[str]:
    """The rules that only the iptables mode makes."""
    marks = (
        "KUBE-SVC-",
        "KUBE-SEP-",
        "KUBE-EXT-",
        ":KUBE-SERVICES",
        ":KUBE-EXTERNAL-SERVICES",
        "KUBE-FIREWALL",
    )
    return [rule for family in FAMILIES for rule in cluster.rules(family) if any(m in rule for m in marks)]


def publish_two(cluster: Cluster) -> tuple[Service, Service]:
    """A service on two local pods with node ports, and one that refuses."""
    service = cluster.publish(cluster.lab.local_pods[:2], type="NodePort")
    return service, cluster.publish([])


def targets(cluster: Cluster, service: Service) -> list[tuple[object, str, int]]:
    client, pod = cluster.lab.client, cluster.lab.local_pods[2]
    found: list[tuple[object, str, int]] = [(client, NODE_IP4[0], service.node_port)]
    for family in FAMILIES:
        found += [(client, service.ip(family), 80), (pod, service.ip(family), 80)]
    return found


@pytest.mark.parametrize("first", ["iptables", "ipvs"])
def test_a_switch_cuts_no_connection_and_leaves_nothing(spare: Cluster, first: str) -> None:
    clean_node(spare)
    flags: dict[str, Sequence[str]] = {"iptables": TO_IPTABLES, "ipvs": ()}
    second = "ipvs" if first == "iptables" else "iptables"
    spare.start(*flags[first])
    service, refused = publish_two(spare)
    lab = spare.lab
    with lab.hold(lab.client, service.ip(4), 80) as held, lab.hold(lab.client, service.ip(6), 80) as held6:
        who, who6 = held.exchange("who?").pod, held6.exchange("who?").pod
        with Traffic(lab, targets(spare, service)) as traffic:  # type: ignore[arg-type]
            spare.stop()
            spare.start(*flags[second])
            traffic.flow()
            assert held.exchange("still there?").pod == who
            assert held6.exchange("still there?").pod == who6
        assert traffic.failures == []
        assert spare.outcome(lab.client, refused.ip(4), 80) == "Refused"
        assert spare.ask(lab.client, service.ip(6), 80, n=20).pods == names(lab.local_pods[:2])
        if second == "ipvs":
            assert iptables_remains(spare) == []
    spare.scale(service, lab.local_pods[1:2])
    assert spare.ask(lab.client, service.ip(4), 80, n=5).pods == names(lab.local_pods[1:2])


def test_after_the_last_connection_nothing_of_ipvs_is_left(spare: Cluster) -> None:
    clean_node(spare)
    spare.start()
    service, _ = publish_two(spare)
    spare.stop()
    # The service that `settle()` asks has connections that ended a moment ago; these are waited for.
    spare.start(*TO_IPTABLES, "--ipvs-graceful-period", "3s")
    spare.running.until(lambda: "\n".join(ipvs_remains(spare)), "")
    for family in FAMILIES:
        assert spare.outcome(spare.lab.client, service.ip(family), 80) in names(spare.lab.local_pods)


def test_a_cleanup_leaves_nothing(spare: Cluster) -> None:
    clean_node(spare)
    spare.start()
    publish_two(spare)
    spare.publish(spare.lab.pods[:2], type="LoadBalancer", externalTrafficPolicy="Local")
    spare.stop()
    assert ipvs_remains(spare)
    clean_node(spare)
    assert ipvs_remains(spare) == []
    assert [rule for family in FAMILIES for rule in spare.rules(family) if "KUBE" in rule] == []


@pytest.mark.parametrize("flags", [(), TO_IPTABLES], ids=["ipvs", "iptables"])
def test_what_kube_proxy_in_ipvs_mode_left_is_taken_over(spare: Cluster, flags: Sequence[str]) -> None:
    clean_node(spare)
    lab, node = spare.lab, spare.lab.node
    pod = lab.local_pods[0]
    service = spare.service(type="NodePort")
    spare.slices(service, [pod])
    ip, port = service.ip(4), service.node_port
    sets = [
        "create KUBE-CLUSTER-IP hash:ip,port family inet hashsize 1024 maxelem 65536",
        f"add KUBE-CLUSTER-IP {ip},tcp:80",
        "add KUBE-CLUSTER-IP 10.96.77.77,tcp:80",
        "create KUBE-NODE-PORT-TCP bitmap:port range 0-65535",
        f"add KUBE-NODE-PORT-TCP {port}",
        "create KUBE-LOOP-BACK hash:ip,port,ip family inet hashsize 1024 maxelem 65536",
        "create KUBE-6-CLUSTER-IP hash:ip,port family inet6 hashsize 1024 maxelem 65536",
    ]
    node.run(["ipset", "restore"], stdin="\n".join(sets) + "\n")
    servers = [f"{ip}:80", "10.96.77.77:80", f"{NODE_IP4[0]}:{port}"]
    lines = [line for s in servers for line in (f"-A -t {s} -s rr", f"-a -t {s} -r {pod.ip4}:8080 -m")]
    node.run(["ipvsadm", "-R"], stdin="\n".join(lines) + "\n")
    node.run(["sysctl", "-w", "net.ipv4.vs.conntrack=1"])
    node.run(["ip", "link", "add", "kube-ipvs0", "type", "dummy"])
    for address in (ip, "10.96.77.77"):
        node.run(["ip", "address", "add", f"{address}/32", "dev", "kube-ipvs0"])
    rules = """*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-LOAD-BALANCER - [0:0]
:KUBE-POSTROUTING - [0:0]
-A KUBE-POSTROUTING -m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT
-A KUBE-NODE-PORT -p tcp -m set --match-set KUBE-NODE-PORT-TCP dst -j ACCEPT
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
COMMIT
*filter
:KUBE-NODE-PORT - [0:0]
:KUBE-SOURCE-RANGES-FIREWALL - [0:0]
:KUBE-IPVS-OUT-FILTER - [0:0]
-A INPUT -m comment --comment "kubernetes health check rules" -j KUBE-NODE-PORT
COMMIT
"""
    node.run([spare.mode.program(4, "restore"), "--noflush"], stdin=rules)
    with lab.hold(lab.client, ip, 80) as held:
        assert held.exchange("who?").pod == pod.name
        spare.start(*flags)
        assert held.exchange("still there?").pod == pod.name
        assert spare.outcome(lab.client, ip, 80) == pod.name
        assert spare.outcome(lab.client, NODE_IP4[0], port) == pod.name
    left = [name for name in node.run(["ipset", "list", "-n"]).stdout.split() if name.startswith("KUBE")]
    chains = [rule for rule in spare.rules(4) if "KUBE-NODE-PORT" in rule or "KUBE-SOURCE-RANGES" in rule]
    assert chains == []
    if not flags:
        assert left == []
        spare.running.until(lambda: "10.96.77.77" in node.run(["ipvsadm", "-Sn"]).stdout, expected=False)


def test_killed_at_random_moments_it_loses_nothing(spare: Cluster) -> None:
    clean_node(spare)
    spare.start()
    chance = random.Random(7)
    lab = spare.lab
    stays = spare.publish(lab.local_pods[:1])
    changing = spare.publish(lab.local_pods[:1])
    seen = [(lab.client, stays.ip(family), 80) for family in FAMILIES]
    with lab.hold(lab.client, stays.ip(4), 80) as held, Traffic(lab, seen) as traffic:
        for _ in range(4):
            for _ in range(chance.randrange(1, 12)):
                pods = chance.sample(lab.pods, chance.randrange(0, 4))
                spare.slices(changing, [Ep(pod) for pod in pods])
            spare.running.end(signal.SIGKILL)
            traffic.flow(2)
            spare.start()
        assert held.exchange("still there?").pod == lab.local_pods[0].name
        spare.scale(changing, lab.local_pods[1:2])
    assert traffic.failures == []
    assert spare.ask(lab.client, changing.ip(4), 80, n=5).pods == names(lab.local_pods[1:2])
    spare.delete(changing)
    spare.delete(stays)
    spare.stop()
    clean_node(spare)
    assert ipvs_remains(spare) == []
