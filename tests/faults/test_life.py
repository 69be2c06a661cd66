"""kproxy is killed, stopped, started with another clock, on a full disk, or without a reader of its log."""

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
from tests.faults.bench import FaultBench
from tests.faults.selection import IPVS, KILLS, LONG, modes
from tests.packets.objects import FAMILY_NAMES
from tests.support.faultinjection import BrokenClock, Sandbox

pytestmark = pytest.mark.root

CHEAP_KILLS = {"ipvs": 4}
"""Kills by mode; in the user-mode kernel a start takes seconds."""
JUMPS = (5, -11, 30)
"""Hours by which the wall clock is set forward."""

CLOCKS = {"ten years ahead": 10 * 365 * 86400, "as it is": 0, "just booted": None}
"""Seconds by which the monotonic clock is ahead at a restart; None: it is at 0."""

LONGEST_LIFE = {"ipvs": 8.0}
"""Longest life in seconds by mode, 1.2 in others: from before the first sync until long after it."""


@modes("nft", "legacy", "nftables", *(["ipvs"] if KILLS else []))
@pytest.mark.timeout(300 + 20 * KILLS)
def test_killed_at_random_moments(bench: FaultBench) -> None:
    program = bench.start()
    chance = random.Random(9)
    died = threading.Event()
    with bench.inject("life: SIGKILL at random moments") as case:
        longest = LONGEST_LIFE.get(str(bench.cluster.mode), 1.2)
        case.times = KILLS or CHEAP_KILLS.get(str(bench.cluster.mode), 20)
        for _ in range(case.times):
            killer = threading.Timer(chance.uniform(0, longest), os.kill, (program.pid, signal.SIGKILL))
            killer.start()
            while program.running:
                bench.change()
                died.wait(0.005)
            assert program.wait() == -signal.SIGKILL
            program = bench.start_again()
        case.over(program)


@modes("nft", "nftables")
def test_stopped_and_continued(bench: FaultBench) -> None:
    """The program sees a clock that jumps ahead."""
    program = bench.start()
    with bench.inject("life: SIGSTOP, SIGCONT") as case:
        case.times = 3
        for _ in range(case.times):
            os.kill(program.pid, signal.SIGSTOP)
            bench.change()
            threading.Event().wait(1)
            bench.change()
            os.kill(program.pid, signal.SIGCONT)


@modes("nft")
@pytest.mark.parametrize("now", CLOCKS)
def test_another_monotonic_clock(bench: FaultBench, now: str) -> None:
    """A restart in a time namespace: as after a suspend of years, or in the first second after a boot."""
    if not Path("/proc/self/ns/time").exists():
        pytest.skip("this kernel has no time namespaces")
    uptime = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    ahead = CLOCKS[now]
    clock = -int(uptime) if ahead is None else ahead
    program = bench.start()
    with bench.inject(f"life: restart with the clock {now}") as case:
        program.end()
        bench.change()
        again = bench.start(sandbox=Sandbox(tools=bench.tools.directory, clock=clock))
        bench.change()
        case.over(again)


@modes("nft", "nftables")
def test_wall_clock_jumps(bench: FaultBench, tmp_path: Path) -> None:
    """Hours ahead, hours back; only time.time() of the program, because the machine's clock is shared."""
    clock = BrokenClock(tmp_path / "clock")
    program = bench.start(sandbox=Sandbox(tools=bench.tools.directory, wall_clock=clock.directory))
    with bench.inject("life: wall clock jumps") as case:
        case.times = len(JUMPS)
        for hours in itertools.accumulate(JUMPS):
            clock.set(hours * 3600.0)
            for cut in (False, True):
                if cut:
                    bench.cluster.api.drop_watches()
                since = program.mark()
                bench.change()
                program.wait_log("synced", f"family={FAMILY_NAMES[6]}", since=since)


