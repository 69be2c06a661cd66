"""The programs that write rules fail: no change is lost, and services without a fault are served."""

import fcntl
import itertools
from collections.abc import Callable

import pytest

from kproxy.kernel.xtables.lock import lock_file_in_use
from tests.faults.bench import FaultBench
from tests.faults.selection import cases, modes
from tests.packets.modes import Capability
from tests.support.faultinjection import ToolFault

pytestmark = pytest.mark.root

MIN_FAULTS = 4


def injected(bench: FaultBench, fault: ToolFault, times: int) -> Callable[[], bool]:
    """Return a function: whether `fault` was injected `times` times since this call."""
    before = bench.tools.injected[fault]
    return lambda: bench.tools.injected[fault] - before >= times


def rule_changes(bench: FaultBench) -> Callable[[], str]:
    """Return a function that changes services so that rules must be written; it returns a changed service.

    In IPVS mode endpoints are written by netlink; rules contain only those of services with the external
    traffic policy Local.
    """
    if Capability.VIRTUAL_SERVERS not in bench.cluster.mode.capabilities:

        def change() -> str:
            bench.change()
            return bench.shop.key

        return change
    local = bench.cluster.service("local", type="NodePort", externalTrafficPolicy="Local")
    turns = itertools.cycle(bench.cluster.lab.local_pods[:3])

    def change_local() -> str:
        bench.change()
        bench.cluster.slices(local, [next(turns)])
        return local.key

    change_local()
    return change_local


TOOL_FAULTS = {
    "fails at random": (ToolFault.FAIL, 0.5),
    "killed half-way at random": (ToolFault.KILL_HALFWAY, 0.5),
    "killed after its commit": (ToolFault.KILL_AFTER, 1.0),
    "and save killed at random": (ToolFault.KILL_HALFWAY, 0.7),
}


@cases(
    "name",
    TOOL_FAULTS,
    "nft",
    {"legacy": tuple(TOOL_FAULTS)},
    never={"nftables"},  # nftables mode runs no program
)
def test_programs_that_fail(bench: FaultBench, name: str) -> None:
    program = bench.start()
    fault, chance = TOOL_FAULTS[name]
    programs = "" if "save" in name else bench.cluster.mode.writer
    enough = injected(bench, fault, MIN_FAULTS)
    looks, change = itertools.count(), rule_changes(bench)

    def fault_seen() -> bool:
        if next(looks) % 5 == 0:
            change()
        return enough()

    with bench.inject(f"tools: {bench.cluster.mode.writer} {name}") as case:
        bench.tools.enable(fault, chance=chance, programs=programs)
        program.until(fault_seen, expected=True)
        bench.tools.disable()
        case.times = bench.tools.injected[fault]


@modes("nft", "legacy", never={"nftables"})
def test_program_missing_for_a_while(bench: FaultBench) -> None:
    program, writer = bench.start(), bench.cluster.mode.writer
    change = rule_changes(bench)
    bench.cluster.settle()
    with bench.inject(f"tools: {writer} missing"):
        since = program.mark()
        bench.tools.uninstall(writer)
        change()
        assert "cannot run" in program.wait_log("sync_failed", "missing", "family=IPv4", since=since)
        program.wait_log("sync_failed", "missing", "family=IPv6", since=since)
        bench.change()
        bench.tools.install()


@modes("nft", "legacy", never={"nftables"})
def test_one_service_refused(bench: FaultBench) -> None:
    program = bench.start()
    lab, mode = bench.cluster.lab, bench.cluster.mode
    change = rule_changes(bench)
    bench.cluster.settle()
    with bench.inject("tools: one service refused") as case:
        enough = injected(bench, ToolFault.REFUSE, MIN_FAULTS)
        since = program.mark()
        victim = change()
        bench.tools.enable(ToolFault.REFUSE, programs=mode.writer, words=[victim])
        change()
        for family in ("IPv4", "IPv6"):
            assert victim in program.wait_log("service_quarantined", f"family={family}", since=since)
        other = bench.cluster.publish([lab.local_pods[0]])
        assert bench.cluster.outcome(lab.client, other.ip(4), 80) == lab.local_pods[0].name
        program.until(enough, expected=True)
        refused = [line for line in program.log[since:] if "event=service_quarantined" in line]
        assert {victim in line for line in refused} == {True}
        bench.tools.disable()
        case.times = bench.tools.injected[ToolFault.REFUSE]


@modes("nft", "legacy", never={"nftables"})
def test_program_hangs(bench: FaultBench) -> None:
    program, writer = bench.start(), bench.cluster.mode.writer
    with bench.inject(f"tools: {writer} hangs"):
        enough, change = injected(bench, ToolFault.HANG, 1), rule_changes(bench)
        bench.cluster.settle()
        bench.tools.enable(ToolFault.HANG, programs=writer)
        change()
        program.until(enough, expected=True)
        change()
        bench.tools.disable()


@modes("nftables", never={"nft", "legacy", "scalable", "ipvs"})
@pytest.mark.needs(Capability.NFTABLES)
def test_nft_hangs_or_is_missing_and_nothing_runs_it(bench: FaultBench) -> None:
    bench.start()
    hung = bench.tools.injected[ToolFault.HANG]
    with bench.inject("tools: nft hangs, then is missing"):
        bench.tools.enable(ToolFault.HANG, programs="nft")
        bench.change()
        bench.cluster.settle()
        bench.tools.uninstall("nft")
        bench.change()
        bench.cluster.settle()
        bench.tools.disable()
        bench.tools.install()
    assert bench.tools.injected[ToolFault.HANG] == hung


@modes("legacy")
@pytest.mark.needs(Capability.XTABLES_LOCK)
def test_lock_held(bench: FaultBench) -> None:
    program = bench.start()
    with bench.inject("tools: xtables lock held"), lock_file_in_use().open("w") as lock:
        since = program.mark()
        fcntl.flock(lock, fcntl.LOCK_EX)
        bench.change()
        assert "lock" in program.wait_log("sync_failed", "xtables", since=since)
