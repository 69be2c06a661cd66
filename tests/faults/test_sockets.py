"""Netlink refuses requests or loses replies: the outcome is unknown and must be read from the kernel."""

import itertools
import os
import signal

import pytest

from tests.faults.bench import FaultBench
from tests.faults.selection import LONG, cases, modes
from tests.packets.modes import Capability
from tests.support.faultinjection import NetlinkFault, Sandbox
from tests.support.faultinjection.sockets import GENERIC, NETFILTER, ROUTE

pytestmark = pytest.mark.root

MIN_FAULTS = 6
ALL = (ROUTE, NETFILTER, GENERIC)

NETLINK_FAULTS = {
    "answers lost at random (ENOBUFS)": (NetlinkFault.LOSE_REPLY, 0.3),
    "busy at random (EBUSY)": (NetlinkFault.BUSY, 0.3),
    "busy (EBUSY)": (NetlinkFault.BUSY, 1.0),
    "nothing can be sent (ENOBUFS)": (NetlinkFault.SEND_FAILS, 1.0),
}


@cases(
    "name",
    NETLINK_FAULTS,
    "nftables",
    {
        "nft": ("answers lost at random (ENOBUFS)", "busy (EBUSY)"),
    },
    never={"legacy"},  # legacy sends no netlink requests while it runs
)
def test_requests_that_fail(bench: FaultBench, name: str) -> None:
    fault, chance = NETLINK_FAULTS[name]
    program = bench.start(sandbox=Sandbox(tools=bench.tools.directory, sockets=bench.sockets.directory))
    before, looks = bench.sockets.injected[fault], itertools.count()

    def fault_seen() -> bool:
        if next(looks) % 5 == 0:
            bench.change()
        return bench.sockets.injected[fault] - before >= MIN_FAULTS

    with bench.inject(f"netlink: {name}") as case:
        bench.sockets.enable(fault, chance=chance, protocols=ALL)
        program.until(fault_seen, expected=True)
        bench.sockets.disable()
        case.times = bench.sockets.injected[fault] - before


@LONG
@modes("ipvs")
@pytest.mark.needs(Capability.VIRTUAL_SERVERS)
def test_events_of_lost_addresses_are_lost(bench: FaultBench) -> None:
    """While kproxy is stopped the device loses its addresses, and the socket overflows (ENOBUFS)."""
    program = bench.start("--ipvs-sync-period", "1h")
    node = bench.cluster.lab.node
    flood = ["address flush dev kube-ipvs0"] + [
        f"address {verb} 198.18.{n // 250}.{n % 250 + 1}/32 dev lo"
        for n in range(1000)
        for verb in ("add", "del")
    ]
    with bench.inject("netlink: ENOBUFS for news of the device", refuses=True, cuts=True):
        os.kill(program.pid, signal.SIGSTOP)
        node.run(["ip", "-batch", "-"], stdin="\n".join(flood) + "\n")
        bench.change()
        os.kill(program.pid, signal.SIGCONT)
