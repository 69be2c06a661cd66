"""Behaviour of the IPVS mode only: schedulers, draining destinations, and foreign virtual servers."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kproxy.plan.schedulers import SCHEDULERS
from kproxy_lab.lab import Pod
from kproxy_lab.lab.topology import NODE_IP4, NODE_IP6, Family
from tests.packets.cluster import PATIENCE, SILENCE, Cluster
from tests.packets.modes import Capability
from tests.packets.objects import TARGET, Port, Service
from tests.packets.outcomes import names

pytestmark = [pytest.mark.root, pytest.mark.needs(Capability.VIRTUAL_SERVERS)]


def scheduled(cluster: Cluster, scheduler: str, pods: list[Pod], **service: object) -> Service:
    """A service with a scheduler of its own."""
    annotations = {"kproxy.io/scheduler": scheduler, **service.pop("annotations", {})}  # type: ignore[dict-item]
    return cluster.publish(pods, annotations=annotations, **service)


def destinations(cluster: Cluster, service: Service, family: Family = 4) -> dict[str, int]:
    """The weights of a service's destinations at its cluster IP, by address, as ipvsadm prints them."""
    address = f"[{service.ip(family)}]" if family == 6 else service.ip(family)
    found = {}
    for line in cluster.lab.node.run(["ipvsadm", "-Sn"]).stdout.splitlines():
        words = line.split()
        if words[0] == "-a" and words[2] == f"{address}:80":
            found[words[4].rpartition(":")[0].strip("[]")] = int(words[-1])
    return found


def test_rr_takes_even_turns(cluster: Cluster, family: Family) -> None:
    pods = cluster.lab.pods[:3]
    service = scheduled(cluster, "rr", pods)
    answers = [cluster.outcome(cluster.lab.client, service.ip(family), 80) for _ in range(9)]
    assert all(set(answers[n : n + 3]) == names(pods) for n in range(7))


def test_wrr_takes_turns_by_weight(cluster: Cluster, family: Family) -> None:
    one, other = cluster.lab.pods[:2]
    weights = {"kproxy.io/weights": f'{{"pod:{one.name}": 3, "*": 1}}'}
    service = scheduled(cluster, "wrr", [one, other], annotations=weights)
    answers = [cluster.outcome(cluster.lab.client, service.ip(family), 80) for _ in range(16)]
    assert (answers.count(one.name), answers.count(other.name)) == (12, 4)


def test_lc_takes_the_one_with_fewest_connections(cluster: Cluster, family: Family) -> None:
    lab = cluster.lab
    one, other = lab.pods[:2]
    service = scheduled(cluster, "lc", [one])
    with lab.hold(lab.client, service.ip(family), 80), lab.hold(lab.client, service.ip(family), 80):
        cluster.scale(service, [one, other])
        with lab.hold(lab.client, service.ip(family), 80) as third:
            assert third.exchange("who?").pod == other.name
            with lab.hold(lab.client, service.ip(family), 80) as fourth:
                assert fourth.exchange("who?").pod == other.name


@pytest.mark.parametrize("alias", [False, True], ids=["own", "alias"])
def test_sh_leads_a_client_to_the_same_endpoint(cluster: Cluster, family: Family, *, alias: bool) -> None:
    pods = cluster.lab.pods[:3]
    name = "kube-router.io/service.scheduler" if alias else "kproxy.io/scheduler"
    service = cluster.publish(pods, annotations={name: "sh"})
    seen = set()
    for client in cluster.client_ips(family)[:12]:
        answers = {
            cluster.outcome(cluster.lab.client, service.ip(family), 80, source_ip=client) for _ in range(3)
        }
        assert len(answers) == 1
        seen |= answers
    assert len(seen) > 1


def test_every_scheduler_serves(cluster: Cluster) -> None:
    """All schedulers of this kernel; Debian's user-mode kernel is built without twos."""
    pods, trial = cluster.lab.pods[:2], ["-t", "192.0.2.250:1"]
    services: dict[str, Service] = {}
    for scheduler in (*SCHEDULERS, "sh,sh-port", "mh,mh-fallback"):
        name = scheduler.partition(",")[0]
        if cluster.lab.node.run(["ipvsadm", "-A", *trial, "-s", name], check=False).returncode:
            assert name == "twos"
            continue
        cluster.lab.node.run(["ipvsadm", "-D", *trial])
        services[scheduler] = cluster.service(annotations={"kproxy.io/scheduler": scheduler})
        cluster.slices(services[scheduler], pods)
    cluster.settle()
    printed = cluster.lab.node.run(["ipvsadm", "-Sn"]).stdout
    for scheduler, service in services.items():
        assert f"-A -t {service.ip(4)}:80 -s {scheduler.partition(',')[0]}" in printed
        assert cluster.ask(cluster.lab.client, service.ip(4), 80, n=4).pods <= names(pods)


