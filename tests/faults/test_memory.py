"""Repeated faults do not make memory grow."""

import pytest

from tests.faults.bench import FaultBench, resident_mb
from tests.faults.selection import modes
from tests.packets.modes import Capability
from tests.support.faultinjection import NetlinkFault, Sandbox, ToolFault
from tests.support.faultinjection.sockets import NETFILTER

WARM_UP = 10
ROUNDS = 20
BOUND_MB = 2.0
"""Limit of the growth of resident memory over all rounds: 100 KB each; none is expected."""

pytestmark = pytest.mark.root


@modes("nft", "nftables")
def test_memory_is_flat(bench: FaultBench) -> None:
    program = bench.start(sandbox=Sandbox(tools=bench.tools.directory, sockets=bench.sockets.directory))

    def one_round() -> None:
        since = program.mark()
        if Capability.NFTABLES in bench.cluster.mode.capabilities:
            bench.sockets.enable(NetlinkFault.LOSE_REPLY, chance=0.5, protocols=[NETFILTER])
        else:
            bench.tools.enable(ToolFault.KILL_HALFWAY, chance=0.5, programs=bench.cluster.mode.writer)
        bench.cluster.iptables(4, "-t", "nat", "-N", "SOMEBODY-ELSE")
        bench.cluster.iptables(4, "-t", "nat", "-X", "SOMEBODY-ELSE")
        bench.change()
        bench.tools.disable()
        bench.sockets.disable()
        program.wait_log("synced", "family=IPv4", since=since)

    with bench.inject("memory: writes fail, others write") as case:
        for _ in range(WARM_UP):
            one_round()
        before = resident_mb(program.pid)
        for _ in range(ROUNDS):
            one_round()
        after = resident_mb(program.pid)
        case.times = WARM_UP + ROUNDS
    assert after - before <= BOUND_MB
