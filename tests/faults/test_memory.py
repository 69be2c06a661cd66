"""Faults that come back again and again leave nothing behind in memory."""

import pytest

from tests.faults.selection import modes
from tests.faults.site import Site, resident_mb
from tests.packets.modes import Capability
from tests.support.faultinjection import Deed, Loss, Room
from tests.support.faultinjection.sockets import NETFILTER

WARM_UP = 10
ROUNDS = 20
BOUND_MB = 2.0
"""What resident memory may grow by over all rounds: 100 KB each, and none of it is expected."""

pytestmark = pytest.mark.root


@modes("nft", "nftables")
def test_memory_is_flat(site: Site) -> None:
    program = site.start(room=Room(tools=site.tools.directory, sockets=site.sockets.directory))

    def one_round() -> None:
        since = program.mark()
        if Capability.NFTABLES in site.cluster.mode.capabilities:
            site.sockets.order(Loss.DEAF, chance=0.5, protocols=[NETFILTER])
        else:
            site.tools.order(Deed.HALF, chance=0.5, programs=site.cluster.mode.writer)
        site.cluster.iptables(4, "-t", "nat", "-N", "SOMEBODY-ELSE")
        site.cluster.iptables(4, "-t", "nat", "-X", "SOMEBODY-ELSE")
        site.change()
        site.tools.behave()
        site.sockets.behave()
        program.wait_log("synced", "family=IPv4", since=since)

    with site.ordeal("memory: writes fail, others write") as case:
        for _ in range(WARM_UP):
            one_round()
        before = resident_mb(program.pid)
        for _ in range(ROUNDS):
            one_round()
        after = resident_mb(program.pid)
        case.times = WARM_UP + ROUNDS
    assert after - before <= BOUND_MB
