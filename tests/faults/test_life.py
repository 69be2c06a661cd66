"""kproxy is killed, stopped, started with another clock, on a full disk, without anybody to read its log."""

import itertools
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from kproxy_lab import uml
from kproxy_lab.lab.topology import UPLINK
from tests.faults.selection import IPVS, KILLS, LONG, modes
from tests.faults.site import Site
from tests.packets.objects import FAMILY_NAMES
from tests.support.faultinjection import BrokenClock, Room

pytestmark = pytest.mark.root

CHEAP_KILLS = {"ipvs": 4}
"""In the user-mode kernel a start takes seconds."""
JUMPS = (5, -11, 30)
"""Hours by which the wall clock is set on."""

CLOCKS = {"ten years ahead": 10 * 365 * 86400, "as it is": 0, "just booted": None}
"""Seconds by which a restart finds the monotonic clock ahead; None: it is at 0."""

LONGEST_LIFE = {"ipvs": 8.0}
"""Seconds, else 1.2: from before the first sync until long after it."""


@modes("nft", "legacy", "nftables", *(["ipvs"] if KILLS else []))
@pytest.mark.timeout(300 + 20 * KILLS)
def test_killed_at_random_moments(site: Site) -> None:
    program = site.start()
    chance = random.Random(9)
    died = threading.Event()
    with site.ordeal("life: SIGKILL at random moments") as case:
        longest = LONGEST_LIFE.get(str(site.cluster.mode), 1.2)
        case.times = KILLS or CHEAP_KILLS.get(str(site.cluster.mode), 20)
        for _ in range(case.times):
            killer = threading.Timer(chance.uniform(0, longest), os.kill, (program.pid, signal.SIGKILL))
            killer.start()
            while program.running:
                site.change()
                died.wait(0.005)
            assert program.wait() == -signal.SIGKILL
            program = site.start_again()
        case.over(program)


@modes("nft", "nftables")
def test_stopped_and_continued(site: Site) -> None:
    """To the program, that is a clock that jumps ahead."""
    program = site.start()
    with site.ordeal("life: SIGSTOP, SIGCONT") as case:
        case.times = 3
        for _ in range(case.times):
            os.kill(program.pid, signal.SIGSTOP)
            site.change()
            threading.Event().wait(1)
            site.change()
            os.kill(program.pid, signal.SIGCONT)


@modes("nft")
@pytest.mark.parametrize("now", CLOCKS)
def test_another_monotonic_clock(site: Site, now: str) -> None:
    """A restart in a time namespace: as after a suspend of years, or in the first second after a boot."""
    if not Path("/proc/self/ns/time").exists():
        pytest.skip("this kernel has no time namespaces")
    uptime = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    ahead = CLOCKS[now]
    clock = -int(uptime) if ahead is None else ahead
    program = site.start()
    with site.ordeal(f"life: restart with the clock {now}") as case:
        program.end()
        site.change()
        again = site.start(room=Room(tools=site.tools.directory, clock=clock))
        site.change()
        case.over(again)


@modes("nft", "nftables")
def test_wall_clock_jumps(site: Site, tmp_path: Path) -> None:
    """Hours ahead, hours back; only what the program reads of the clock, for the clock is everybody's."""
    clock = BrokenClock(tmp_path / "clock")
    program = site.start(room=Room(tools=site.tools.directory, wall=clock.directory))
    with site.ordeal("life: wall clock jumps") as case:
        case.times = len(JUMPS)
        for hours in itertools.accumulate(JUMPS):
            clock.set(hours * 3600.0)
            for cut in (False, True):
                if cut:
                    site.cluster.api.drop_watches()
                since = program.mark()
                site.change()
                program.wait_log("synced", f"family={FAMILY_NAMES[6]}", since=since)


@LONG
@pytest.mark.parametrize("mode", [pytest.param(*IPVS.values, marks=IPVS.marks, id="ipvs")], indirect=True)
def test_wall_clock_set(site: Site) -> None:
    """The same with the clock itself, and right again; in a kernel of its own, which is nobody else's."""
    if not uml.inside():
        pytest.skip("the clock is that of this machine")
    program = site.start()
    began, steady = time.time(), time.monotonic()
    with site.ordeal("life: wall clock set") as case:
        case.times = len(JUMPS)
        try:
            for hours in JUMPS:
                time.clock_settime(time.CLOCK_REALTIME, time.time() + hours * 3600)
                site.change()
                site.cluster.api.drop_watches()
                since = program.mark()
                site.change()
                program.wait_log("synced", since=since)
        finally:
            time.clock_settime(time.CLOCK_REALTIME, began + time.monotonic() - steady)


@modes("nft", "legacy", "nftables")
@pytest.mark.parametrize("device", [False, True], ids=["disk", "disk and stderr"])
def test_full_disk(site: Site, tmp_path: Path, *, device: bool) -> None:
    room = Room(tools=site.tools.directory, full=tmp_path, stderr=Path("/dev/full") if device else None)
    program = site.start(room=room)
    with site.ordeal("life: disk full" + (", stderr too" if device else "")) as case:
        for _ in range(5):
            site.change()
        site.cluster.settle()
        case.times = 5
    assert program.log == [] or not device


@modes("nft", "nftables")
def test_stderr_closed(site: Site) -> None:
    """The number of the closed descriptor must not become that of a socket to which log lines go."""
    program = site.start(room=Room(tools=site.tools.directory, mute=True))
    with site.ordeal("life: stderr closed") as case:
        case.times = 5
        for _ in range(case.times):
            site.change()
        since = program.mark()
        site.cluster.api.drop_watches()
        site.change()
    assert program.log[since:] == []


@modes("nft")
def test_nobody_reads_the_log(site: Site) -> None:
    program = site.start()
    with site.ordeal("life: log's reader gone"):
        program.close_log()
        for _ in range(5):
            site.change()
    site.cluster.stop()


@modes("nft", never={"nftables"})  # which is given addresses for node ports in every test
def test_events_of_addresses_are_lost(site: Site) -> None:
    """While kproxy is stopped, more addresses come and go than its socket can hold (ENOBUFS)."""
    site.cluster.stop()
    site.cluster.lab.node.run([sys.executable, "-m", "kproxy", "cleanup"])
    program = site.start("--nodeport-addresses", "192.168.100.10/32,198.51.100.0/24,fd00:192:168:100::10/128")
    lab, link = site.cluster.lab, UPLINK
    flood = [
        f"address {verb} 198.18.{n // 250}.{n % 250 + 1}/32 dev {link}"
        for n in range(1000)
        for verb in ("add", "del")
    ]
    flood.append(f"address add 198.51.100.7/32 dev {link}")
    with site.ordeal("netlink: ENOBUFS for address events") as case:
        case.times = len(flood)
        os.kill(program.pid, signal.SIGSTOP)
        lab.node.run(["ip", "-batch", "-"], stdin="\n".join(flood) + "\n")
        lost = drops(program.pid)
        site.change()
        os.kill(program.pid, signal.SIGCONT)
        program.until(
            lambda: site.cluster.outcome(lab.node, "198.51.100.7", site.web.node_port) in site.ever["web"],
            expected=True,
        )
    assert lost > 0
    lab.node.run(["ip", "address", "del", "198.51.100.7/32", "dev", link])


def drops(pid: int) -> int:
    """Datagrams that the netlink sockets of a process' namespace were sent in vain (/proc/net/netlink)."""
    lines = Path(f"/proc/{pid}/net/netlink").read_text(encoding="ascii").splitlines()
    column = lines[0].split().index("Drops")
    return sum(int(line.split()[column]) for line in lines[1:])
