"""Dirty tracking: coalescing, commits, relists, and slices that change hands."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy.state.kinds import Kind
from kproxy.state.tables import ServiceInput, Tables
from kproxy.state.wire import Node, NodeMeta, ServiceCIDR, ServiceCIDRMeta, ServiceCIDRSpec
from tests import builders
from tests.builders import as_service, as_slice
from tests.suite.matrix import examples


def _dirty(tables: Tables) -> list[str]:
    return [each.key for each in tables.dirty()]


def _filled() -> Tables:
    tables = Tables()
    tables.replace(Kind.SERVICE, [as_service(builders.service(n)) for n in ("svc1", "svc2")])
    tables.replace(Kind.ENDPOINT_SLICE, [as_slice(builders.endpoint_slice("10.0.0.1"))])
    tables.commit(tables.dirty())
    assert len(tables.pending) == 0
    return tables


def test_first_lists() -> None:
    tables = Tables()
    assert tables.synced == frozenset()
    assert tables.replace(Kind.SERVICE, []) is True
    assert tables.replace(Kind.SERVICE, []) is False
    assert tables.synced == {Kind.SERVICE}
    assert tables.replace(Kind.ENDPOINT_SLICE, [as_slice(builders.endpoint_slice("10.0.0.1"))]) is True
    assert tables.synced == {Kind.SERVICE, Kind.ENDPOINT_SLICE}
    (only,) = tables.dirty()
    assert (only.key, only.service, len(only.slices)) == ("ns1/svc1", None, 1)


def test_many_changes_are_one_dirty_service() -> None:
    tables = _filled()
    for number in range(1, 6):
        assert tables.upsert(as_slice(builders.endpoint_slice(f"10.0.0.{number + 1}")))
        assert tables.upsert(as_service(builders.service(ip=f"10.96.0.{number + 1}")))
    (only,) = tables.dirty()
    assert only.service == as_service(builders.service(ip="10.96.0.6"))
    assert only.slices == (as_slice(builders.endpoint_slice("10.0.0.6")),)


def test_an_equal_object_changes_nothing() -> None:
    tables = _filled()
    before = tables.revision
    assert not tables.upsert(as_service(builders.service()))
    assert not tables.upsert(as_slice(builders.endpoint_slice("10.0.0.1")))
    assert not tables.delete(Kind.SERVICE, "ns1/unknown")
    assert not tables.delete(Kind.ENDPOINT_SLICE, "ns1/unknown")
    assert len(tables.pending) == 0
    assert tables.revision == before


def test_a_change_while_an_older_one_is_applied_keeps_the_service_dirty() -> None:
    tables = _filled()
    tables.upsert(as_service(builders.service(ip="10.96.0.2")))
    read = tables.dirty()
    tables.upsert(as_slice(builders.endpoint_slice("10.0.0.9")))
    tables.commit(read)
    assert _dirty(tables) == ["ns1/svc1"]
    tables.commit(tables.dirty())
    assert _dirty(tables) == []


def test_going_back_to_what_was_read_does_not_hide_the_change() -> None:
    tables = _filled()
    first, second = builders.service(ip="10.96.0.2"), builders.service(ip="10.96.0.3")
    tables.upsert(as_service(first))
    read = tables.dirty()
    tables.upsert(as_service(second))
    tables.upsert(as_service(first))
    tables.commit(read)
    assert _dirty(tables) == ["ns1/svc1"]


def test_what_is_not_committed_stays_dirty() -> None:
    tables = _filled()
    tables.touch(["ns1/svc1", "ns1/svc2"])
    tables.commit([each for each in tables.dirty() if each.key == "ns1/svc2"])
    assert _dirty(tables) == ["ns1/svc1"]


def test_a_relist_deletes_what_is_gone_and_touches_nothing_else() -> None:
    tables = _filled()
    assert tables.replace(Kind.SERVICE, [as_service(builders.service("svc2"))])
    (only,) = tables.dirty()
    assert (only.key, only.service, len(only.slices)) == ("ns1/svc1", None, 1)
    assert tables.replace(Kind.ENDPOINT_SLICE, [])
    assert tables.read("ns1/svc1").slices == ()
    assert not tables.replace(Kind.ENDPOINT_SLICE, [])


def test_a_relist_keeps_what_it_could_not_read() -> None:
    tables = _filled()
    assert not tables.replace(Kind.SERVICE, [as_service(builders.service("svc2"))], unreadable=["ns1/svc1"])
    assert not tables.replace(Kind.ENDPOINT_SLICE, [], unreadable=["ns1/svc1-1", "ns1/never-seen"])
    assert len(tables.pending) == 0
    assert tables.read("ns1/svc1").service is not None
    assert len(tables.read("ns1/svc1").slices) == 1


@pytest.mark.parametrize("value", ["", "other-proxy"])
def test_services_of_other_proxies_are_not_ours(value: str) -> None:
    label = {"service.kubernetes.io/service-proxy-name": value}
    tables = _filled()
    assert not tables.upsert(as_service(builders.service("svc9", labels=label)))
    assert tables.upsert(as_service(builders.service("svc1", labels=label)))
    assert tables.read("ns1/svc1").service is None
    assert tables.upsert(as_service(builders.service("svc1")))
    assert tables.read("ns1/svc1").service is not None


@pytest.mark.parametrize("value", ["", "true"])
def test_headless_slices_are_ignored(value: str) -> None:
    label = {"service.kubernetes.io/headless": value}
    tables = _filled()
    assert not tables.upsert(as_slice(builders.endpoint_slice("10.0.0.2", name="other", labels=label)))
    assert tables.upsert(as_slice(builders.endpoint_slice("10.0.0.1", labels=label)))
    assert tables.read("ns1/svc1").slices == ()


@pytest.mark.parametrize("owner", [None, ""])
def test_a_slice_of_no_service_is_ignored(owner: str | None) -> None:
    tables = _filled()
    assert not tables.upsert(as_slice(builders.endpoint_slice("10.0.0.2", name="stray", service=owner)))
    assert tables.upsert(as_slice(builders.endpoint_slice("10.0.0.1", name="svc1-1", service=owner)))
    assert _dirty(tables) == ["ns1/svc1"]
    assert tables.read("ns1/svc1").slices == ()


def test_a_slice_of_names_is_ignored() -> None:
    tables = _filled()
    names = builders.endpoint_slice(
        {"addresses": ["pod.example.org"]}, name="svc1-names", address_type="FQDN"
    )
    before = tables.changes(Kind.ENDPOINT_SLICE)
    assert not tables.upsert(as_slice(names))
    assert tables.changes(Kind.ENDPOINT_SLICE) == before
    assert _dirty(tables) == []
    assert len(tables.read("ns1/svc1").slices) == 1


def test_a_slice_that_moves_makes_both_services_dirty() -> None:
    tables = _filled()
    moved = as_slice(builders.endpoint_slice("10.0.0.1", name="svc1-1", service="svc2"))
    assert tables.upsert(moved)
    assert _dirty(tables) == ["ns1/svc1", "ns1/svc2"]
    assert tables.read("ns1/svc1").slices == ()
    assert tables.read("ns1/svc2").slices == (moved,)
    assert tables.delete(Kind.ENDPOINT_SLICE, "ns1/svc1-1")
    assert tables.read("ns1/svc2").slices == ()


def test_slices_are_read_in_the_order_of_their_names() -> None:
    tables = Tables()
    for name in ("c", "a", "b"):
        tables.upsert(as_slice(builders.endpoint_slice("10.0.0.1", name=name)))
    assert [s.metadata.name for s in tables.read("ns1/svc1").slices] == ["a", "b", "c"]


def test_the_node() -> None:
    tables = _filled()
    node = Node(NodeMeta("node1"))
    assert tables.upsert(node)
    assert not tables.upsert(node)
    before = tables.revision
    assert not tables.delete(Kind.NODE, "node2")
    assert tables.replace(Kind.NODE, [])
    assert tables.node is None
    assert tables.revision > before
    assert len(tables.pending) == 0
    tables.touch_all()
    assert _dirty(tables) == ["ns1/svc1", "ns1/svc2"]


_EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["service", "slice", "drop service", "drop slice", "commit", "read", "relist"]),
        st.integers(1, 3),
        st.integers(1, 3),
    ),
    max_size=40,
)


@given(_EVENTS)
@settings(max_examples=examples(150), deadline=None)
def test_whatever_happens_what_is_clean_was_committed_as_it_is(events: list[tuple[str, int, int]]) -> None:
    """The invariant behind "a change is never lost": a clean service equals what was last committed of it."""
    tables = Tables()
    committed: dict[str, ServiceInput] = {}
    in_flight: list[ServiceInput] = []
    for what, one, two in events:
        if what == "service":
            tables.upsert(as_service(builders.service(f"svc{one}", ip=f"10.96.0.{two}")))
        elif what == "slice":
            tables.upsert(as_slice(builders.endpoint_slice("10.0.0.1", name=f"x{one}", service=f"svc{two}")))
        elif what == "drop service":
            tables.delete(Kind.SERVICE, f"ns1/svc{one}")
        elif what == "drop slice":
            tables.delete(Kind.ENDPOINT_SLICE, f"ns1/x{one}")
        elif what == "relist":
            tables.replace(Kind.SERVICE, [as_service(builders.service(f"svc{one}", ip=f"10.96.0.{two}"))])
        elif what == "read":
            in_flight = tables.dirty()
        else:
            tables.commit(in_flight)
            committed |= {each.key: each for each in in_flight}
            in_flight = []
    dirty = set(_dirty(tables))
    for key in {f"ns1/svc{n}" for n in range(1, 4)} - dirty:
        now = msgspec.structs.replace(tables.read(key), revision=0)
        nothing = ServiceInput(key, 0, None, ())
        assert now == msgspec.structs.replace(committed.get(key, nothing), revision=0)


def cidr(name: str, *cidrs: str) -> ServiceCIDR:
    return ServiceCIDR(metadata=ServiceCIDRMeta(name=name), spec=ServiceCIDRSpec(cidrs=cidrs))


def ranges(tables: Tables) -> tuple[str, ...]:
    return tables.service_ranges


def test_service_cidrs_are_kept_by_name_and_touch_no_service() -> None:
    tables = Tables()
    tables.replace(Kind.SERVICE, [as_service(builders.service())])
    tables.commit(tables.dirty())
    assert tables.replace(
        Kind.SERVICE_CIDR, [cidr("b", "fd00::1/112", "10.96.0.0/16"), cidr("a", "10.1.0.0/16")]
    )
    assert ranges(tables) == ("10.1.0.0/16", "10.96.0.0/16", "fd00::/112")
    before = tables.service_ranges
    assert not tables.upsert(cidr("c", "10.1.0.0/16", "nonsense"))
    assert not tables.delete(Kind.SERVICE_CIDR, "a")
    assert tables.service_ranges is before
    assert tables.delete(Kind.SERVICE_CIDR, "c")
    assert tables.upsert(cidr("b"))
    assert not tables.dirty()
    tables.replace(Kind.SERVICE_CIDR, [cidr("d", "10.2.0.0/16")], unreadable=["b"])
    assert not tables.replace(Kind.SERVICE_CIDR, [], unreadable=["d"])
    assert ranges(tables) == ("10.2.0.0/16",)
    assert tables.replace(Kind.SERVICE_CIDR, [])
    assert ranges(tables) == ()