def test_a_destination_that_leaves_keeps_its_connections_and_gets_no_new_ones(
    cluster: Cluster, family: Family
) -> None:
    lab = cluster.lab
    one, other = lab.pods[:2]
    service = cluster.publish([one])
    with lab.hold(lab.client, service.ip(family), 80) as held:
        cluster.scale(service, [other])
        assert destinations(cluster, service, family) == {one.ip(family): 0, other.ip(family): 1}
        assert cluster.ask(lab.client, service.ip(family), 80, n=4).pods == {other.name}
        assert held.exchange("still there?").pod == one.name
        cluster.scale(service, [one, other])
        assert destinations(cluster, service, family) == {one.ip(family): 1, other.ip(family): 1}
        assert held.exchange("still there?").pod == one.name


def test_a_destination_without_connections_goes_soon(cluster: Cluster, family: Family) -> None:
    one, other = cluster.lab.pods[:2]
    service = cluster.publish([one])
    cluster.scale(service, [other])
    cluster.running.until(lambda: destinations(cluster, service, family), {other.ip(family): 1})


def test_a_graceful_period_ends(spare: Cluster) -> None:
    spare.start("--ipvs-graceful-period", "2s")
    lab = spare.lab
    one, other = lab.pods[:2]
    service = spare.publish([one])
    with lab.hold(lab.client, service.ip(4), 80):
        spare.scale(service, [other])
        assert destinations(spare, service) == {one.ip4: 0, other.ip4: 1}
        spare.running.until(lambda: destinations(spare, service), {other.ip4: 1})


def test_what_drains_is_found_again_after_a_restart(spare: Cluster) -> None:
    spare.start()
    lab = spare.lab
    one, other = lab.pods[:2]
    service = spare.publish([one])
    with lab.hold(lab.client, service.ip(4), 80) as held:
        spare.scale(service, [other])
        spare.stop()
        spare.start()
        assert destinations(spare, service) == {one.ip4: 0, other.ip4: 1}
        assert held.exchange("still there?").pod == one.name


def test_a_port_of_the_node_is_not_reached_through_a_service_address(
    cluster: Cluster, family: Family
) -> None:
    lab = cluster.lab
    service = cluster.publish([lab.pods[0]])
    server = lab.serve(lab.node_pod, port=8888, addresses=("0.0.0.0", "::"))
    try:
        assert cluster.outcome(lab.client, NODE_IP4[0], 8888) == lab.node_pod.name
        assert cluster.outcome(lab.client, service.ip(family), 8888) == "Refused"
        assert cluster.outcome(lab.local_pods[1], service.ip(family), 8888) == "Refused"
    finally:
        lab.stop_serving(server)


def test_health_is_answered_at_the_balanced_address_too(cluster: Cluster, family: Family) -> None:
    """Some load balancers probe there, and not at the node's own address."""
    lab, number, ip = cluster.lab, cluster.free_node_port(), cluster.external_ips()[family]
    cluster.publish(
        [lab.local_pods[0]],
        type="LoadBalancer",
        ingress=[{"ip": ip}],
        externalTrafficPolicy="Local",
        healthCheckNodePort=number,
        families=[family],
    )
    script = (
        "import sys, http.client as h; c = h.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=9); "
        "c.request('GET', '/'); print(c.getresponse().status)"
    )
    ask = [sys.executable, "-c", script, ip, str(number)]

    def status() -> str:
        return lab.client.run(ask, check=False).stdout.strip()

    cluster.running.until(status, "200")


