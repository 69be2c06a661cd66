"""kproxy is killed in the middle of a change of modes: whoever starts next finishes it, or goes back.

A program hangs that would take the old mode's rules away, or write the rest of the new one's, so there are
rules of both; then everything dies.
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

from tests.faults.selection import EVERYTHING, LONG, modes
from tests.faults.site import Counts, Site
from tests.faults.vigil import Vigil
from tests.packets.cluster import Cluster
from tests.packets.file import File
from tests.packets.modes import Capability
from tests.packets.objects import FAMILIES
from tests.packets.program import Kproxy
from tests.packets.switching import choose, ipvs_remains, remains
from tests.support.faultinjection import Deed

pytestmark = pytest.mark.root


@dataclass(frozen=True, slots=True)
class Switch:
    """From one mode to another; the one of `programs` hangs whose input has `word` in it.

    It takes the old mode away; of a table, which goes without a program, it writes what is new.
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
def file(site: Site, tmp_path: Path) -> Iterator[File]:
    cluster = site.cluster
    cluster.stop()
    cleanup = [sys.executable, "-m", "kproxy", "cleanup"]
    cluster.lab.node.run(cleanup)
    yield File(tmp_path / "config.conf", cluster)
    site.tools.behave()
    cluster.stop()
    cluster.lab.node.run(cleanup)


def kill_with_children(program: Kproxy) -> None:
    """End a program and everything that it runs, without a chance to do anything about it."""
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


def crash(site: Site, file: File, switch: Switch, *, forward: bool) -> None:
    lab = site.cluster.lab
    choose(file, switch.before)
    program = site.start("--config", str(file.path))
    fault = f"switch: SIGKILL half-way, {switch}, then " + ("on" if forward else "back")
    vigil = Vigil(lab, site.doors, site.ever)
    hung = site.tools.done[Deed.HANG]
    with vigil:
        site.tools.order(Deed.HANG, programs=switch.programs, words=[switch.word])
        choose(file, switch.after)
        program.until(lambda: site.tools.done[Deed.HANG] > hung, expected=True)
        vigil.flow()
        old = ipvs_remains if "ipvs" in switch.before else partial(remains, but=switch.after)
        new = ipvs_remains if "ipvs" in switch.after else partial(remains, but=switch.before)
        assert old(site.cluster), "the old mode is gone already"
        assert new(site.cluster), "the new mode is not there yet"
        kill_with_children(program)
        site.tools.behave()
        final = switch.after if forward else switch.before
        choose(file, final)
        site.change()
        again = site.start_again()
        again.until(lambda: len(remains(site.cluster, but=final)), 0)
        site.cluster.settle()
        vigil.allow(site.now)
        vigil.flow()
    vigil.release()
    site.counts.append(
        Counts(
            fault, str(site.cluster.mode), "", 1, vigil.asked, len(vigil.failures), vigil.late,
            len(vigil.wrong), vigil.exchanged, len(vigil.cut), 0, 0.0, 0.0,
        )
    )  # fmt: skip
    assert (vigil.failures, vigil.wrong, vigil.cut) == ([], [], [])


@modes("nftables")
@pytest.mark.needs(Capability.NFTABLES)
@pytest.mark.parametrize("way", WAYS if EVERYTHING else ["forward"])
@pytest.mark.parametrize("switch", NETFILTER, ids=str)
def test_killed_between_two_modes_of_netfilter(site: Site, file: File, switch: Switch, way: str) -> None:
    crash(site, file, switch, forward=WAYS[way])


@LONG
@modes("ipvs")
@pytest.mark.timeout(900)
@pytest.mark.needs(Capability.VIRTUAL_SERVERS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("switch", VIRTUAL, ids=str)
def test_killed_between_virtual_servers_and_rules(site: Site, file: File, switch: Switch, way: str) -> None:
    crash(site, file, switch, forward=WAYS[way])
    if "ipvs" in (switch.after if WAYS[way] else switch.before):
        assert ipvs_remains(site.cluster)


def loop_backs(cluster: Cluster) -> list[str]:
    """The rules that masquerade a pod which virtual servers lead to itself."""
    dumps = [cluster.lab.node.run([f"ip{x}tables-legacy-save", "-t", "nat"]).stdout for x in ("", "6")]
    return [line for dump in dumps for line in dump.splitlines() if "LOOP-BACK" in line]


@modes("ipvs")
@pytest.mark.slow
@pytest.mark.needs(Capability.VIRTUAL_SERVERS)
def test_a_pod_reaches_itself_while_virtual_servers_give_way_to_rules(site: Site, file: File) -> None:
    """The first rules stand and those of services do not: virtual servers translate, and rules masquerade."""
    cluster, pod = site.cluster, site.cluster.lab.local_pods[2]
    choose(file, "ipvs/legacy")
    program = site.start("--config", str(file.path))
    cluster.slices(site.shop, [pod])
    cluster.settle()
    hung = site.tools.done[Deed.HANG]
    site.tools.order(Deed.HANG, words=["-A KUBE-SVC-"])
    choose(file, "iptables/legacy")
    program.until(lambda: site.tools.done[Deed.HANG] > hung, expected=True)
    assert loop_backs(cluster)
    for family in FAMILIES:
        assert cluster.outcome(pod, site.shop.ip(family), 80) == pod.name
    kill_with_children(program)
    site.tools.behave()
    again = site.start_again()
    again.until(lambda: len(loop_backs(cluster)), 0)
    for family in FAMILIES:
        assert cluster.outcome(pod, site.shop.ip(family), 80) == pod.name
