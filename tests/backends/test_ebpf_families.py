"""Both families in one table: when it serves, how it grows, and what a late reader finds in it."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy.addresses import Family
from kproxy.backends.ebpf.backend import SocketBackend
from kproxy.backends.ebpf.blocks import QUARANTINE
from kproxy.backends.ebpf.config import SocketConfig
from kproxy.backends.ebpf.render import describe_frontend, describe_slots
from kproxy.backends.ebpf.shared import SharedTable
from kproxy.kernel.bpf.types import SLOT_WORDS, BpfError, Capacity, Sizes
from kproxy.plan.model import EndpointPlan, PortPlan, Protocol, ServicePlan
from tests.backends.ebpf_node import TINY
from tests.backends.strategies import SETTINGS
from tests.suite.matrix import examples
from tests.support.fake_socket_table import FakeSocketTable

SMALL = Sizes(Capacity(6, 16), Capacity(6, 16), 12)
_NETWORKS = {
    Family.IPV4: ("10.96.0.{}", "10.1.{}.{}", "{}:80/TCP", "{}:8080"),
    Family.IPV6: ("fd00:96::{}", "fd00:1:{}::{}", "[{}]:80/TCP", "[{}]:8080"),
}


def plan(family: Family, number: int, pods: list[int]) -> ServicePlan:
    """A service with these pods; without any it is gone. Services have different pods."""
    ip, pod, _, _ = _NETWORKS[family]
    ready = tuple(EndpointPlan(pod.format(number, each), 8080) for each in pods)
    name = f"ns1/svc{number}"
    port = PortPlan(
        name, Protocol.TCP, ip.format(number), 80, cluster=ready, reachable=ready, has_endpoints=True
    )
    return ServicePlan(name, family, ports=(port,) if pods else ())


def expected(family: Family, wanted: dict[int, list[int]]) -> dict[str, list[str]]:
    """What the table has for these services."""
    ip, pod, frontend, slot = _NETWORKS[family]
    return {
        frontend.format(ip.format(number)): [slot.format(pod.format(number, each)) for each in pods]
        for number, pods in wanted.items()
        if pods
    }


class Pair:
    """The backends of both families over one table; `now` is their clock."""

    def __init__(self, sizes: Sizes = SMALL, families: tuple[Family, ...] = tuple(Family)) -> None:
        self.now = 1000.0
        self.table = FakeSocketTable(sizes)
        self.families = families
        self.wanted: dict[Family, dict[int, list[int]]] = {family: {} for family in families}
        self.backends: dict[Family, SocketBackend] = {}
        self.start()

    def start(self) -> None:
        """Start, or start again over the same table."""
        if self.backends:
            self.table = self.table.restarted()
        shared = SharedTable(self.table, self.families)
        for family in self.families:
            backend = SocketBackend(family, shared, SocketConfig(family), lambda: self.now, self.wait)
            backend.update(plan(family, number, pods) for number, pods in self.wanted[family].items())
            self.backends[family] = backend

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    def want(self, family: Family, number: int, pods: list[int]) -> None:
        """Change a service."""
        self.wanted[family][number] = pods
        self.backends[family].update([plan(family, number, pods)])

    def sync(self, family: Family) -> dict[str, int]:
        """Sync one family; return what was written."""
        report = self.backends[family].sync()
        assert (report.error, report.services) == (None, {})
        return dict(report.changes)

    def served(self, family: Family) -> dict[str, list[str]]:
        """What programs find."""
        return self.table.contents(family)


_CHANGE = st.tuples(st.sampled_from(Family), st.integers(1, 4), st.lists(st.integers(1, 9), max_size=5))
_STEP = st.tuples(
    st.lists(_CHANGE, max_size=3),
    st.sampled_from(["4", "6", "46", "64", "64", "46", "restart"]),
    st.sampled_from([0.0, 0.0, QUARANTINE / 2, QUARANTINE]),
)


class _LateReaders:
    """Programs that have read a frontend, and read its slots later: they find endpoints of its service."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._read: set[tuple[Family, bytes, int, int, float]] = set()
        pair.table.faults.after = self.look

    def look(self) -> None:
        """Read all frontends, and the slots of all that were read within the quarantine."""
        pair = self._pair
        if pair.table.live is None:
            return
        maps, now = pair.table.maps, pair.now
        for family in Family:
            for key, value in maps.held[family].items():
                first, count, _ = struct.unpack("=III", value)
                self._read.add((family, key, first, count, now))
        self._read = {each for each in self._read if now - each[-1] < QUARANTINE - 1e-6}
        for family, key, first, count, _ in self._read:
            words = SLOT_WORDS[family]
            memory = maps.slots(family)[first * words : (first + count) * words]
            number = describe_frontend(key, family).rpartition("]" if family is Family.IPV6 else ":")[0][-1]
            pods = expected(family, {int(number): list(range(1, 10))})
            assert set(describe_slots(bytes(memory), family)) <= set(*pods.values())


