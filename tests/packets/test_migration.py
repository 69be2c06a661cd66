"""manifests/MIGRATION.md under traffic: from kube-proxy's rules to kproxy, through its modes, and back.

kube-proxy is represented by its rules, written as it writes them (pkg/proxy/iptables/proxier.go): missing
jumps are inserted, its chains are rewritten in one restore per family.
"""

import functools
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kproxy.backends.core.hashes import port_hash
from kproxy.backends.iptables.names import endpoint_chain
from kproxy_lab.lab import Pod
from kproxy_lab.lab.topology import NODE_IP4, Family
from tests.packets.cluster import Cluster
from tests.packets.file import File
from tests.packets.modes import Capability
from tests.packets.objects import FAMILIES, NAMESPACE, TARGET, Service
from tests.packets.outcomes import Target, Traffic, names
from tests.packets.pages import status
from tests.packets.program import Kproxy
from tests.packets.switching import choose, remains

pytestmark = [pytest.mark.root, pytest.mark.needs(Capability.NFTABLES)]

KPROXY = [sys.executable, "-m", "kproxy"]
JUMPS = (
    ("nat", "OUTPUT", "KUBE-SERVICES", "kubernetes service portals"),
    ("nat", "PREROUTING", "KUBE-SERVICES", "kubernetes service portals"),
    ("nat", "POSTROUTING", "KUBE-POSTROUTING", "kubernetes postrouting rules"),
    ("filter", "FORWARD", "KUBE-FORWARD", "kubernetes forwarding rules"),
)


def kube_proxy_takes_over(cluster: Cluster, service: Service, pods: list[Pod]) -> None:
    """Write what a kube-proxy in iptables mode writes when it starts with this one service."""
    for family in FAMILIES:
        program = f"ip{'' if family == 4 else '6'}tables-nft"
        text = "".join(f"{line}\n" for line in restore_lines(service, pods, family))
        cluster.lab.node.run([f"{program}-restore", "--noflush"], stdin=text)
        for table, chain, target, comment in JUMPS:
            rule = [chain, "-m", "comment", "--comment", comment, "-j", target]
            if cluster.lab.node.run([program, "-t", table, "-C", *rule], check=False).returncode:
                cluster.lab.node.run([program, "-t", table, "-I", *rule])


def restore_lines(service: Service, pods: list[Pod], family: Family) -> Iterator[str]:
    (port,) = service.ports
    name = f"{NAMESPACE}/{service.name}" + (f":{port.name}" if port.name else "")
    comment = f'-m comment --comment "{name}'
    chain, external = (f"KUBE-{kind}-{port_hash(name, 'tcp')}" for kind in ("SVC", "EXT"))
    host = "32" if family == 4 else "128"
    ips = [pod.ip4 if family == 4 else pod.ip6 for pod in pods]
    places = [f"{ip}:{TARGET}" if family == 4 else f"[{ip}]:{TARGET}" for ip in ips]
    ends = [endpoint_chain(name, "tcp", place) for place in places]
    yield "*filter"
    yield from (f":KUBE-{each} - [0:0]" for each in ("SERVICES", "NODEPORTS", "FORWARD"))
    yield from (f":KUBE-{each} - [0:0]" for each in ("EXTERNAL-SERVICES", "PROXY-FIREWALL"))
    yield "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP"
    yield "-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT"
    yield "-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
    yield "COMMIT"
    yield "*nat"
    yield from (f":KUBE-{each} - [0:0]" for each in ("SERVICES", "NODEPORTS", "POSTROUTING", "MARK-MASQ"))
    yield from (f":{each} - [0:0]" for each in (chain, external, *ends))
    yield f'-A KUBE-NODEPORTS -p tcp {comment}" -m tcp --dport {service.node_port} -j {external}'
    yield f'-A {external} {comment} external" -j KUBE-MARK-MASQ'
    yield f"-A {external} -j {chain}"
    yield (
        f'-A KUBE-SERVICES -d {service.ip(family)}/{host} -p tcp {comment} cluster IP" '
        f"-m tcp --dport {port.number} -j {chain}"
    )
    yield "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS"
    for number, (ip, place, end) in enumerate(zip(ips, places, ends, strict=True)):
        left = len(ips) - number
        match = f" -m statistic --mode random --probability {1 / left:.10f}" if left > 1 else ""
        yield f'-A {chain} {comment} -> {place}"{match} -j {end}'
        yield f'-A {end} -s {ip}/{host} {comment}" -j KUBE-MARK-MASQ'
        yield f'-A {end} -p tcp {comment}" -m tcp -j DNAT --to-destination {place}'
    yield "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN"
    yield "-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000"
    yield "-A KUBE-POSTROUTING -j MASQUERADE --random-fully"
    yield "-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000"
    yield "COMMIT"


