"""The ring of changes: what came, when each step was, and nothing that only repeats what is known."""

import re
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from kproxy.addresses import Family
from kproxy.agent.changes import SHOWN, Changes
from kproxy.agent.family_sync import FamilySync, SyncOutcome
from kproxy.backends.core.base import ServiceState, ServiceStatus, SyncReport
from kproxy.plan.model import ServicePlan
from kproxy.state.store import Arrival
from tests.builders import NODE, endpoint_slice, given, plan_of, service

EMPTY = ServicePlan("ns1/svc1", Family.IPV4)


def plan(*ips: str) -> ServicePlan:
    return plan_of(service(), endpoint_slice(*ips))


def outcome(
    after: ServicePlan, *before: ServicePlan | None, report: SyncReport | None = None, at: float = 100.0
) -> Mapping[Family, SyncOutcome]:
    """The outcome of a sync from `at` on that took 5 ms to plan and 10 ms in all."""
    known = dict.fromkeys([after.key] * len(before), before[0] if before else None)
    done = SyncOutcome(
        {after.key: after}, report or SyncReport(), 0.005, 0.005, known, at, at + 0.005, at + 0.01
    )
    return {Family.IPV4: done}


def arrived(at: float = 99.9, trigger: str = "") -> dict[str, Arrival]:
    return {"ns1/svc1": Arrival(at, {"IPv4": trigger} if trigger else {})}


def test_a_change_has_its_endpoints_and_the_times_of_its_steps() -> None:
    changes = Changes()
    changes.note(
        outcome(plan("10.0.0.1", "10.0.0.3"), plan("10.0.0.1", "10.0.0.2")),
        arrived(trigger="2026-01-01T00:00:00Z"),
    )
    (change,) = changes.after(0).changes
    assert (change.service, change.family) == ("ns1/svc1", Family.IPV4)
    assert (change.added, change.removed) == (("10.0.0.3:80",), ("10.0.0.2:80",))
    assert change.trigger == "2026-01-01T00:00:00Z"
    assert change.arrived is not None
    assert change.applied is not None
    steps = [change.taken, change.planned, change.applied]
    assert [round((each - change.arrived).total_seconds(), 4) for each in steps] == [0.1, 0.105, 0.11]
    assert "+10.0.0.3:80 -10.0.0.2:80" in change.line()
    assert "planned +105 ms, in the kernel +110 ms, cause 2026-01-01T00:00:00Z" in change.line()


def test_forgotten_flows_are_added_to_the_change_that_they_were_forgotten_for() -> None:
    changes = Changes(2)
    for number in range(1, 4):
        noted = changes.note(outcome(plan(f"10.0.0.{number}"), EMPTY), arrived())
        assert noted == {Family.IPV4: {"ns1/svc1": number}}
    assert changes.note(outcome(plan("10.0.0.3")), {}) == {}
    for flows in ({2: 3}, {2: 1, 3: 1}, {1: 5}):
        changes.forgot(flows)
    second, third = changes.after(0).changes
    assert (second.flows_forgotten, third.flows_forgotten) == (4, 1)
    assert second.applied is not None
    assert second.forgotten is not None
    assert second.forgotten > second.applied
    assert re.search(r"in the kernel \+110 ms, 4 flows forgotten \+\d+ ms", second.line())
    assert ", 1 flow forgotten +" in third.line()
    assert changes.latest("ns1/svc1", Family.IPV4) == third


def test_what_only_repeats_is_left_out() -> None:
    changes = Changes()
    same = plan("10.0.0.1")
    changes.note(outcome(same, same), {})
    changes.note(outcome(same), {})
    changes.note(outcome(EMPTY, None), arrived())
    failed = outcome(same, None, report=SyncReport(error="the kernel is gone"))
    changes.note(failed, arrived())
    assert changes.after(0).changes == ()
    changes.note(outcome(same, same), arrived())
    assert [each.added for each in changes.after(0).changes] == [()]


def test_a_change_of_one_family_is_none_of_the_other() -> None:
    changes = Changes()
    four = outcome(plan("10.0.0.1"), plan("10.0.0.2"))
    six = outcome(plan("10.0.0.1"), plan("10.0.0.1"))
    changes.note({**four, Family.IPV6: six[Family.IPV4]}, arrived())
    assert [each.family for each in changes.after(0).changes] == [Family.IPV4]


def test_a_refusal_is_noted_once_and_its_recovery_later() -> None:
    changes = Changes()
    refused = {"ns1/svc1": ServiceStatus(ServiceState.QUARANTINED, "too large")}
    wanted = plan("10.0.0.1")
    changes.note(outcome(wanted, None, report=SyncReport(services=refused)), arrived())
    changes.note(outcome(wanted, report=SyncReport(services=refused)), arrived())
    (change,) = changes.after(0).changes
    assert (change.refused, change.applied) == ("too large", None)
    assert "REFUSED: too large" in change.line()
    changes.note(outcome(wanted, None, at=200.0), arrived())
    assert [each.applied is None for each in changes.after(0).changes] == [True, False]


class RefusingBackend:
    """Refuses its only service as often as it is set."""

    refusals = 0

    def update(self, plans: object) -> None:
        """Take plans."""

    def sync(self, budget: float | None = None) -> SyncReport:
        self.refusals -= 1
        refused = {"ns1/svc1": ServiceStatus(ServiceState.QUARANTINED, "too large")}
        return SyncReport(services=refused if self.refusals >= 0 else {})


def test_retries_of_a_refused_change_are_not_noted_until_one_works() -> None:
    backend, changes = RefusingBackend(), Changes()
    backend.refusals = 3
    sync = FamilySync(Family.IPV4, cast("Any", backend), lambda _family: None)
    sync.plan([given(service(), endpoint_slice("10.0.0.1"))], NODE)
    for _ in range(5):
        changes.note({Family.IPV4: sync.apply()}, arrived())
    assert [each.refused for each in changes.after(0).changes] == ["too large", ""]
    assert [each.added for each in changes.after(0).changes] == [("10.0.0.1:80",)] * 2


def test_the_ring_is_bounded_and_numbers_go_on() -> None:
    changes = Changes(3)
    for number in range(5):
        changes.note(outcome(plan(f"10.0.0.{number + 1}"), EMPTY), arrived())
    found = changes.after(0)
    assert ([each.number for each in found.changes], found.last) == ([3, 4, 5], 5)
    assert [each.number for each in changes.after(4).changes] == [5]
    assert changes.after(0, "ns1/other").changes == ()
    last = changes.latest("ns1/svc1", Family.IPV4)
    assert last is not None
    assert last.number == 5
    assert changes.latest("ns1/svc1", Family.IPV6) is None


def test_a_first_sync_of_many_services_fills_the_ring_only() -> None:
    changes = Changes(2)
    plans = {f"ns1/s{n}": msgspec.structs.replace(plan("10.0.0.1"), key=f"ns1/s{n}") for n in range(5)}
    before: dict[str, ServicePlan | None] = dict.fromkeys(plans)
    changes.note({Family.IPV4: SyncOutcome(plans, SyncReport(), 0, 0, before, 1, 1, 1)}, {})
    assert [each.service for each in changes.after(0).changes] == ["ns1/s3", "ns1/s4"]


def test_a_large_change_names_some_endpoints_and_counts_the_others() -> None:
    changes = Changes()
    changes.note(outcome(plan(*(f"10.0.1.{n}" for n in range(1, SHOWN + 6))), EMPTY), arrived())
    (change,) = changes.after(0).changes
    assert (len(change.added), change.more) == (SHOWN, 5)
    assert "and 5 more" in change.line()