def test_what_others_made_is_left_alone(spare: Cluster) -> None:
    node = spare.lab.node
    foreign = ["-A -t 192.0.2.200:80 -s rr", "-a -t 192.0.2.200:80 -r 10.244.1.99:80 -m -w 7"]
    node.run(["ipvsadm", "-R"], stdin="\n".join(foreign) + "\n")
    node.run(["ipset", "create", "FOREIGN", "hash:ip"])
    node.run(["ip", "address", "add", "192.0.2.201/32", "dev", "lo"])
    spare.start()
    service = spare.publish([spare.lab.pods[0]])
    spare.delete(service)
    spare.settle()
    spare.stop()
    node.run([sys.executable, "-m", "kproxy", "cleanup"])
    assert node.run(["ipvsadm", "-Sn"]).stdout.splitlines() == foreign
    assert node.run(["ipset", "list", "-n"]).stdout.split() == ["FOREIGN"]
    links = node.run(["ip", "-o", "address"]).stdout
    assert "192.0.2.201/32" in links
    assert "kube-ipvs0" not in links
    node.run(["ipvsadm", "-C"])
    node.run(["ipset", "destroy", "FOREIGN"])
    node.run(["ip", "address", "del", "192.0.2.201/32", "dev", "lo"])


def test_a_virtual_server_in_the_way_is_named_and_respected(spare: Cluster) -> None:
    node = spare.lab.node
    theirs = f"{NODE_IP4[0]}:31999"
    node.run(["ipvsadm", "-A", "-t", theirs, "-s", "wlc"])
    program = spare.start()
    service = spare.publish([spare.lab.pods[0]], type="NodePort", ports=[Port(80, node_port=31999)])
    program.wait_log("service_quarantined", service.key, "did not make")
    assert f"-A -t {theirs} -s wlc" in node.run(["ipvsadm", "-Sn"]).stdout
    other = spare.publish([spare.lab.pods[0]])
    assert spare.outcome(spare.lab.client, other.ip(4), 80) == spare.lab.pods[0].name
    node.run(["ipvsadm", "-D", "-t", theirs])


FLUSHED = (
    "for t in iptables ip6tables; do for table in filter nat mangle; do "
    "$t-legacy -w -t $table -F; $t-legacy -w -t $table -X; done; done; ipset destroy"
)


@pytest.mark.parametrize(
    "damage",
    [
        ["ipvsadm", "-C"],
        ["ip", "link", "del", "kube-ipvs0"],
        ["ipset", "flush"],
        ["ip", "address", "flush", "dev", "kube-ipvs0"],
        ["sh", "-c", "ip link set kube-ipvs0 up; ip link set kube-ipvs0 down"],
        ["sh", "-c", FLUSHED],
    ],
    ids=["servers", "device", "entries", "addresses", "link", "rules and sets"],
)
def test_damage_is_named_and_mended(spare: Cluster, damage: list[str]) -> None:
    program = spare.start("--ipvs-sync-period", "1s")
    pod = spare.lab.pods[0]
    service = spare.publish([pod])
    since = program.mark()
    spare.lab.node.run(damage)
    program.wait_log("drift_found", since=since)
    for family in (4, 6):
        program.until(lambda family=family: spare.outcome(spare.lab.client, service.ip(family), 80), pod.name)  # type: ignore[misc]


def test_settings_reach_the_kernel(spare: Cluster) -> None:
    spare.start(
        "--ipvs-scheduler",
        "wlc",
        "--ipvs-tcp-timeout",
        "15m1s",
        "--ipvs-udp-timeout",
        "11s",
        "--ipvs-strict-arp",
    )
    service = spare.publish([spare.lab.pods[0]], sessionAffinity="ClientIP")
    node = spare.lab.node
    assert f"-A -t {service.ip(4)}:80 -s wlc -p 10800" in node.run(["ipvsadm", "-Sn"]).stdout
    assert "901 120 11" in node.run(["ipvsadm", "-L", "--timeout"]).stdout
    for name, value in (
        ("vs.conntrack", "1"),
        ("vs.expire_nodest_conn", "1"),
        ("vs.expire_quiescent_template", "1"),
        ("conf.all.arp_ignore", "1"),
        ("conf.all.arp_announce", "2"),
    ):
        assert node.run(["sysctl", "-n", f"net.ipv4.{name}"]).stdout.strip() == value


