"""The programs that write rules fail in every way: nothing is lost, and who is not at fault is served."""

import fcntl
import itertools
from collections.abc import Callable

import pytest

from kproxy.kernel.xtables.lock import lock_file_in_use
from tests.faults.selection import cases, modes
from tests.faults.site import Site
from tests.packets.modes import Capability
from tests.support.faultinjection import Deed

pytestmark = pytest.mark.root

STRIKES = 4


def carried_out(site: Site, deed: Deed, times: int) -> Callable[[], bool]:
    """Whether an order was carried out so many times from now on."""
    before = site.tools.done[deed]
    return lambda: site.tools.done[deed] - before >= times


def rule_changes(site: Site) -> Callable[[], str]:
    """A change of services that takes the program that writes rules; it tells of whose service.

    In IPVS mode endpoints are written by netlink; only those of services with the external traffic policy
    Local stand in rules too.
    """
    if Capability.VIRTUAL_SERVERS not in site.cluster.mode.capabilities:

        def change() -> str:
            site.change()
            return site.shop.key

        return change
    local = site.cluster.service("local", type="NodePort", externalTrafficPolicy="Local")
    turns = itertools.cycle(site.cluster.lab.local_pods[:3])

    def change_local() -> str:
        site.change()
        site.cluster.slices(local, [next(turns)])
        return local.key

    change_local()
    return change_local


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
    {"legacy": tuple(DEEDS)},
    never={"nftables"},  # which runs no program
)
def test_programs_that_fail(site: Site, name: str) -> None:
    program = site.start()
    deed, chance = DEEDS[name]
    programs = "" if "save" in name else site.cluster.mode.writer
    enough = carried_out(site, deed, STRIKES)
    looks, change = itertools.count(), rule_changes(site)

    def struck() -> bool:
        if next(looks) % 5 == 0:
            change()
        return enough()

    with site.ordeal(f"tools: {site.cluster.mode.writer} {name}") as case:
        site.tools.order(deed, chance=chance, programs=programs)
        program.until(struck, expected=True)
        site.tools.behave()
        case.times = site.tools.done[deed]


@modes("nft", "legacy", never={"nftables"})
def test_program_missing_for_a_while(site: Site) -> None:
    program, writer = site.start(), site.cluster.mode.writer
    change = rule_changes(site)
    site.cluster.settle()
    with site.ordeal(f"tools: {writer} missing"):
        since = program.mark()
        site.tools.take_away(writer)
        change()
        assert "cannot run" in program.wait_log("sync_failed", "missing", "family=IPv4", since=since)
        program.wait_log("sync_failed", "missing", "family=IPv6", since=since)
        site.change()
        site.tools.bring_back()


@modes("nft", "legacy", never={"nftables"})
def test_one_service_refused(site: Site) -> None:
    program = site.start()
    lab, mode = site.cluster.lab, site.cluster.mode
    change = rule_changes(site)
    site.cluster.settle()
    with site.ordeal("tools: one service refused") as case:
        enough = carried_out(site, Deed.REFUSE, STRIKES)
        since = program.mark()
        victim = change()
        site.tools.order(Deed.REFUSE, programs=mode.writer, words=[victim])
        change()
        for family in ("IPv4", "IPv6"):
            assert victim in program.wait_log("service_quarantined", f"family={family}", since=since)
        other = site.cluster.publish([lab.local_pods[0]])
        assert site.cluster.outcome(lab.client, other.ip(4), 80) == lab.local_pods[0].name
        program.until(enough, expected=True)
        refused = [line for line in program.log[since:] if "event=service_quarantined" in line]
        assert {victim in line for line in refused} == {True}
        site.tools.behave()
        case.times = site.tools.done[Deed.REFUSE]


@modes("nft", "legacy", never={"nftables"})
def test_program_hangs(site: Site) -> None:
    program, writer = site.start(), site.cluster.mode.writer
    with site.ordeal(f"tools: {writer} hangs"):
        enough, change = carried_out(site, Deed.HANG, 1), rule_changes(site)
        site.cluster.settle()
        site.tools.order(Deed.HANG, programs=writer)
        change()
        program.until(enough, expected=True)
        change()
        site.tools.behave()


@modes("nftables", never={"nft", "legacy", "scalable", "ipvs"})
@pytest.mark.needs(Capability.NFTABLES)
def test_nft_hangs_or_is_missing_and_nothing_runs_it(site: Site) -> None:
    site.start()
    hung = site.tools.done[Deed.HANG]
    with site.ordeal("tools: nft hangs, then is missing"):
        site.tools.order(Deed.HANG, programs="nft")
        site.change()
        site.cluster.settle()
        site.tools.take_away("nft")
        site.change()
        site.cluster.settle()
        site.tools.behave()
        site.tools.bring_back()
    assert site.tools.done[Deed.HANG] == hung


@modes("legacy")
@pytest.mark.needs(Capability.XTABLES_LOCK)
def test_lock_held(site: Site) -> None:
    program = site.start()
    with site.ordeal("tools: xtables lock held"), lock_file_in_use().open("w") as lock:
        since = program.mark()
        fcntl.flock(lock, fcntl.LOCK_EX)
        site.change()
        assert "lock" in program.wait_log("sync_failed", "xtables", since=since)