@given(history=st.lists(_STEP, min_size=1, max_size=14))
@settings(SETTINGS, max_examples=examples(200))
def test_a_late_reader_finds_endpoints_of_its_service_only(history: list[Any]) -> None:
    pair = Pair()
    readers = _LateReaders(pair)
    for changes, then, passed in history:
        for change in changes:
            pair.want(*change)
        if then == "restart":
            pair.start()
        for family in Family:
            if family.value[-1] in then:
                pair.sync(family)
        pair.now += passed
        readers.look()
    for family in Family:
        pair.sync(family)
        readers.look()
    for family in Family:
        assert pair.served(family) == expected(family, pair.wanted[family])
        assert pair.sync(family) == {}


def test_a_new_table_serves_when_both_families_have_filled_it() -> None:
    pair = Pair(TINY)
    for family in Family:
        for number in range(1, 5):
            pair.want(family, number, [1, 2, 3])
    pair.sync(Family.IPV4)
    assert pair.table.live is None
    pair.sync(Family.IPV6)
    for family in Family:
        assert pair.served(family) == expected(family, pair.wanted[family])
    assert pair.table.publications == 1


@pytest.mark.parametrize("family", Family, ids=str)
def test_a_table_of_one_family_serves_when_that_has_filled_it(family: Family) -> None:
    pair = Pair(families=(family,))
    pair.want(family, 1, [1])
    pair.sync(family)
    assert pair.served(family) == expected(family, {1: [1]})


def test_a_family_that_is_not_served_any_more_leaves_the_table() -> None:
    pair = Pair()
    for family in Family:
        pair.want(family, 1, [1])
        pair.sync(family)
    pair.families = (Family.IPV6,)
    pair.start()
    pair.sync(Family.IPV6)
    assert pair.served(Family.IPV4) == {}
    assert pair.served(Family.IPV6) == expected(Family.IPV6, {1: [1]})


def test_a_process_with_more_families_serves_all_the_time_while_it_numbers_frontends_anew() -> None:
    pair = Pair(families=(Family.IPV6,))
    for number in range(1, 9):
        pair.want(Family.IPV6, number, [1, 2, number])
        pair.sync(Family.IPV6)
    good = pair.served(Family.IPV6)
    pair.families = tuple(Family)
    pair.wanted[Family.IPV4] = {}
    pair.start()
    seen: list[dict[str, list[str]]] = []
    pair.table.faults.after = lambda: seen.append(pair.served(Family.IPV6))
    pair.sync(Family.IPV4)
    assert pair.sync(Family.IPV6)["frontends"] > 0
    assert seen
    assert all(each == good for each in seen)
    assert pair.sync(Family.IPV6) == {}


@pytest.mark.parametrize("family", Family, ids=str)
def test_growth_keeps_what_the_other_family_has(family: Family) -> None:
    pair = Pair()
    for each in Family:
        pair.want(each, 1, [1, 2])
        pair.sync(each)
    before = pair.table.maps
    for number in range(2, 30):
        pair.want(family, number, [1, 2, 3])
    pair.sync(family)
    assert pair.table.maps is not before
    assert before.closed
    for each in Family:
        assert pair.served(each) == expected(each, pair.wanted[each])
    for each in Family:
        pair.want(each, 1, [3, 4, 5, 6])
        pair.sync(each)
        assert pair.served(each) == expected(each, pair.wanted[each])


def test_a_first_sync_grows_once() -> None:
    pair = Pair(TINY, (Family.IPV4,))
    made: list[Sizes] = []
    pair.table.made = made.append
    for number in range(1, 200):
        pair.want(Family.IPV4, number, [1, 2, 3, 4, 5])
    pair.sync(Family.IPV4)
    assert len(made) == 1


def test_a_hook_of_others_leaves_nothing_serving_and_is_tried_again() -> None:
    pair = Pair(families=(Family.IPV4,))
    pair.want(Family.IPV4, 1, [1])
    pair.table.faults.hook = True
    report = pair.backends[Family.IPV4].sync()
    assert report.error is not None
    assert report.error.startswith("occupied: ")
    assert pair.served(Family.IPV4) == {}
    pair.table.faults.hook = False
    pair.sync(Family.IPV4)
    assert pair.served(Family.IPV4) == expected(Family.IPV4, {1: [1]})