def run_kproxy(cluster: Cluster, file: File) -> Kproxy:
    """Start kproxy, as its pod on the node would, and check that it is healthy."""
    program = cluster.start("--config", str(file.path))
    assert status(cluster)["healthy"] is True
    return program


def remaining(cluster: Cluster, mode: str) -> int:
    """Return the number of objects that other modes have in the kernel."""
    return len(remains(cluster, but=mode))


def targets(cluster: Cluster, service: Service) -> list[Target]:
    client, pod = cluster.lab.client, cluster.lab.local_pods[2]
    found: list[Target] = [(client, NODE_IP4[0], service.node_port)]
    for family in FAMILIES:
        found += [(client, service.ip(family), 80), (pod, service.ip(family), 80)]
    return found


def test_from_kube_proxy_through_the_modes_and_back(spare: Cluster, tmp_path: Path) -> None:
    lab, node = spare.lab, spare.lab.node
    node.run([*KPROXY, "cleanup"])
    pods = list(lab.local_pods[:2])
    service = spare.service(type="NodePort")
    spare.slices(service, pods)
    file = File(tmp_path / "config.conf", spare)
    choose(file, "iptables/nft")
    kube_proxy_takes_over(spare, service, pods)
    with (
        lab.hold(lab.client, service.ip(4), 80) as held,
        lab.hold(lab.client, service.ip(6), 80) as held6,
        Traffic(lab, targets(spare, service)) as traffic,
    ):
        who = held.exchange("who?").pod, held6.exchange("who?").pod

        def undisturbed() -> None:
            traffic.flow()
            assert (held.exchange("still?").pod, held6.exchange("still?").pod) == who
            assert traffic.failures == []

        # "Move one node"
        program = run_kproxy(spare, file)
        undisturbed()
        # "Another mode"
        for mode in ("nftables", "iptables/legacy", "nftables", "iptables/nft"):
            since = program.mark()
            choose(file, mode)
            program.wait_log("mode_switched", f"mode={mode}", since=since)
            undisturbed()
            program.until(functools.partial(remaining, spare, mode), 0)
        # A cleanup beside a running kproxy, and a second kproxy: both are refused and change nothing.
        for command in ([*KPROXY, "cleanup"], [*KPROXY, *spare.command("--once")]):
            done = node.run(command, check=False)
            assert (done.returncode, f"pid {program.pid}" in done.stderr) == (1, True)
        undisturbed()
        # "The way back", in iptables mode: kube-proxy takes the rules over.
        assert program.end(signal.SIGTERM) == 0
        undisturbed()
        kube_proxy_takes_over(spare, service, pods)
        undisturbed()
        assert spare.ask(lab.client, service.ip(4), 80).pods == names(pods)
    # Another round, and back from nftables mode: the rules go with kproxy.
    choose(file, "nftables")
    with Traffic(lab, targets(spare, service)) as traffic:
        program = run_kproxy(spare, file)
        program.until(functools.partial(remaining, spare, "nftables"), 0)
        node.run([*KPROXY, "cleanup", "--on-exit"])
        traffic.flow()
    assert traffic.failures == []
    with lab.hold(lab.client, service.ip(4), 80) as held:
        who4 = held.exchange("who?").pod
        assert program.end(signal.SIGTERM) == 0
        assert remains(spare, but="none") == []
        kube_proxy_takes_over(spare, service, pods)
        assert held.exchange("still there?").pod == who4
    assert spare.ask(lab.client, service.ip(6), 80).pods == names(pods)
    node.run([*KPROXY, "cleanup"])
    assert remains(spare, but="none") == []
