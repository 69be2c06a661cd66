"""Changes of the mode in the running program: no request fails, nothing is left, failures are rolled back."""

import json
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from kproxy_lab.lab.topology import NODE_IP4
from tests.packets.cluster import Cluster
from tests.packets.file import NOT_OF_KUBE_PROXY, File
from tests.packets.modes import Capability
from tests.packets.objects import FAMILIES, Service
from tests.packets.outcomes import Target, Traffic, names
from tests.packets.pages import get, scrape, status, value
from tests.packets.program import Kproxy
from tests.packets.socket_table import degraded, programs
from tests.packets.switching import choose, ipvs_remains, remains

pytestmark = pytest.mark.root


@pytest.fixture
def file(spare: Cluster, tmp_path: Path) -> File:
    spare.lab.node.run([sys.executable, "-m", "kproxy", "cleanup"])
    return File(tmp_path / "config.conf", spare)


def targets(cluster: Cluster, service: Service) -> list[Target]:
    client, pod = cluster.lab.client, cluster.lab.local_pods[2]
    found: list[Target] = [(client, NODE_IP4[0], service.node_port)]
    for family in FAMILIES:
        found += [(client, service.ip(family), 80), (pod, service.ip(family), 80)]
    return found


def go_through(cluster: Cluster, file: File, modes: list[str], then: Callable[[str], None]) -> None:
    """Start in the first mode and change to the others, with traffic and open connections."""
    lab = cluster.lab
    choose(file, modes[0])
    program = cluster.start("--config", str(file.path))
    service = cluster.publish(lab.local_pods[:2], type="NodePort")
    refused = cluster.publish([])
    with ExitStack() as stack:
        opened = [
            stack.enter_context(lab.hold(source, service.ip(family), 80))
            for source in (lab.client, lab.local_pods[2])
            for family in FAMILIES
        ]
        who = [held.exchange("who?").pod for held in opened]
        for number, mode in enumerate(modes[1:]):
            before, began = status(cluster), program.mark()
            with Traffic(lab, targets(cluster, service)) as traffic:
                choose(file, mode)
                program.wait_log("mode_switched", f"mode={mode}", since=began)
                traffic.flow()
                assert [held.exchange("still there?").pod for held in opened] == who
            assert traffic.failures == []
            planned = program.wait_log("mode_switch_planned", f"to={mode}", since=began)
            assert f"from={modes[number]} " in planned
            assert remains(cluster, but=mode) == []
            for family in FAMILIES:
                assert cluster.outcome(lab.client, refused.ip(family), 80) == "Refused"
                assert cluster.ask(lab.client, service.ip(family), 80, n=20).pods == names(lab.local_pods[:2])
            name = mode.partition("/")[0]
            assert get(cluster, "/proxyMode") == (200, name.encode())
            if name not in NOT_OF_KUBE_PROXY:
                assert json.loads(get(cluster, "/configz")[1])["kubeproxy.config.k8s.io"]["mode"] == name
            now = status(cluster)
            assert (now["mode"], now["since"], now["healthy"]) == (name, before["since"], True)
            then(mode)
            fresh = cluster.publish(lab.local_pods[:1])
            for family in FAMILIES:
                assert cluster.outcome(lab.client, fresh.ip(family), 80) == lab.local_pods[0].name
            cluster.delete(fresh)
    cluster.scale(service, lab.local_pods[1:2])
    assert cluster.ask(lab.client, service.ip(4), 80, n=5).pods == names(lab.local_pods[1:2])
    assert program.running


@pytest.mark.needs(Capability.NFTABLES)
def test_through_all_modes_of_netfilter_and_back(spare: Cluster, file: File) -> None:
    modes = ["iptables/nft", "nftables", "iptables/legacy", "iptables/nft", "iptables/legacy", "nftables"]
    go_through(spare, file, modes, lambda _: None)


@pytest.mark.needs(Capability.SOCKET_TABLE)
def test_to_sockets_from_each_mode_and_back(spare: Cluster, file: File) -> None:
    def look(mode: str) -> None:
        assert bool(programs(spare.lab)) == (mode == "ebpf")
        assert degraded(spare) == []

    modes = ["nftables", "ebpf", "iptables/nft", "ebpf", "nftables", "iptables/legacy", "ebpf"]
    go_through(spare, file, modes, look)


