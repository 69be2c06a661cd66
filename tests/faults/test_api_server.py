"""The API server fails in every way: the node keeps what it has, and catches up when it can."""

import random
import threading
from collections.abc import Callable

import pytest

from kproxy_lab.apiserver import ApiServer, Fault
from tests.faults.selection import LONG, cases, modes
from tests.faults.site import Site

pytestmark = pytest.mark.root

REPEATS = 3
MINUTES = 3


def struck(site: Site, fault: Fault, times: int, *, drop: bool) -> None:
    """Have a fault strike while services change; with `drop` the watches have to begin anew."""
    faults = site.cluster.api.faults
    with faults.during(fault) as armed:
        if drop:
            site.cluster.api.drop_watches()
        site.change()
        assert faults.wait(armed, hits=times), f"{fault} struck {armed.hits} times"


STRIKES: dict[str, tuple[Fault, bool]] = {
    "410 in a watch": (Fault.watch_error(410, times=REPEATS), False),
    "500 in a watch": (Fault.watch_error(500, times=REPEATS), False),
    "410 to a request": (Fault.status(410, times=REPEATS), True),
    "429 with Retry-After": (Fault.status(429, retry_after=1, times=REPEATS), True),
    "500": (Fault.status(500, times=REPEATS), True),
    "garbage in watches": (Fault.garbage(verb="watch", times=REPEATS), False),
    "garbage in answers": (Fault.garbage(times=REPEATS), True),
    "stalled watches": (Fault.stall(verb="watch", times=None), False),
    "stalled altogether": (Fault.stall(times=None), True),
    "seven bytes at a time": (Fault.slow(7, 0.001, verb="watch", times=REPEATS), False),
}


@cases(
    "name",
    STRIKES,
    "nft",
    {"nftables": ("410 to a request", "stalled altogether", "garbage in answers")},
)
def test_answers_that_are_wrong(site: Site, name: str) -> None:
    site.start(anew=True)
    fault, drop = STRIKES[name]
    times = fault.times or 2
    with site.ordeal(f"API: {name}") as case:
        case.times = times
        struck(site, fault, times, drop=drop)


@modes("nft", "nftables")
def test_watches_cut_at_random_bytes(site: Site) -> None:
    site.start(anew=True)
    chance = random.Random(410)
    with site.ordeal("API: watches cut at random bytes") as case:
        case.times = 12
        for number in range(case.times):
            cut = (Fault.close, Fault.truncate)[number % 2]
            struck(site, cut(after_bytes=chance.randrange(1, 1500), verb="watch"), 1, drop=False)
            site.change()


def _killed(site: Site) -> None:
    site.cluster.api.restart(while_down=site.change)


def _history_lost(site: Site) -> None:
    site.cluster.api.restart(keep_history=False, while_down=site.change)


def _gone(site: Site) -> None:
    since = site.cluster.running.mark()
    with site.cluster.api.faults.during(Fault.refuse()):
        site.change()
        site.cluster.running.wait_log("watch_lost", "refused", "failures=3", since=since)
        site.change()


def _balanced(fault: Fault) -> Callable[[Site], None]:
    """A load balancer goes on without a server behind it, until waits would be long."""

    def outage(site: Site) -> None:
        since = site.cluster.running.mark()
        with site.cluster.api.faults.during(fault):
            site.cluster.api.drop_watches()
            site.change()
            site.cluster.running.wait_log("watch_lost", "failures=8", since=since)
            site.change()

    return outage


def _connections_dropped(site: Site) -> None:
    site.change()
    site.cluster.api.drop_connections()
    site.change()


OUTAGES: dict[str, tuple[Callable[[Site], None], int]] = {
    "killed and restarted": (_killed, REPEATS),
    "restarted without history": (_history_lost, REPEATS),
    "gone for a while": (_gone, 1),
    "a load balancer closes connections": (_balanced(Fault.close(times=None)), 1),
    "a load balancer answers 503": (_balanced(Fault.gateway(503)), 1),
    "all connections dropped": (_connections_dropped, REPEATS),
}


@cases(
    "name",
    OUTAGES,
    "nft",
    {"nftables": ("restarted without history", "gone for a while")},
)
def test_outages(site: Site, name: str) -> None:
    site.start(anew=True)
    with site.ordeal(f"API: {name}") as case:
        outage, case.times = OUTAGES[name]
        for _ in range(case.times):
            outage(site)
            site.change()


@LONG
@modes("nft")
@pytest.mark.timeout(900)
def test_gone_for_minutes(site: Site) -> None:
    site.start(anew=True)
    with site.ordeal("API: gone for minutes") as case, site.cluster.api.faults.during(Fault.refuse()):
        case.times = MINUTES
        for _ in range(case.times):
            site.change()
            threading.Event().wait(60)
        site.change()


@modes("nft", "nftables")
def test_a_server_that_counts_anew(site: Site) -> None:
    """Restored from a backup, say: resourceVersions are lower than those that were seen."""
    site.start(anew=True)
    cluster = site.cluster
    old = cluster.api
    objects = [obj for kind in ("Node", "Service", "EndpointSlice") for obj in old.list(kind)]
    for obj in objects:
        del obj["metadata"]["resourceVersion"]
    new = ApiServer(port=6443, sockets=cluster.lab.node.listen)
    assert new.apply_many(objects) < old.revision
    with site.ordeal("API: restarted, resourceVersions from the start"):
        old.stop()
        with new:
            cluster.api = new
            site.change()
            site.converge()
            new.stop()
        cluster.api = old
        site.change()
        old.compact()  # else it would tell its own past to a client that knows the other's revisions
        old.start()
