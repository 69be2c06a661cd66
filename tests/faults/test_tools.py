"""The programs that write rules fail in every way: nothing is lost, and who is not at fault is served."""

import fcntl
import itertools
from collections.abc import Callable

import pytest

from kproxy.kernel.xtables.lock import lock_file_in_use
from kproxy.testing.sabotage import Deed
from tests.faults.site import Site
from tests.packets.modes import MODES, Capability

pytestmark = [pytest.mark.root, pytest.mark.parametrize("mode", MODES[:2], ids=str, indirect=True)]

STRIKES = 4


def carried_out(site: Site, deed: Deed, times: int) -> Callable[[], bool]:
    """Whether an order was carried out so many times from now on."""
    before = site.tools.done[deed]
    return lambda: site.tools.done[deed] - before >= times


@pytest.mark.parametrize(
    ("name", "deed", "programs", "chance"),
    [
        pytest.param(name, *order, id=name)
        for name, order in {
            "restore fails at random": (Deed.FAIL, "restore", 0.5),
            "restore killed half-way at random": (Deed.HALF, "restore", 0.5),
            "restore killed after its commit": (Deed.LATE, "restore", 1.0),
            "restore and save killed at random": (Deed.HALF, "", 0.7),
        }.items()
    ],
)
def test_programs_that_fail(site: Site, name: str, deed: Deed, programs: str, chance: float) -> None:
    program = site.start()
    enough = carried_out(site, deed, STRIKES)
    looks = itertools.count()

    def struck() -> bool:
        if next(looks) % 5 == 0:
            site.change()
        return enough()

    with site.ordeal(f"tools: {name}") as case:
        site.tools.order(deed, chance=chance, programs=programs)
        program.until(struck, expected=True)
        site.tools.behave()
        case.times = site.tools.done[deed]


def test_restore_missing_for_a_while(site: Site) -> None:
    program = site.start()
    with site.ordeal("tools: restore missing"):
        since = program.mark()
        site.tools.take_away("restore")
        site.change()
        assert "cannot run" in program.wait_log("sync_failed", "missing", "family=IPv4", since=since)
        program.wait_log("sync_failed", "missing", "family=IPv6", since=since)
        site.change()
        site.tools.bring_back()


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


def test_restore_hangs(site: Site) -> None:
    program = site.start()
    with site.ordeal("tools: restore hangs"):
        enough = carried_out(site, Deed.HANG, 1)
        site.tools.order(Deed.HANG)
        site.change()
        program.until(enough, expected=True)
        site.change()
        site.tools.behave()


@pytest.mark.needs(Capability.XTABLES_LOCK)
def test_lock_held(site: Site) -> None:
    program = site.start()
    with site.ordeal("tools: xtables lock held"), lock_file_in_use().open("w") as lock:
        since = program.mark()
        fcntl.flock(lock, fcntl.LOCK_EX)
        site.change()
        assert "lock" in program.wait_log("sync_failed", "xtables", since=since)