@pytest.mark.slow
@pytest.mark.needs(Capability.VIRTUAL_SERVERS)
def test_from_virtual_servers_to_rules_and_back(spare: Cluster, file: File) -> None:
    def look(mode: str) -> None:
        if mode.startswith("ipvs"):
            assert ipvs_remains(spare)

    go_through(spare, file, ["iptables/legacy", "ipvs/legacy", "iptables/legacy", "ipvs/legacy"], look)
    file.set_own(ipvs={"gracefulPeriod": "3s"}, iptables={"variant": "legacy"})
    file.set(mode="iptables")
    spare.running.until(lambda: len(ipvs_remains(spare)), 0)


def regarding(cluster: Cluster, reason: str) -> set[str]:
    """The kinds of objects at which Events stand for a reason."""
    events = cluster.api.list("Event.events.k8s.io")
    return {event["regarding"]["kind"] for event in events if event["reason"] == reason}


def take_the_name_of_a_chain(cluster: Cluster) -> None:
    """Make POSTROUTING of ip6 nat a chain without a hook: what iptables-nft writes there is refused."""
    cluster.lab.node.run(
        ["nft", "add table ip6 nat; delete table ip6 nat; add table ip6 nat; add chain ip6 nat POSTROUTING"]
    )


@pytest.mark.needs(Capability.NFTABLES)
def test_what_fails_is_rolled_back_and_tried_again_when_asked(spare: Cluster, file: File) -> None:
    lab = spare.lab
    choose(file, "nftables")
    program = spare.start("--config", str(file.path))
    service = spare.publish(lab.local_pods[:2], type="NodePort")
    take_the_name_of_a_chain(spare)
    try:
        with (
            lab.hold(lab.client, service.ip(4), 80) as held,
            Traffic(lab, targets(spare, service)) as traffic,
        ):
            who = held.exchange("who?").pod
            choose(file, "iptables/nft")
            line = program.wait_log("mode_switch_failed", "IPv6")
            assert "nftables stays" in line
            program.wait_log("mode_switch_rolled_back")
            traffic.flow()
            assert held.exchange("still there?").pod == who
        assert traffic.failures == []
        assert remains(spare, but="nftables") == []
        assert get(spare, "/proxyMode") == (200, b"nftables")
        assert json.loads(get(spare, "/configz")[1])["kubeproxy.config.k8s.io"]["mode"] == "nftables"
        refused = status(spare)["refusedMode"]
        assert (refused["mode"], refused["kept"]) == ("iptables/nft", "nftables")
        assert "IPv6" in refused["reason"]
        assert value(scrape(spare), "kproxy_mode_refused") == 1
        assert value(scrape(spare), "kproxy_mode_switches_total", outcome="failed") == 1
        program.until(lambda: regarding(spare, "ProxyModeRefused"), {"Node"})
    finally:
        lab.node.run(["nft", "delete table ip6 nat"])
    added = spare.publish(lab.local_pods[:1])
    assert spare.outcome(lab.client, added.ip(6), 80) == lab.local_pods[0].name
    program.send(signal.SIGHUP)
    program.wait_log("mode_switched")
    assert status(spare)["refusedMode"] is None
    assert value(scrape(spare), "kproxy_mode_refused") == 0
    assert value(scrape(spare), "kproxy_mode_switches_total", outcome="done") == 1
    assert remains(spare, but="iptables/nft") == []
    for family in FAMILIES:
        assert spare.ask(lab.client, service.ip(family), 80, n=20).pods == names(lab.local_pods[:2])


@pytest.mark.needs(Capability.NFTABLES)
def test_a_mode_that_this_kernel_lacks_is_named_and_the_rest_of_the_file_counts(
    spare: Cluster, file: File
) -> None:
    lab = spare.lab
    choose(file, "nftables")
    program: Kproxy = spare.start("--config", str(file.path))
    asker, pod = lab.pods[:2]
    service = spare.publish([pod])
    if lab.node.run(["ipvsadm", "-Ln"], check=False).returncode == 0:
        pytest.skip("this kernel has IPVS")
    file.set(mode="ipvs", nftables={"masqueradeAll": True})
    assert "nftables stays" in program.wait_log("mode_unavailable", "mode=ipvs")
    for family in FAMILIES:
        hidden = spare.as_node([pod], family)
        program.until(
            lambda family=family: spare.ask(asker, service.ip(family), 80, n=3).sources,  # type: ignore[misc]
            hidden,
        )
    assert get(spare, "/proxyMode") == (200, b"nftables")
