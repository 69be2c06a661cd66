"""What a scrape reads: traffic of the busiest ports, as often as it may cost; rules, health and changes."""

import json
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from kproxy.addresses import Family
from kproxy.backends.core.base import MeasureError, Measurement, PortTraffic
from kproxy.backends.iptables.names import INVALID_COUNTER, LOCALHOST_COUNTER
from kproxy.kernel.nfacct import NfacctError, NfacctUnsupportedError
from kproxy.modes.base import SocketTableState
from kproxy.state import store as store_module
from kproxy.state.decode import decode
from kproxy.state.kinds import Kind
from kproxy.state.store import ObjectStore
from kproxy.telemetry import series
from kproxy.telemetry.collection import TRAFFIC_SHARE, Nfacct, readers
from kproxy.telemetry.exposition import CollectionError
from kproxy.telemetry.metrics import Sample
from kproxy.telemetry.series import Series
from kproxy.telemetry.verdict import Cause, Condition, State, Verdict
from tests.builders import service

BUSY = PortTraffic("default/web:http", "TCP", 9, (20, 2000), (10, 1000))
QUIET = PortTraffic("default/dns:", "UDP", 2, (2, 128))


class FakeMode:
    """A mode whose reading of traffic takes `seconds` of the clock."""

    families = (Family.IPV4,)

    def __init__(self, *traffic: PortTraffic) -> None:
        self.traffic = traffic
        self.now = 50.0
        self.seconds = 0.0
        self.fails = False
        self.asked: list[bool] = []

    def measure(self, family: Family, *, traffic: bool) -> Measurement:
        if self.fails:
            raise MeasureError("the rules cannot be read")
        self.asked.append(traffic)
        if traffic:
            self.now += self.seconds
        return Measurement(self.traffic if traffic else (), {"nat": 7}, {"map": 3})


def read(
    mode: FakeMode,
    part: str,
    *,
    limit: int = 10,
    verdict: Verdict | None = None,
    store: ObjectStore | None = None,
    accounts: Nfacct = dict,
) -> Iterator[dict[tuple[Series, tuple[str, ...]], float]]:
    """What each following scrape reads of one part, by series and labels."""
    parts = dict(
        readers(
            lambda: cast("Any", mode),
            lambda: verdict or Verdict(State.HEALTHY, live=True),
            store or ObjectStore(frozenset({Kind.SERVICE})),
            cast("Any", None),
            limit,
            accounts,
            lambda: mode.now,
        )
    )
    while True:
        yield {
            (each.series, each.labels): cast("float", each.value)
            for each in cast("list[Sample]", parts[part]())
        }


def connections(found: dict[tuple[Series, tuple[str, ...]], float]) -> dict[str, float]:
    """The connections of the ports that have series of their own, by the service's name."""
    return {labels[2]: value for (each, labels), value in found.items() if each is series.CONNECTIONS}


def test_the_traffic_of_a_port_has_its_names_and_both_directions() -> None:
    found = next(read(FakeMode(BUSY, QUIET), "kernel"))
    web, dns = ("IPv4", "default", "web", "http", "TCP"), ("IPv4", "default", "dns", "", "UDP")
    assert found == {
        (series.CONNECTIONS, web): 9,
        (series.PACKETS, (*web, "in")): 20,
        (series.BYTES, (*web, "in")): 2000,
        (series.PACKETS, (*web, "out")): 10,
        (series.BYTES, (*web, "out")): 1000,
        (series.CONNECTIONS, dns): 2,
        (series.PACKETS, (*dns, "in")): 2,
        (series.BYTES, (*dns, "in")): 128,
        (series.OMITTED, ("IPv4",)): 0,
        (series.RULES, ("nat", "IPv4")): 7,
        (series.RULES, ("filter", "IPv4")): 0,
        (series.NFTABLES_OBJECTS, ("map", "IPv4")): 3,
    }


def test_only_the_busiest_ports_have_series_and_among_equals_the_first_by_name() -> None:
    ports = [
        PortTraffic(f"default/{name}:p", "TCP", number, (0, 0))
        for name, number in (("d", 5), ("c", 7), ("b", 5), ("a", 5))
    ]
    for order in (ports, ports[::-1]):
        found = next(read(FakeMode(*order), "kernel", limit=2))
        assert connections(found) == {"c": 7, "a": 5}
        assert found[series.OMITTED, ("IPv4",)] == 2
        assert connections(next(read(FakeMode(*order), "kernel", limit=1))) == {"c": 7}
    assert len(connections(next(read(FakeMode(*ports), "kernel", limit=4)))) == 4


def test_traffic_that_takes_long_to_read_is_read_seldom_and_shown_in_between() -> None:
    mode = FakeMode(BUSY)
    mode.seconds = 2.0
    scrapes = read(mode, "kernel")
    assert connections(next(scrapes)) == {"web": 9}
    mode.traffic = (with_connections(BUSY, 11),)
    mode.now += 2.0 * TRAFFIC_SHARE - 1.0
    assert connections(next(scrapes)) == {"web": 9}
    mode.now += 1.0
    assert connections(next(scrapes)) == {"web": 11}
    assert mode.asked == [True, False, True]