def test_a_host_port_takes_nothing_that_a_service_is_asked_for(spare: Cluster, family: Family) -> None:
    """The CNI plugin portmap translates its port at every local address, and those of services are local."""
    lab = spare.lab
    pod, with_host_port, asking = lab.local_pods[:3]
    own = (NODE_IP4 if family == 4 else NODE_IP6)[0]
    to = f"{with_host_port.ip4}:{TARGET}" if family == 4 else f"[{with_host_port.ip6}]:{TARGET}"
    rule = ("-p", "tcp", "--dport", "80", "-m", "addrtype", "--dst-type", "LOCAL", "-j", "DNAT")
    for hook in ("PREROUTING", "OUTPUT"):
        spare.iptables(family, "-t", "nat", "-A", hook, *rule, "--to-destination", to)
    try:
        spare.start()
        external, balanced, local = (spare.external_ips()[family] for _ in range(3))
        balancer = {"type": "LoadBalancer", "families": [family]}
        service = spare.publish([pod], externalIPs=[external], ingress=[{"ip": balanced}], **balancer)
        spare.publish([pod], ingress=[{"ip": local}], externalTrafficPolicy="Local", **balancer)
        unserved = spare.publish([], families=[family])
        for source in (lab.client, lab.node, asking):
            answers = {
                ip: spare.outcome(source, ip, 80)
                for ip in (service.ip(family), external, balanced, local, unserved.ip(family))
            }
            assert list(answers.values()) == [*[pod.name] * 4, "Refused"], answers
        assert spare.outcome(lab.client, own, 80) == with_host_port.name
        spare.publish([pod], externalIPs=[own], families=[family])
        assert spare.outcome(lab.client, own, 80) == pod.name
    finally:
        for hook in ("PREROUTING", "OUTPUT"):
            spare.iptables(family, "-t", "nat", "-D", hook, *rule, "--to-destination", to)


@contextmanager
def firewalled(cluster: Cluster, family: Family, ends: str) -> Iterator[None]:
    """A host whose firewall drops or refuses everything without a rule, services included."""
    known = ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"]
    lost = ["-p", "ipv6-icmp", "-j", "ACCEPT"] if family == 6 else ["-p", "icmp", "-j", "ACCEPT"]
    rules = [
        (hook, rule)
        for hook, loopback in (("INPUT", "-i"), ("OUTPUT", "-o"))
        for rule in (known, lost, [loopback, "lo", "-j", "ACCEPT"])
    ]
    if ends == "REJECT":
        rules += [("INPUT", ["-j", "REJECT"]), ("OUTPUT", ["-j", "REJECT"])]
    for hook, rule in rules:
        cluster.iptables(family, "-A", hook, *rule)
    for hook in ("INPUT", "FORWARD", "OUTPUT"):
        cluster.iptables(family, "-P", hook, "DROP" if ends == "DROP" else "ACCEPT")
    # The network plugin lets pods reach each other.
    between = ("-i", "mynet+", "-j", "ACCEPT")
    cluster.iptables(family, "-A", "FORWARD", *between)
    try:
        yield
    finally:
        for hook in ("INPUT", "FORWARD", "OUTPUT"):
            cluster.iptables(family, "-P", hook, "ACCEPT")
        cluster.iptables(family, "-D", "FORWARD", *between)
        for hook, rule in rules:
            cluster.iptables(family, "-D", hook, *rule)


@pytest.mark.parametrize("ends", ["DROP", "REJECT"])
def test_a_firewall_of_the_nodes_own_ports_does_not_shut_services(
    cluster: Cluster, family: Family, ends: str
) -> None:
    lab, (open_, limited, local) = cluster.lab, (cluster.external_ips()[family] for _ in range(3))
    pod = lab.pods[-1]
    ports = [Port(80, name="tcp"), Port(80, "UDP", name="udp")]
    service = cluster.publish(
        [pod],
        type="LoadBalancer",
        ports=ports,
        ingress=[{"ip": open_}],
        families=[family],
    )
    admitted = cluster.client_ips(family)[1]
    ranges = [f"{admitted}/{32 if family == 4 else 128}"]
    balancer = {"type": "LoadBalancer", "families": [family]}
    cluster.publish([pod], ingress=[{"ip": limited}], loadBalancerSourceRanges=ranges, **balancer)
    cluster.publish([lab.local_pods[0]], ingress=[{"ip": local}], externalTrafficPolicy="Local", **balancer)
    unserved = cluster.publish([], families=[family])
    own = (NODE_IP4 if family == 4 else NODE_IP6)[0]
    server = lab.serve(lab.node_pod, port=8888, addresses=("0.0.0.0", "::"))
    try:
        with firewalled(cluster, family, ends):
            for protocol in ("TCP", "UDP"):
                node_port = service.node_ports[protocol.lower()]
                for source in (lab.client, lab.local_pods[1]):
                    for ip, port in ((service.ip(family), 80), (open_, 80), (own, node_port)):
                        assert cluster.outcome(source, ip, port, protocol) == pod.name, (ip, port, protocol)
            assert cluster.outcome(lab.client, local, 80) == lab.local_pods[0].name
            assert cluster.outcome(lab.client, limited, 80, source_ip=admitted) == pod.name
            assert cluster.silent(lab.client, limited, 80)
            for ip, port in ((unserved.ip(family), 80), (own, cluster.free_node_port()), (own, 8888)):
                found = cluster.outcome(lab.client, ip, port, timeout=SILENCE)
                assert found in {"Refused", "NoAnswer"}, (ip, port)
        assert cluster.outcome(lab.client, own, 8888) == lab.node_pod.name
    finally:
        lab.stop_serving(server)


