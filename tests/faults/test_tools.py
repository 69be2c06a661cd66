"""The programs that write rules fail in every way: nothing is lost, and who is not at fault is served."""

import fcntl
import itertools
from collections.abc import Callable

import pytest

from kproxy.kernel.xtables.lock import lock_file_in_use
from kproxy.testing.sabotage import Deed
from tests.faults.selection import cases, modes
from tests.faults.site import Site
from tests.packets.modes import Capability

pytestmark = pytest.mark.root

STRIKES = 4


def carried_out(site: Site, deed: Deed, times: int) -> Callable[[], bool]:
    """Whether an order was carried out so many times from now on."""
    before = site.tools.done[deed]
    return lambda: site.tools.done[deed] - before >= times


DEEDS = {
    "fails at random": (Deed.FAIL, 0.5),
    "killed half-way at random": (Deed.HALF, 0.5),
    "killed after its commit": (Deed.LATE, 1.0),
    "and save killed at random": (Deed.HALF, 0.7),
}


@cases(
    "name",
    DEEDS,
    "nft",
    {
        "legacy": tuple(DEEDS),
        "nftables": ("fails at random", "killed half-way at random", "killed after its commit"),
    },
)
def test_programs_that_fail(site: Site, name: str) -> None:
    program = site.start()
    deed, chance = DEEDS[name]
    programs = "" if "save" in name else site.cluster.mode.writer
    enough = carried_out(site, deed, STRIKES)
    looks = itertools.count()

    def struck() -> bool:
        if next(looks) % 5 == 0:
            site.change()
        return enough()

    with site.ordeal(f"tools: {site.cluster.mode.writer} {name}") as case:
        site.tools.order(deed, chance=chance, programs=programs)
        program.until(struck, expected=True)
        site.tools.behave()
        case.times = site.tools.done[deed]


@modes("nft", "legacy", "nftables", never={"ipvs"})  # endpoints of virtual servers need no program
def test_program_missing_for_a_while(site: Site) -> None:
    program, writer = site.start(), site.cluster.mode.writer
    with site.ordeal(f"tools: {writer} missing"):
        since = program.mark()
        site.tools.take_away(writer)
        site.change()
        assert "cannot run" in program.wait_log("sync_failed", "missing", "family=IPv4", since=since)
        program.wait_log("sync_failed", "missing", "family=IPv6", since=since)
        site.change()
        site.tools.bring_back()


@modes("nft", "legacy")
def test_restore_refused_for_one_service(site: Site) -> None:
    program = site.start()
    lab = site.cluster.lab
    with site.ordeal("tools: one service refused") as case:
        enough = carried_out(site, Deed.REFUSE, STRIKES)
        site.tools.order(Deed.REFUSE, word=site.shop.key)
        since = program.mark()
        site.change()
        for family in ("IPv4", "IPv6"):
            assert site.shop.key in program.wait_log("service_refused", f"family={family}", since=since)
        other = site.cluster.publish([lab.local_pods[0]])
        assert site.cluster.outcome(lab.client, other.ip(4), 80) == lab.local_pods[0].name
        program.until(enough, expected=True)
        refused = [line for line in program.log[since:] if "event=service_refused" in line]
        assert {site.shop.key in line for line in refused} == {True}
        site.tools.behave()
        case.times = site.tools.done[Deed.REFUSE]


@modes("nft", "legacy")
def test_program_hangs(site: Site) -> None:
    program, writer = site.start(), site.cluster.mode.writer
    with site.ordeal(f"tools: {writer} hangs"):
        enough = carried_out(site, Deed.HANG, 1)
        site.tools.order(Deed.HANG, programs=writer)
        site.change()
        program.until(enough, expected=True)
        site.change()
        site.tools.behave()


@modes("legacy")
@pytest.mark.needs(Capability.XTABLES_LOCK)
def test_lock_held(site: Site) -> None:
    program = site.start()
    with site.ordeal("tools: xtables lock held"), lock_file_in_use().open("w") as lock:
        since = program.mark()
        fcntl.flock(lock, fcntl.LOCK_EX)
        site.change()
        assert "lock" in program.wait_log("sync_failed", "xtables", since=since)
