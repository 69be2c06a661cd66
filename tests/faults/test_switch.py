"""kproxy is killed during a change of modes; the next process completes the change or goes back.

The program that removes the old mode's rules, or that writes the new mode's, hangs, so the rules of both
modes exist. Then kproxy and its children are killed.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.faults.bench import Counts, FaultBench
from tests.faults.selection import EVERYTHING, LONG, modes
from tests.faults.traffic_monitor import TrafficMonitor
from tests.packets.cluster import Cluster
from tests.packets.file import File
from tests.packets.modes import Capability
from tests.packets.objects import FAMILIES
from tests.packets.program import Kproxy
from tests.packets.switching import choose, ipvs_remains, remains
from tests.support.faultinjection import ToolFault

pytestmark = pytest.mark.root


@dataclass(frozen=True, slots=True)
class Switch:
    """A change of modes; the run of `programs` whose input contains `word` hangs.

    That run removes the old mode's rules. An nftables table is removed without a program; then it is the run
    that writes the new rules.
    """

    before: str
    after: str
    programs: str
    word: str

    def __str__(self) -> str:
        return f"{self.before} to {self.after}"


NETFILTER = (
    Switch("iptables/nft", "nftables", "nft-restore", "-X KUBE-"),
    Switch("nftables", "iptables/nft", "nft-restore", "-A KUBE-SVC-"),
    Switch("iptables/legacy", "nftables", "legacy-restore", "-X KUBE-"),
    Switch("nftables", "iptables/legacy", "legacy-restore", "-A KUBE-SVC-"),
    Switch("iptables/nft", "iptables/legacy", "nft-restore", "-X KUBE-"),
    Switch("iptables/legacy", "iptables/nft", "legacy-restore", "-X KUBE-"),
)
VIRTUAL = (
    Switch("iptables/legacy", "ipvs/legacy", "restore", "-X KUBE-"),
    Switch("ipvs/legacy", "iptables/legacy", "restore", "-X KUBE-"),
)
WAYS = {"forward": True, "back": False}


@pytest.fixture
def file(bench: FaultBench, tmp_path: Path) -> Iterator[File]:
    cluster = bench.cluster
    cluster.stop()
    cleanup = [sys.executable, "-m", "kproxy", "cleanup"]
    cluster.lab.node.run(cleanup)
    yield File(tmp_path / "config.conf", cluster)
    bench.tools.disable()
    cluster.stop()
    cluster.lab.node.run(cleanup)


def kill_with_children(program: Kproxy) -> None:
    """Kill a program and its children with SIGKILL; stop it first, so that it cannot react."""
    os.kill(program.pid, signal.SIGSTOP)
    children = {
        int(child)
        for task in Path(f"/proc/{program.pid}/task").iterdir()
        for child in (task / "children").read_text(encoding="ascii").split()
    }
    for pid in (program.pid, *children):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert program.wait() == -signal.SIGKILL


def crash(bench: FaultBench, file: File, switch: Switch, *, forward: bool) -> None:
    lab = bench.cluster.lab
    choose(file, switch.before)
    program = bench.start("--config", str(file.path))
    fault = f"switch: SIGKILL half-way, {switch}, then " + ("on" if forward else "back")
    monitor = TrafficMonitor(lab, bench.targets, bench.ever)
    hung = bench.tools.injected[ToolFault.HANG]
    with monitor:
        bench.tools.enable(ToolFault.HANG, programs=switch.programs, words=[switch.word])
        choose(file, switch.after)
        program.until(lambda: bench.tools.injected[ToolFault.HANG] > hung, expected=True)
        monitor.flow()
        old = ipvs_remains if "ipvs" in switch.before else partial(remains, but=switch.after)
        new = ipvs_remains if "ipvs" in switch.after else partial(remains, but=switch.before)
        assert old(bench.cluster), "the old mode's rules are already removed"
        assert new(bench.cluster), "the new mode has no rules yet"
        kill_with_children(program)
        bench.tools.disable()
        final = switch.after if forward else switch.before
        choose(file, final)
        bench.change()
        again = bench.start_again()
        again.until(lambda: len(remains(bench.cluster, but=final)), 0)
        bench.cluster.settle()
        monitor.allow(bench.now)
        monitor.flow()
    monitor.release()
    bench.counts.append(
        Counts(
            fault, str(bench.cluster.mode), "", 1, monitor.asked, len(monitor.failures), monitor.late,
            len(monitor.wrong), monitor.exchanged, len(monitor.cut), 0, 0.0, 0.0,
        )
    )  # fmt: skip
    assert (monitor.failures, monitor.wrong, monitor.cut) == ([], [], [])


@modes("nftables")
@pytest.mark.needs(Capability.NFTABLES)
@pytest.mark.parametrize("way", WAYS if EVERYTHING else ["forward"])
@pytest.mark.parametrize("switch", NETFILTER, ids=str)
def test_killed_between_two_modes_of_netfilter(
    bench: FaultBench, file: File, switch: Switch, way: str
) -> None:
    crash(bench, file, switch, forward=WAYS[way])


@LONG
@modes("ipvs")
@pytest.mark.timeout(900)
@pytest.mark.needs(Capability.VIRTUAL_SERVERS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("switch", VIRTUAL, ids=str)
def test_killed_between_virtual_servers_and_rules(
    bench: FaultBench, file: File, switch: Switch, way: str
) -> None:
    crash(bench, file, switch, forward=WAYS[way])
    if "ipvs" in (switch.after if WAYS[way] else switch.before):
        assert ipvs_remains(bench.cluster)


def loop_backs(cluster: Cluster) -> list[str]:
    """Return the rules that masquerade connections of a pod to itself through virtual servers."""
    dumps = [cluster.lab.node.run([f"ip{x}tables-legacy-save", "-t", "nat"]).stdout for x in ("", "6")]
    return [line for dump in dumps for line in dump.splitlines() if "LOOP-BACK" in line]


@modes("ipvs")
@pytest.mark.slow
@pytest.mark.needs(Capability.VIRTUAL_SERVERS)
def test_a_pod_reaches_itself_during_a_change_from_ipvs_to_iptables(bench: FaultBench, file: File) -> None:
    """The base rules exist and those of services do not: virtual servers translate and rules masquerade."""
    cluster, pod = bench.cluster, bench.cluster.lab.local_pods[2]
    choose(file, "ipvs/legacy")
    program = bench.start("--config", str(file.path))
    cluster.slices(bench.shop, [pod])
    cluster.settle()
    hung = bench.tools.injected[ToolFault.HANG]
    bench.tools.enable(ToolFault.HANG, words=["-A KUBE-SVC-"])
    choose(file, "iptables/legacy")
    program.until(lambda: bench.tools.injected[ToolFault.HANG] > hung, expected=True)
    assert loop_backs(cluster)
    for family in FAMILIES:
        assert cluster.outcome(pod, bench.shop.ip(family), 80) == pod.name
    kill_with_children(program)
    bench.tools.disable()
    again = bench.start_again()
    again.until(lambda: len(loop_backs(cluster)), 0)
    for family in FAMILIES:
        assert cluster.outcome(pod, bench.shop.ip(family), 80) == pod.name
