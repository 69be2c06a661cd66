"""What is counted of changes, and when the time of their cause comes out again: with success, not before."""

import msgspec

from kproxy.state.decode import decode
from kproxy.state.kinds import Kind
from kproxy.state.slice_index import Trigger
from kproxy.state.tables import Changes, Tables
from kproxy.state.wire import EndpointSlice


def piece(name: str, *ips: str, at: str | None = None, family: str = "IPv4") -> EndpointSlice:
    annotations = {"endpoints.kubernetes.io/last-change-trigger-time": at} if at else {}
    decoded = decode(
        Kind.ENDPOINT_SLICE,
        msgspec.json.encode(
            {
                "metadata": {
                    "name": name,
                    "namespace": "ns",
                    "labels": {"kubernetes.io/service-name": "web"},
                    "annotations": {"other": "x", **annotations},
                },
                "addressType": family,
                "endpoints": [{"addresses": [ip]} for ip in ips],
            }
        ),
    )
    assert isinstance(decoded, EndpointSlice)
    return decoded


def test_the_trigger_comes_out_when_its_change_is_applied() -> None:
    tables = Tables()
    tables.upsert(piece("a", "10.0.0.1", at="T1"))
    tables.upsert(piece("b", "fd00::1", at="T2", family="IPv6"))
    assert tables.commit(tables.dirty()) == [Trigger("ns/a", "IPv4", "T1"), Trigger("ns/b", "IPv6", "T2")]
    assert tables.commit(tables.dirty()) == []


def test_a_change_that_is_still_pending_keeps_its_trigger() -> None:
    tables = Tables()
    tables.upsert(piece("a", "10.0.0.1", at="T1"))
    taken = tables.dirty()
    tables.upsert(piece("a", "10.0.0.2", at="T2"))
    assert tables.commit([]) == []
    assert tables.commit(taken) == [Trigger("ns/a", "IPv4", "T1")]
    assert tables.changes(Kind.ENDPOINT_SLICE) == Changes(2, 1)
    assert tables.commit(tables.dirty()) == [Trigger("ns/a", "IPv4", "T2")]
    assert tables.changes(Kind.ENDPOINT_SLICE) == Changes(2, 0)


def test_another_time_of_the_same_endpoints_is_no_change() -> None:
    tables = Tables()
    tables.upsert(piece("a", "10.0.0.1", at="T1"))
    tables.commit(tables.dirty())
    assert not tables.upsert(piece("a", "10.0.0.1", at="T2"))
    assert tables.dirty() == []
    assert tables.changes(Kind.ENDPOINT_SLICE) == Changes(1, 0)


def test_a_slice_that_goes_takes_its_trigger_along() -> None:
    tables = Tables()
    tables.upsert(piece("a", "10.0.0.1", at="T1"))
    tables.delete(Kind.ENDPOINT_SLICE, "ns/a")
    assert tables.commit(tables.dirty()) == []
    assert tables.changes(Kind.ENDPOINT_SLICE) == Changes(2, 0)


def test_changes_of_services_and_of_endpoints_are_counted_apart() -> None:
    tables = Tables()
    service = decode(Kind.SERVICE, b'{"metadata":{"name":"web","namespace":"ns"},"spec":{}}')
    tables.upsert(service)
    tables.upsert(service)
    tables.upsert(piece("a", "10.0.0.1"))
    assert tables.changes(Kind.SERVICE) == Changes(1, 1)
    assert tables.changes(Kind.ENDPOINT_SLICE) == Changes(1, 1)
    tables.touch_all()
    assert tables.changes(Kind.SERVICE) == Changes(1, 1)
    tables.commit(tables.dirty())
    assert tables.changes(Kind.SERVICE) == Changes(1, 0)
    assert tables.changes(Kind.ENDPOINT_SLICE) == Changes(1, 0)


def test_each_family_gives_out_its_own_triggers() -> None:
    tables = Tables()
    tables.upsert(piece("a", "10.0.0.1", at="T1"))
    tables.upsert(piece("b", "fd00::1", at="T2", family="IPv6"))
    tables.pending.take(["ns/web"], ["IPv4", "IPv6"])
    assert tables.pending.commit("IPv4", ()) == [Trigger("ns/a", "IPv4", "T1")]
    assert tables.changes(Kind.ENDPOINT_SLICE) == Changes(2, 1)
    assert tables.pending.commit("IPv6", ["ns/web"]) == []
    assert tables.pending.commit("IPv6", ()) == [Trigger("ns/b", "IPv6", "T2")]
    assert tables.changes(Kind.ENDPOINT_SLICE) == Changes(2, 0)


def test_a_family_that_never_applies_keeps_two_triggers_of_a_slice() -> None:
    tables = Tables()
    for number in range(100):
        tables.upsert(piece("a", f"fd00::{number:x}", at=f"T{number}", family="IPv6"))
        tables.upsert(piece("b", f"fd01::{number:x}", at=f"U{number}", family="IPv6"))
        tables.pending.take(tables.pending.noted(), ["IPv4", "IPv6"])
        assert tables.pending.commit("IPv4", ()) == []
    assert {each.text for each in tables.pending.commit("IPv6", ())} == {"T0", "T99", "U0", "U99"}
    assert len(tables.pending) == 0