def with_connections(port: PortTraffic, number: int) -> PortTraffic:
    return PortTraffic(port.name, port.protocol, number, port.sent, port.answered)


def test_without_series_per_service_no_traffic_is_read() -> None:
    mode = FakeMode(BUSY)
    found = next(read(mode, "kernel", limit=0))
    assert mode.asked == [False]
    assert set(found) == {
        (series.RULES, ("nat", "IPv4")),
        (series.RULES, ("filter", "IPv4")),
        (series.NFTABLES_OBJECTS, ("map", "IPv4")),
    }


def test_a_kernel_that_cannot_be_read_is_named() -> None:
    mode = FakeMode()
    mode.fails = True
    with pytest.raises(CollectionError, match="IPv4: the rules cannot be read"):
        next(read(mode, "kernel"))


def test_accounting_objects_of_kproxy_count_packets() -> None:
    kernel = {INVALID_COUNTER: (3, 300), "another-program": (9, 900)}
    assert next(read(FakeMode(), "nfacct", accounts=lambda: kernel)) == {(series.INVALID_DROPPED, ()): 3}
    kernel[LOCALHOST_COUNTER] = (4, 400)
    assert next(read(FakeMode(), "nfacct", accounts=lambda: kernel)) == {
        (series.INVALID_DROPPED, ()): 3,
        (series.LOCALHOST_ACCEPTED, ()): 4,
    }


def test_a_kernel_without_accounting_objects_is_no_failure_and_another_error_is() -> None:
    def unsupported() -> dict[str, tuple[int, int]]:
        raise NfacctUnsupportedError("no accounting objects")

    def broken() -> dict[str, tuple[int, int]]:
        raise NfacctError("cannot list nfacct objects: no memory")

    assert next(read(FakeMode(), "nfacct", accounts=unsupported)) == {}
    with pytest.raises(CollectionError, match="no memory"):
        next(read(FakeMode(), "nfacct", accounts=broken))


def test_health_is_one_state_and_its_causes() -> None:
    conditions = (Condition(Cause.MODE_REFUSED, "", "no such expression", 9.0),)
    found = next(
        read(FakeMode(), "health", verdict=Verdict(State.DEGRADED, live=True, conditions=conditions))
    )
    assert {labels for (each, labels), value in found.items() if each is series.STATE and value} == {
        ("degraded",)
    }
    assert {labels for (each, labels), value in found.items() if each is series.CONDITION and value} == {
        ("ModeRefused",)
    }
    assert found[series.HEALTHY, ()] == 0
    assert (found[series.MODE_REFUSED, ()], found[series.CONFIGURATION_REJECTED, ()]) == (1, 0)
    fine = next(read(FakeMode(), "health"))
    assert fine[series.HEALTHY, ()] == 1
    assert fine[series.MODE_REFUSED, ()] == 0


def test_changes_that_wait_are_counted_and_their_age_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    mode = FakeMode()
    clock = SimpleNamespace(monotonic=lambda: mode.now, time=time.time)
    monkeypatch.setattr(store_module, "time", clock)
    store = ObjectStore(frozenset({Kind.SERVICE}))
    scrapes = read(mode, "changes", store=store)
    store.replace(Kind.SERVICE, [], ())
    store.take_all(["IPv4"])
    store.commit({"IPv4": []})
    assert next(scrapes)[series.OLDEST_PENDING, ()] == 0
    store.upsert(Kind.SERVICE, decode(Kind.SERVICE, json.dumps(service()).encode()))
    mode.now += 4.0
    waiting = next(scrapes)
    assert (waiting[series.SERVICE_CHANGES, ()], waiting[series.SERVICE_PENDING, ()]) == (1, 1)
    assert (waiting[series.ENDPOINT_CHANGES, ()], waiting[series.ENDPOINT_PENDING, ()]) == (0, 0)
    assert waiting[series.OLDEST_PENDING, ()] == 4
    assert waiting[series.LAST_QUEUED, ("IPv4",)] > 0


def test_without_a_change_no_time_of_one_is_shown() -> None:
    found = next(read(FakeMode(), "changes"))
    assert (series.LAST_QUEUED, ("IPv4",)) not in found


class WithSockets(FakeMode):
    """A mode with a table at the sockets."""

    socket_table = SocketTableState()

    def measure(self, family: Family, *, traffic: bool) -> Measurement:
        return msgspec.structs.replace(super().measure(family, traffic=traffic), frontends=3)


@pytest.mark.parametrize(
    ("state", "now"),
    [
        (SocketTableState(), "starting"),
        (SocketTableState(serving=True), "serving"),
        (SocketTableState(reason="no bpffs"), "degraded"),
    ],
)
def test_the_state_of_a_socket_table_is_one_of_three(state: SocketTableState, now: str) -> None:
    mode = WithSockets(BUSY)
    mode.socket_table = state
    found = next(read(mode, "kernel"))
    values = {each: found[series.SOCKET_TABLE, (each,)] for each in ("serving", "starting", "degraded")}
    assert values == {each: float(each == now) for each in values}
    assert found[series.FRONTENDS, ("IPv4",)] == 3
    assert not any(each is series.SOCKET_TABLE for each, _ in next(read(FakeMode(BUSY), "kernel")))