def test_a_process_that_adopts_a_table_publishes_its_own_programs_once() -> None:
    pair = Pair()
    for _ in range(2):
        for family in Family:
            pair.want(family, 1, [1])
            pair.sync(family)
        assert pair.table.publications == 1
        pair.start()
        assert pair.table.publications == 0


def test_counters_of_the_families_do_not_overlap() -> None:
    pair = Pair()
    for number in range(1, 6):
        for family in Family:
            pair.want(family, number, [1])
            pair.sync(family)
    numbers = [
        struct.unpack("=III", value)[2]
        for family in Family
        for value in pair.table.frontends(family).values()
    ]
    assert len(set(numbers)) == 10
    assert max(numbers) < pair.table.sizes.counters


def test_a_new_frontend_counts_from_nothing() -> None:
    pair = Pair(Sizes(Capacity(1, 8), Capacity(1, 8), 1), (Family.IPV4,))
    backend = pair.backends[Family.IPV4]
    for number, connections in ((1, 5), (2, 7), (1, 0)):
        pair.want(Family.IPV4, number, [1])
        pair.sync(Family.IPV4)
        for counter in range(len(pair.table.maps.counts)):
            pair.table.maps.counts[counter] += connections
        (found,) = backend.connections()
        assert (found.name, found.connections) == (f"ns1/svc{number}", connections)
        pair.want(Family.IPV4, number, [])
        pair.sync(Family.IPV4)
        assert backend.connections() == ()


def test_a_changed_frontend_counts_on_and_a_restart_begins_anew() -> None:
    pair = Pair()
    for family in Family:
        pair.want(family, 1, [1])
        pair.sync(family)
    for counter in range(len(pair.table.maps.counts)):
        pair.table.maps.counts[counter] = 3
    for family in Family:
        pair.want(family, 1, [2, 3, 4])
        pair.sync(family)
        assert [each.connections for each in pair.backends[family].connections()] == [3]
    pair.start()
    for family in Family:
        pair.sync(family)
        assert [each.connections for each in pair.backends[family].connections()] == [0]


def test_problems_of_links_and_pins_are_named_once_and_repaired() -> None:
    pair = Pair()
    for family in Family:
        pair.sync(family)
    pair.table.break_link("link connect4")
    found = {family: pair.backends[family].check() for family in Family}
    assert [str(each) for each in found[Family.IPV4]] == ["link connect4 is missing: detached"]
    assert found[Family.IPV6] == ()
    pair.sync(Family.IPV4)
    assert pair.table.problems() == []
    assert pair.backends[Family.IPV4].check() == ()


def test_programs_of_others_beside_ours_are_no_drift() -> None:
    pair = Pair()
    for family in Family:
        pair.sync(family)
    pair.table.add_foreign("hook connect4")
    assert pair.backends[Family.IPV4].check(full=True) == ()


def test_a_failed_publication_of_larger_maps_leaves_the_former_ones_serving() -> None:
    pair = Pair(families=(Family.IPV4,))
    pair.want(Family.IPV4, 1, [1])
    pair.sync(Family.IPV4)
    pair.table.faults.hook = True
    for number in range(2, 20):
        pair.want(Family.IPV4, number, [1, 2])
    report = pair.backends[Family.IPV4].sync()
    assert report.error is None
    served = pair.served(Family.IPV4)
    assert served.items() <= expected(Family.IPV4, pair.wanted[Family.IPV4]).items()
    assert len(served) == 6
    assert len(report.degraded) == 13
    pair.table.faults.hook = False
    pair.backends[Family.IPV4].retry()
    pair.sync(Family.IPV4)
    assert pair.served(Family.IPV4) == expected(Family.IPV4, pair.wanted[Family.IPV4])


def test_maps_that_cannot_be_read_are_an_error_of_the_sync() -> None:
    pair = Pair(families=(Family.IPV4,))
    pair.want(Family.IPV4, 1, [1])
    pair.table.faults.lose_at = 0
    report = pair.backends[Family.IPV4].sync()
    assert report.error is not None
    assert issubclass(BpfError, pair.backends[Family.IPV4].operations.errors)
    pair.table.faults.lose_at = None
    pair.sync(Family.IPV4)
    assert pair.served(Family.IPV4) == expected(Family.IPV4, {1: [1]})
