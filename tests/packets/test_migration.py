"""manifests/MIGRATION.md under traffic: from kube-proxy to kproxy, through its modes, and back.

kube-proxy is represented by the objects that it writes (tests/packets/kube_proxy.py).
"""

import functools
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kproxy_lab.lab import Pod
from kproxy_lab.lab.topology import NODE_IP4
from tests.packets.cluster import Cluster
from tests.packets.file import File
from tests.packets.kube_proxy import KubeProxy
from tests.packets.modes import Capability
from tests.packets.objects import FAMILIES, Service
from tests.packets.outcomes import Target, Traffic, names
from tests.packets.pages import status
from tests.packets.program import Kproxy
from tests.packets.switching import choose, ipvs_remains, remains

pytestmark = pytest.mark.root

KPROXY = [sys.executable, "-m", "kproxy"]


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


class Watched:
    """Requests without a pause and two open connections; `check` asserts that nothing was interrupted."""

    def __init__(self, cluster: Cluster, traffic: Traffic, service: Service) -> None:
        lab = cluster.lab
        self._traffic = traffic
        self._held = [lab.hold(lab.client, service.ip(family), 80) for family in FAMILIES]
        self._who = [held.exchange("who?").pod for held in self._held]

    def check(self) -> None:
        self._traffic.flow()
        assert [held.exchange("still?").pod for held in self._held] == self._who
        assert self._traffic.failures == []


@contextmanager
def watched(cluster: Cluster, service: Service) -> Iterator[Watched]:
    with Traffic(cluster.lab, targets(cluster, service)) as traffic:
        found = Watched(cluster, traffic, service)
        yield found
        found.check()


def go_through(cluster: Cluster, program: Kproxy, file: File, modes: list[str], traffic: Watched) -> None:
    """Change the mode as "Another mode" says: nothing is interrupted, the former mode's rules go."""
    for mode in modes:
        since = program.mark()
        choose(file, mode)
        program.wait_log("mode_switched", f"mode={mode}", since=since)
        traffic.check()
        program.until(functools.partial(remaining, cluster, mode), 0)


def refuse_beside(cluster: Cluster, program: Kproxy) -> None:
    """A cleanup beside a running kproxy, and a second kproxy: both are refused."""
    for command in ([*KPROXY, "cleanup"], [*KPROXY, *cluster.command("--once")]):
        done = cluster.lab.node.run(command, check=False)
        assert (done.returncode, f"pid {program.pid}" in done.stderr) == (1, True)


def prepare(cluster: Cluster) -> tuple[Service, list[Pod]]:
    """Clean the node; make a service with node ports on two of its pods."""
    cluster.lab.node.run([*KPROXY, "cleanup"])
    pods = list(cluster.lab.local_pods[:2])
    service = cluster.service(type="NodePort")
    cluster.slices(service, pods)
    return service, pods


@pytest.mark.needs(Capability.NFTABLES)
def test_from_kube_proxy_through_the_modes_and_back(spare: Cluster, tmp_path: Path) -> None:
    lab, node = spare.lab, spare.lab.node
    service, pods = prepare(spare)
    kube_proxy = KubeProxy(spare, "nft", service, pods)
    file = File(tmp_path / "config.conf", spare)
    choose(file, "iptables/nft")
    kube_proxy.write_iptables_mode()
    with watched(spare, service) as traffic:
        # "Move one node"
        program = run_kproxy(spare, file)
        traffic.check()
        go_through(spare, program, file, ["nftables", "iptables/legacy", "nftables", "iptables/nft"], traffic)
        refuse_beside(spare, program)
        traffic.check()
        # "The way back", in iptables mode: kube-proxy takes the rules over.
        assert program.end(signal.SIGTERM) == 0
        traffic.check()
        kube_proxy.write_iptables_mode()
        traffic.check()
        assert spare.ask(lab.client, service.ip(4), 80).pods == names(pods)
    # Another round, and back from nftables mode: the rules go with kproxy.
    choose(file, "nftables")
    with Traffic(lab, targets(spare, service)) as requests:
        program = run_kproxy(spare, file)
        program.until(functools.partial(remaining, spare, "nftables"), 0)
        node.run([*KPROXY, "cleanup", "--on-exit"])
        requests.flow()
    assert requests.failures == []
    with lab.hold(lab.client, service.ip(4), 80) as held:
        who4 = held.exchange("who?").pod
        assert program.end(signal.SIGTERM) == 0
        assert remains(spare, but="none") == []
        kube_proxy.write_iptables_mode()
        assert held.exchange("still there?").pod == who4
    assert spare.ask(lab.client, service.ip(6), 80).pods == names(pods)
    node.run([*KPROXY, "cleanup"])
    assert remains(spare, but="none") == []


@pytest.mark.slow
@pytest.mark.needs(Capability.VIRTUAL_SERVERS)
@pytest.mark.parametrize("left", ["iptables", "ipvs"])
def test_from_kube_proxy_to_virtual_servers_and_back(spare: Cluster, tmp_path: Path, left: str) -> None:
    """Without nat in nftables, as in this kernel: iptables mode uses legacy, nftables mode is refused."""
    lab, node = spare.lab, spare.lab.node
    service, pods = prepare(spare)
    kube_proxy = KubeProxy(spare, "legacy", service, pods)
    write = kube_proxy.write_iptables_mode if left == "iptables" else kube_proxy.write_ipvs_mode
    file = File(tmp_path / "config.conf", spare)
    file.set_own(ipvs={"gracefulPeriod": "1h"})
    choose(file, "ipvs/legacy")
    write()
    with watched(spare, service) as traffic:
        # "Move one node", straight to IPVS mode.
        program = run_kproxy(spare, file)
        traffic.check()
        assert [name for name in ipvs_remains(spare) if name.startswith("KUBE-")] == []
        since = program.mark()
        choose(file, "nftables/legacy")
        assert "mode=nftables" in program.wait_log("mode_unavailable", since=since)
        traffic.check()
        go_through(spare, program, file, ["iptables/legacy", "ipvs/legacy"], traffic)
        refuse_beside(spare, program)
        traffic.check()
        # "The way back", through iptables mode, which interrupts nothing.
        go_through(spare, program, file, ["iptables/legacy"], traffic)
        assert program.end(signal.SIGTERM) == 0
        traffic.check()
        kube_proxy.write_iptables_mode()
        traffic.check()
        assert spare.ask(lab.client, service.ip(4), 80).pods == names(pods)
    # Another round, and back from IPVS mode: the rules go with kproxy; connections through IPVS end.
    choose(file, "ipvs/legacy")
    if left == "iptables":
        file.set_own(cleanupOnExit=True)
        choose(file, "ipvs/legacy")
    with Traffic(lab, targets(spare, service)) as requests:
        program = run_kproxy(spare, file)
        if left == "ipvs":
            node.run([*KPROXY, "cleanup", "--on-exit"])
        requests.flow()
    assert requests.failures == []
    assert program.end(signal.SIGTERM) == 0
    assert remains(spare, but="none") + ipvs_remains(spare) == []
    write()
    with Traffic(lab, targets(spare, service)) as requests:
        requests.flow()
    assert requests.failures == []
    for family in FAMILIES:
        assert spare.ask(lab.client, service.ip(family), 80).pods == names(pods)
    node.run([*KPROXY, "cleanup"])
    assert remains(spare, but="none") + ipvs_remains(spare) == []
