"""Netlink says no, or says nothing: what became of a request is not known, and has to be looked at."""

import itertools
import os
import signal

import pytest

from tests.faults.selection import LONG, cases, modes
from tests.faults.site import Site
from tests.packets.modes import Capability
from tests.support.faultinjection import Loss, Room
from tests.support.faultinjection.sockets import GENERIC, NETFILTER, ROUTE

pytestmark = pytest.mark.root

STRIKES = 6
ALL = (ROUTE, NETFILTER, GENERIC)

LOSSES = {
    "answers lost at random (ENOBUFS)": (Loss.DEAF, 0.3),
    "busy at random (EBUSY)": (Loss.BUSY, 0.3),
    "busy (EBUSY)": (Loss.BUSY, 1.0),
    "nothing can be sent (ENOBUFS)": (Loss.FULL, 1.0),
}


@cases(
    "name",
    LOSSES,
    "nftables",
    {
        "nft": ("answers lost at random (ENOBUFS)", "busy (EBUSY)"),
    },
    never={"legacy"},  # which asks nothing by netlink while it runs
)
def test_requests_that_fail(site: Site, name: str) -> None:
    loss, chance = LOSSES[name]
    program = site.start(room=Room(tools=site.tools.directory, sockets=site.sockets.directory))
    before, looks = site.sockets.done[loss], itertools.count()

    def struck() -> bool:
        if next(looks) % 5 == 0:
            site.change()
        return site.sockets.done[loss] - before >= STRIKES

    with site.ordeal(f"netlink: {name}") as case:
        site.sockets.order(loss, chance=chance, protocols=ALL)
        program.until(struck, expected=True)
        site.sockets.behave()
        case.times = site.sockets.done[loss] - before


@LONG
@modes("ipvs")
@pytest.mark.needs(Capability.VIRTUAL_SERVERS)
def test_news_of_lost_addresses_are_lost(site: Site) -> None:
    """While kproxy is stopped the device loses its addresses, and so much happens that nobody is told."""
    program = site.start("--ipvs-sync-period", "1h")
    node = site.cluster.lab.node
    flood = ["address flush dev kube-ipvs0"] + [
        f"address {verb} 198.18.{n // 250}.{n % 250 + 1}/32 dev lo"
        for n in range(1000)
        for verb in ("add", "del")
    ]
    with site.ordeal("netlink: ENOBUFS for news of the device", refuses=True, cuts=True):
        os.kill(program.pid, signal.SIGSTOP)
        node.run(["ip", "-batch", "-"], stdin="\n".join(flood) + "\n")
        site.change()
        os.kill(program.pid, signal.SIGCONT)