@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_the_node_asks_from_a_port_that_is_a_node_port(
    cluster: Cluster, family: Family, protocol: str
) -> None:
    """The SYN-ACK or datagram that the client expects at that port is not a request to the service."""
    lab, own = cluster.lab, (NODE_IP4 if family == 4 else NODE_IP6)[0]
    serving, asked = lab.pods[0], (lab.pods[-1], lab.local_pods[1])
    service = cluster.publish([serving], type="NodePort", ports=[Port(80, protocol)], families=[family])  # type: ignore[arg-type]
    server = lab.serve(lab.node_pod, protocol, 8888, addresses=("0.0.0.0", "::"))  # type: ignore[arg-type]
    try:
        others = [(pod.ip(family), TARGET, pod) for pod in asked]
        for ip, port, pod in (*others, (own, 8888, lab.node_pod), (service.ip(family), 80, serving)):
            answer = lab.ask(
                lab.node,
                ip,
                port,
                protocol,  # type: ignore[arg-type]
                source_ip=own,
                source_port=service.node_port,
                timeout=PATIENCE,
            )
            assert answer.pod == pod.name
        assert cluster.outcome(lab.client, own, service.node_port, protocol) == serving.name  # type: ignore[arg-type]
    finally:
        lab.stop_serving(server)


def test_an_address_that_a_service_gives_up_is_not_the_nodes_own_any_more(
    cluster: Cluster, family: Family
) -> None:
    """Only closing connections are left, as after every request; another machine may have the address now."""
    lab, ip, other = cluster.lab, *(cluster.external_ips()[family] for _ in range(2))
    service = cluster.publish([lab.pods[0]], externalIPs=[ip, other], families=[family])
    for address in (ip, other):
        assert cluster.outcome(lab.client, address, 80) == lab.pods[0].name

    def bound() -> set[str]:
        shown = lab.node.run(["ip", "-o", "address", "show", "dev", "kube-ipvs0"]).stdout
        return {address for address in (ip, other) if f" {address}/" in shown}

    with lab.hold(lab.client, other, 80) as held:
        cluster.edit(service, lambda spec: spec.update(externalIPs=[]))
        cluster.settle()
        assert bound() == {other}
        assert held.exchange("still there?").pod == lab.pods[0].name
    cluster.running.until(lambda: len(bound()), 0)


def test_a_program_of_the_node_is_reached_at_a_node_port_that_still_drains(
    cluster: Cluster, family: Family
) -> None:
    """As when a host port replaces a NodePort service while a connection is never idle."""
    lab, own = cluster.lab, (NODE_IP4 if family == 4 else NODE_IP6)[0]
    service = cluster.publish([lab.pods[0]], type="NodePort", families=[family])
    with lab.hold(lab.client, own, service.node_port) as held:
        cluster.delete(service)
        cluster.settle()
        assert cluster.outcome(lab.client, own, service.node_port) == "Refused"
        server = lab.serve(lab.node_pod, port=service.node_port, addresses=("0.0.0.0", "::"))
        try:
            for source in (lab.client, lab.local_pods[0], lab.node):
                assert cluster.outcome(source, own, service.node_port) == lab.node_pod.name
        finally:
            lab.stop_serving(server)
        assert held.exchange("still there?").pod == lab.pods[0].name
