"""Faults of the API server: the node keeps its rules, and catches up when the server is back."""

import random
import threading
from collections.abc import Callable

import pytest

from kproxy_lab.apiserver import ApiServer, Fault
from tests.faults.bench import FaultBench
from tests.faults.selection import LONG, cases, modes

pytestmark = pytest.mark.root

REPEATS = 3
MINUTES = 3


def inject_api_fault(bench: FaultBench, fault: Fault, times: int, *, drop: bool) -> None:
    """Inject a fault of the API server while services change; with `drop` the watches must reconnect."""
    faults = bench.cluster.api.faults
    with faults.during(fault) as armed:
        if drop:
            bench.cluster.api.drop_watches()
        bench.change()
        assert faults.wait(armed, hits=times), f"{fault} was injected {armed.hits} times"


API_FAULTS: dict[str, tuple[Fault, bool]] = {
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
    API_FAULTS,
    "nft",
    {"nftables": ("410 to a request", "stalled altogether", "garbage in answers")},
)
def test_answers_that_are_wrong(bench: FaultBench, name: str) -> None:
    bench.start(restart=True)
    fault, drop = API_FAULTS[name]
    times = fault.times or 2
    with bench.inject(f"API: {name}") as case:
        case.times = times
        inject_api_fault(bench, fault, times, drop=drop)


@modes("nft", "nftables")
def test_watches_cut_at_random_bytes(bench: FaultBench) -> None:
    bench.start(restart=True)
    chance = random.Random(410)
    with bench.inject("API: watches cut at random bytes") as case:
        case.times = 12
        for number in range(case.times):
            cut = (Fault.close, Fault.truncate)[number % 2]
            inject_api_fault(bench, cut(after_bytes=chance.randrange(1, 1500), verb="watch"), 1, drop=False)
            bench.change()


def _killed(bench: FaultBench) -> None:
    bench.cluster.api.restart(while_down=bench.change)


def _history_lost(bench: FaultBench) -> None:
    bench.cluster.api.restart(keep_history=False, while_down=bench.change)


def _gone(bench: FaultBench) -> None:
    since = bench.cluster.running.mark()
    with bench.cluster.api.faults.during(Fault.refuse()):
        bench.change()
        bench.cluster.running.wait_log("watch_lost", "refused", "failures=3", since=since)
        bench.change()


def _balanced(fault: Fault) -> Callable[[FaultBench], None]:
    """Return an outage in which a load balancer has no server behind it, until the backoff is long."""

    def outage(bench: FaultBench) -> None:
        since = bench.cluster.running.mark()
        with bench.cluster.api.faults.during(fault):
            bench.cluster.api.drop_watches()
            bench.change()
            bench.cluster.running.wait_log("watch_lost", "failures=8", since=since)
            bench.change()

    return outage


def _connections_dropped(bench: FaultBench) -> None:
    bench.change()
    bench.cluster.api.drop_connections()
    bench.change()


OUTAGES: dict[str, tuple[Callable[[FaultBench], None], int]] = {
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
def test_outages(bench: FaultBench, name: str) -> None:
    bench.start(restart=True)
    with bench.inject(f"API: {name}") as case:
        outage, case.times = OUTAGES[name]
        for _ in range(case.times):
            outage(bench)
            bench.change()


@LONG
@modes("nft")
@pytest.mark.timeout(900)
def test_gone_for_minutes(bench: FaultBench) -> None:
    bench.start(restart=True)
    with bench.inject("API: gone for minutes") as case, bench.cluster.api.faults.during(Fault.refuse()):
        case.times = MINUTES
        for _ in range(case.times):
            bench.change()
            threading.Event().wait(60)
        bench.change()


@modes("nft", "nftables")
def test_a_server_that_counts_anew(bench: FaultBench) -> None:
    """As after a restore from a backup: resourceVersions are lower than those that were seen."""
    bench.start(restart=True)
    cluster = bench.cluster
    old = cluster.api
    objects = [obj for kind in ("Node", "Service", "EndpointSlice") for obj in old.list(kind)]
    for obj in objects:
        del obj["metadata"]["resourceVersion"]
    new = ApiServer(port=6443, sockets=cluster.lab.node.listen)
    assert new.apply_many(objects) < old.revision
    with bench.inject("API: restarted, resourceVersions from the start"):
        old.stop()
        with new:
            cluster.api = new
            bench.change()
            bench.converge()
            new.stop()
        cluster.api = old
        bench.change()
        old.compact()  # or it would replay its own history to a client with the other server's revisions
        old.start()