@LONG
@pytest.mark.parametrize("mode", [pytest.param(*IPVS.values, marks=IPVS.marks, id="ipvs")], indirect=True)
def test_wall_clock_set(bench: FaultBench) -> None:
    """The same with the kernel's clock, which is reset afterwards; in a kernel of its own."""
    if not uml.inside():
        pytest.skip("the clock is that of this machine")
    program = bench.start()
    began, steady = time.time(), time.monotonic()
    with bench.inject("life: wall clock set") as case:
        case.times = len(JUMPS)
        try:
            for hours in JUMPS:
                time.clock_settime(time.CLOCK_REALTIME, time.time() + hours * 3600)
                bench.change()
                bench.cluster.api.drop_watches()
                since = program.mark()
                bench.change()
                program.wait_log("synced", since=since)
        finally:
            time.clock_settime(time.CLOCK_REALTIME, began + time.monotonic() - steady)


@modes("nft", "legacy", "nftables")
@pytest.mark.parametrize("device", [False, True], ids=["disk", "disk and stderr"])
def test_full_disk(bench: FaultBench, tmp_path: Path, *, device: bool) -> None:
    sandbox = Sandbox(
        tools=bench.tools.directory, full=tmp_path, stderr=Path("/dev/full") if device else None
    )
    program = bench.start(sandbox=sandbox)
    with bench.inject("life: disk full" + (", stderr too" if device else "")) as case:
        for _ in range(5):
            bench.change()
        bench.cluster.settle()
        case.times = 5
    assert program.log == [] or not device


@modes("nft", "nftables")
def test_stderr_closed(bench: FaultBench) -> None:
    """A socket that gets the number of the closed descriptor must not receive log lines."""
    program = bench.start(sandbox=Sandbox(tools=bench.tools.directory, mute=True))
    with bench.inject("life: stderr closed") as case:
        case.times = 5
        for _ in range(case.times):
            bench.change()
        since = program.mark()
        bench.cluster.api.drop_watches()
        bench.change()
    assert program.log[since:] == []


@modes("nft")
def test_log_reader_is_gone(bench: FaultBench) -> None:
    program = bench.start()
    with bench.inject("life: log's reader gone"):
        program.close_log()
        for _ in range(5):
            bench.change()
    bench.cluster.stop()


@modes("nft", never={"nftables"})  # nftables tests always set node-port addresses
def test_events_of_addresses_are_lost(bench: FaultBench) -> None:
    """While kproxy is stopped, more address events arrive than its socket can hold (ENOBUFS)."""
    bench.cluster.stop()
    bench.cluster.lab.node.run([sys.executable, "-m", "kproxy", "cleanup"])
    program = bench.start(
        "--nodeport-addresses", "192.168.100.10/32,198.51.100.0/24,fd00:192:168:100::10/128"
    )
    lab, link = bench.cluster.lab, UPLINK
    flood = [
        f"address {verb} 198.18.{n // 250}.{n % 250 + 1}/32 dev {link}"
        for n in range(1000)
        for verb in ("add", "del")
    ]
    flood.append(f"address add 198.51.100.7/32 dev {link}")
    with bench.inject("netlink: ENOBUFS for address events") as case:
        case.times = len(flood)
        os.kill(program.pid, signal.SIGSTOP)
        lab.node.run(["ip", "-batch", "-"], stdin="\n".join(flood) + "\n")
        lost = drops(program.pid)
        bench.change()
        os.kill(program.pid, signal.SIGCONT)
        program.until(
            lambda: bench.cluster.outcome(lab.node, "198.51.100.7", bench.web.node_port) in bench.ever["web"],
            expected=True,
        )
    assert lost > 0
    lab.node.run(["ip", "address", "del", "198.51.100.7/32", "dev", link])


def drops(pid: int) -> int:
    """Return the datagrams dropped by the netlink sockets of a process's namespace (/proc/net/netlink)."""
    lines = Path(f"/proc/{pid}/net/netlink").read_text(encoding="ascii").splitlines()
    column = lines[0].split().index("Drops")
    return sum(int(line.split()[column]) for line in lines[1:])
