"""The socket table of one family: what is written and refused, and what others changed by hand."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import pytest

from kproxy.addresses import Family
from kproxy.backends.core.base import Difference, ServiceState
from kproxy.backends.core.retries import FIRST_RETRY
from kproxy.backends.ebpf.config import SocketConfig
from kproxy.backends.ebpf.dryrun import DryRunSocketTable
from kproxy.backends.ebpf.render import frontend_key
from kproxy.backends.ebpf.shared import SharedTable
from tests.backends.ebpf_node import LARGE, EbpfNode, pods, with_service
from tests.builders import service

WEB = "10.96.0.1:80/TCP"
KEY = frontend_key("10.96.0.1", 80, Family.IPV4)


def _two_services() -> EbpfNode:
    node = EbpfNode(sizes=LARGE)
    node.put(service(), pods(1, 2))
    node.put(service("svc2", "10.96.0.2"), pods(3, name="svc2"))
    node.done()
    return node


def _drifts(node: EbpfNode) -> list[tuple[str, str, Difference]]:
    return [(each.kind, each.name, each.found) for each in node.backend.check(full=True)]


@pytest.mark.parametrize(
    ("before", "after", "written"),
    [
        ((1, 2), (1, 3), {"frontends": 1, "slots": 1}),
        ((1, 2, 3), (1, 2), {"frontends": 1, "slots": 1}),
        ((1, 2, 3), (2, 3), {"frontends": 1, "slots": 3}),
        ((1, 2, 3, 4, 5), (1, 2, 3, 4, 5, 6), {"frontends": 1, "slots": 1}),
        ((1, 2), (1, 2, 3), {"frontends": 1, "slots": 3}),
        ((1, 2), (), {"frontends": 1}),
        ((), (1, 2), {"frontends": 1, "slots": 2}),
    ],
    ids=["another", "one less", "the first goes", "one more", "beyond the block", "none left", "first"],
)
def test_a_change_writes_what_differs(
    before: tuple[int, ...], after: tuple[int, ...], written: dict[str, int]
) -> None:
    node = with_service(*before)
    node.put(None, pods(*after))
    assert node.done().changes == written
    assert node.state() == ({WEB: [f"10.1.0.{pod}:8080" for pod in after]} if after else {})


def test_a_change_of_endpoints_keeps_the_block_and_the_counter() -> None:
    node = with_service(1, 2, 3, 4)
    (before,) = node.table.frontends(Family.IPV4).values()
    node.put(None, pods(1, 2, 5, 6))
    node.done()
    assert list(node.table.frontends(Family.IPV4).values()) == [before]
    node.put(None, pods(5, 6))
    node.done()
    (after,) = node.table.frontends(Family.IPV4).values()
    first, _, counter = struct.unpack("=III", before)
    assert after == struct.pack("=III", first, 2, counter)


def test_what_leaves_the_table_leaves_it_before_anything_is_written() -> None:
    node = _two_services()
    states: list[set[str]] = []
    node.table.faults.after = lambda: states.append(node.served())
    node.put(service("svc3", "10.96.0.3"), pods(7, name="svc3"))
    node.put(None, pods())
    node.done()
    assert WEB not in states[0]
    assert node.served() == {"10.96.0.2:80/TCP", "10.96.0.3:80/TCP"}


def test_a_service_without_memory_is_degraded_and_out_of_the_table_and_others_are_served() -> None:
    node = _two_services()
    node.table.faults.refuse = lambda text: text == WEB
    node.put(None, pods(*range(1, 9)))
    node.put(None, pods(4, 5, name="svc2"))
    report = node.sync()
    assert report.error is None
    assert report.failed == {}
    assert report.degraded == {"ns1/svc1": "not translated at the socket: no memory"}
    assert report.refusals == 1
    assert node.state() == {"10.96.0.2:80/TCP": ["10.1.0.4:8080", "10.1.0.5:8080"]}


def test_what_a_batch_wrote_before_it_failed_is_not_left_behind() -> None:
    node = EbpfNode(sizes=LARGE)
    for number in range(1, 41):
        node.put(service(f"svc{number}", f"10.96.0.{number}"), pods(number, name=f"svc{number}"))
    seen: list[str] = []

    def refuse(text: str) -> bool:
        """The last one of the batch, and then the first one, which the batch has written."""
        seen.append(text)
        return len(seen) == 40 or (len(seen) > 40 and text == seen[0])

    node.table.faults.refuse = refuse
    report = node.sync()
    assert len(report.degraded) == 1
    assert node.state().keys() == set(seen) - {seen[0]}
    assert _drifts(node) == []


def test_a_refused_service_is_tried_again_by_itself() -> None:
    node = _two_services()
    node.table.faults.refuse = lambda text: text == WEB
    node.put(None, pods(*range(1, 9)))
    report = node.sync()
    assert report.retry_in is not None
    assert report.retry_in <= FIRST_RETRY
    node.table.faults.refuse = lambda _: False
    node.now += FIRST_RETRY
    report = node.done()
    assert report.services == {}
    assert WEB in node.served()


def test_a_refused_service_that_changes_is_written_at_once() -> None:
    node = _two_services()
    node.table.faults.refuse = lambda text: text == WEB
    node.put(None, pods(*range(1, 9)))
    node.sync()
    node.table.faults.refuse = lambda _: False
    node.put(None, pods(9))
    assert node.done().services == {}
    assert node.state()[WEB] == ["10.1.0.9:8080"]


@pytest.mark.parametrize("after", [(1, 2, 3, 4), (1,)], ids=["more", "fewer"])
def test_a_service_whose_number_of_slots_is_refused_leaves_no_stale_endpoint(after: tuple[int, ...]) -> None:
    node = with_service(1, 2, 3)
    node.table.faults.refuse = lambda text: text == WEB
    node.put(None, pods(*after))
    assert list(node.sync().degraded) == ["ns1/svc1"]
    assert node.state() == {}
    assert {each.state for each in node.sync().services.values()} == {ServiceState.DEGRADED}


def test_maps_that_cannot_grow_keep_what_fits_and_name_the_rest() -> None:
    node = with_service(1)
    node.table.faults.growth = True
    node.put(service("svc2", "10.96.0.2"), pods(2, name="svc2"))
    report = node.sync()
    reason = report.degraded["ns1/svc2"]
    assert "the maps are full" in reason
    assert "no memory" in reason
    assert node.state() == {WEB: ["10.1.0.1:8080"]}
    node.table.faults.growth = False
    node.backend.retry()
    assert node.done().services == {}
    assert len(node.state()) == 2


def test_a_map_that_others_filled_grows() -> None:
    node = _two_services()
    strangers = {bytes([9, 9, 9, n, 0, 80, 0, 0]): struct.pack("=III", 0, 1, 0) for n in range(62)}
    node.table.write_frontends(Family.IPV4, strangers)
    node.put(service("svc3", "10.96.0.3"), pods(7, name="svc3"))
    node.done()
    assert node.state()["10.96.0.3:80/TCP"] == ["10.1.0.7:8080"]
    assert node.table.sizes.ipv4.frontends > LARGE.ipv4.frontends
    assert {found for _, _, found in _drifts(node)} == {Difference.UNEXPECTED}
    node.done()
    assert len(node.state()) == 3


def _delete(node: EbpfNode) -> None:
    node.table.delete_frontends(Family.IPV4, [KEY])


def _other_count(node: EbpfNode) -> None:
    first, _, counter = struct.unpack("=III", node.table.frontends(Family.IPV4)[KEY])
    node.table.write_frontends(Family.IPV4, {KEY: struct.pack("=III", first, 1, counter)})


def _outside(node: EbpfNode) -> None:
    node.table.write_frontends(Family.IPV4, {KEY: struct.pack("=III", 1 << 20, 1, 0)})


def _of_another(node: EbpfNode) -> None:
    other = node.table.frontends(Family.IPV4)[frontend_key("10.96.0.2", 80, Family.IPV4)]
    node.table.write_frontends(Family.IPV4, {KEY: other})


def _nothing(node: EbpfNode) -> None:
    node.table.write_frontends(Family.IPV4, {KEY: bytes(12)})


def _slot(node: EbpfNode) -> None:
    first, _, _ = struct.unpack("=III", node.table.frontends(Family.IPV4)[KEY])
    node.table.slots(Family.IPV4)[first] = 0


def _stranger(node: EbpfNode) -> None:
    value = node.table.frontends(Family.IPV4)[KEY]
    node.table.write_frontends(Family.IPV4, {frontend_key("10.96.0.9", 80, Family.IPV4): value})


@pytest.mark.parametrize(
    ("by_hand", "name", "found"),
    [
        (_delete, WEB, Difference.MISSING),
        (_other_count, WEB, Difference.MODIFIED),
        (_outside, WEB, Difference.MODIFIED),
        (_nothing, WEB, Difference.MODIFIED),
        (_slot, WEB, Difference.MODIFIED),
        (_stranger, "10.96.0.9:80/TCP", Difference.UNEXPECTED),
    ],
)
def test_what_others_change_is_named_and_repaired(by_hand: Any, name: str, found: Difference) -> None:
    node = _two_services()
    good = node.state()
    by_hand(node)
    assert _drifts(node) == [("frontend", name, found)]
    node.done()
    assert node.state() == good
    assert _drifts(node) == []


def test_a_frontend_with_the_slots_of_another_is_repaired_and_the_other_kept() -> None:
    node = _two_services()
    good = node.state()
    _of_another(node)
    assert ("frontend", WEB, Difference.MODIFIED) in _drifts(node)
    node.done()
    assert node.state() == good
    assert _drifts(node) == []


def test_drift_says_which_service_and_which_slot() -> None:
    node = with_service(1, 2)
    first, _, _ = struct.unpack("=III", node.table.frontends(Family.IPV4)[KEY])
    memory = node.table.slots(Family.IPV4)
    memory[first + 1] = memory[first]
    (drift,) = node.backend.check(full=True)
    assert str(drift) == (
        f"frontend {WEB} is modified: of ns1/svc1: slot 1 has 10.1.0.1:8080 instead of 10.1.0.2:8080"
    )


def test_quick_checks_read_the_maps_from_time_to_time() -> None:
    node = _two_services()
    assert node.backend.check() == ()
    _delete(node)
    assert node.backend.check() == ()
    node.now += node.config.drift_check_interval
    assert [each.name for each in node.backend.check()] == [WEB]


def test_changes_by_others_before_a_failed_sync_are_named_and_own_writes_are_not() -> None:
    node = _two_services()
    _slot(node)
    node.put(None, pods(4, 5, 6, name="svc2"))
    node.table.faults.lose_at = 0
    assert node.sync().error is not None
    node.table.faults.lose_at = None
    assert [each.name for each in node.done().drifts] == [WEB]
    assert _drifts(node) == []


@pytest.mark.parametrize(
    "changed", [{"masquerade_all": True}, {"enabled": False}, {"local_addresses": frozenset({"10.96.0.1"})}]
)
def test_settings_that_keep_services_out_take_them_out_and_back(changed: dict[str, Any]) -> None:
    node = with_service(1)
    config = node.config
    node.backend.reconfigure(msgspec.structs.replace(config, **changed))
    node.done()
    assert node.state() == {}
    node.backend.reconfigure(config)
    node.done()
    assert node.state() == {WEB: ["10.1.0.1:8080"]}


def test_addresses_that_come_and_go_render_only_the_services_at_them() -> None:
    node = _two_services()
    sought: list[str] = []
    put = node.backend.operations.set_desired

    def watched(changes: Any, plans: Any) -> Any:
        sought.extend(plan.key for _, plan in changes)
        return put(changes, plans)

    node.backend.operations.set_desired = watched  # type: ignore[method-assign]
    addresses = frozenset({"10.96.0.2", "192.168.0.9"})
    node.backend.reconfigure(msgspec.structs.replace(node.config, local_addresses=addresses))
    node.done()
    assert sought == ["ns1/svc2"]
    assert list(node.state()) == [WEB]


def test_the_order_of_events_does_not_matter_while_two_services_want_one_frontend() -> None:
    states = []
    for order in ((1, 2), (2, 1)):
        node = EbpfNode(sizes=LARGE)
        plans = {}
        for number in (1, 2):
            single = EbpfNode(sizes=LARGE)
            single.put(service(f"svc{number}"), pods(number, name=f"svc{number}"))
            single.plan()
            plans[number] = single.plans[f"ns1/svc{number}"]
        node.backend.update([plans[number] for number in order])
        node.backend.sync()
        states.append(node.state())
        node.backend.update([msgspec.structs.replace(plans[1], ports=())])
        node.backend.sync()
        assert node.state() == {WEB: ["10.1.0.2:8080"]}
    assert states == [{WEB: ["10.1.0.1:8080"]}] * 2


def test_counts_are_those_of_the_table() -> None:
    node = _two_services()
    assert node.backend.counts() == {"frontends": 2, "slots": 3}
    node.drop("ns1/svc1")
    node.done()
    assert node.backend.counts() == {"frontends": 1, "slots": 1}


def test_a_dry_run_names_each_frontend_that_would_change() -> None:
    node = _two_services()
    dry = DryRunSocketTable(node.table.maps)
    other = EbpfNode(sizes=LARGE)
    other.put(service(), pods(1, 5))
    other.put(service("svc3", "10.96.0.3"), pods(6, 7, name="svc3"))
    other.plan()
    backend = type(node.backend)(
        Family.IPV4, SharedTable(dry, [Family.IPV4]), SocketConfig(Family.IPV4), lambda: 0.0, lambda _: None
    )
    backend.update(other.plans.values())
    assert backend.sync().error is None
    assert sorted(map(str, dry.changes())) == [
        "+ frontend 10.96.0.3:80/TCP (2 endpoints)",
        "- frontend 10.96.0.2:80/TCP",
        "~ frontend 10.96.0.1:80/TCP (lacks 1 endpoint and has 1 endpoint not wanted)",
    ]
    assert node.state()[WEB] == ["10.1.0.1:8080", "10.1.0.2:8080"]


def test_a_dry_run_of_a_first_start_adds_everything() -> None:
    dry = DryRunSocketTable(None)
    other = EbpfNode()
    for number in range(1, 40):
        other.put(service(f"svc{number}", f"10.96.0.{number}"), pods(number, name=f"svc{number}"))
    other.plan()
    shared = SharedTable(dry, [Family.IPV4])
    backend = type(other.backend)(Family.IPV4, shared, SocketConfig(Family.IPV4), lambda: 0.0, lambda _: None)
    backend.update(other.plans.values())
    backend.sync()
    assert len([each for each in dry.changes() if str(each).startswith("+")]) == 39
