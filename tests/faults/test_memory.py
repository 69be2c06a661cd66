"""Faults that come back again and again leave nothing behind in memory."""

import pytest

from kproxy.testing.apiserver import Fault
from kproxy.testing.sabotage import Deed
from tests.faults.site import Site, resident_mb
from tests.packets.modes import MODES

WARM_UP = 10
ROUNDS = 40
BOUND_MB = 3.0
"""What resident memory may grow by over all rounds: 75 KB each, and none of it is expected."""

pytestmark = [pytest.mark.root, pytest.mark.parametrize("mode", MODES[:2], ids=str, indirect=True)]


def test_memory_is_flat(site: Site) -> None:
    program = site.start()
    api = site.cluster.api

    def one_round() -> None:
        with api.faults.during(Fault.close(verb="watch", after_bytes=100)):
            site.change()
        with api.faults.during(Fault.garbage(verb="watch")):
            site.change()
        since = program.mark()
        site.tools.order(Deed.HALF, chance=0.5)
        site.cluster.iptables(4, "-t", "nat", "-F", "KUBE-SERVICES")
        site.change()
        site.tools.behave()
        program.wait_log("synced", "family=IPv4", since=since)

    with site.ordeal("memory: all kinds of faults", refuses=True) as case:
        for _ in range(WARM_UP):
            one_round()
        before = resident_mb(program.pid)
        for _ in range(ROUNDS):
            one_round()
        after = resident_mb(program.pid)
        case.times = WARM_UP + ROUNDS
    assert after - before <= BOUND_MB
