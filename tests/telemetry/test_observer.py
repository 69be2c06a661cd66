"""What the run loop's reports become: numbers, a status, notices for operators."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest
import structlog.testing

from kproxy.addresses import Family
from kproxy.backends.core.base import (
    Difference,
    Drift,
    ServiceState,
    ServiceStatus,
    SyncReport,
    quarantined,
)
from kproxy.plan.model import PortPlan, Protocol, ServicePlan
from kproxy.state.problems import Problem
from kproxy.state.slice_index import Trigger
from kproxy.telemetry import series
from kproxy.telemetry.events import Notice, Reason
from kproxy.telemetry.metrics import Distribution, Metrics
from kproxy.telemetry.observer import SyncObserver
from kproxy.telemetry.series import Series

IPV4 = Family.IPV4
LOCAL = PortPlan("ns/a", Protocol.TCP, "10.0.0.1", 80, internal_local=True, has_endpoints=True)
CONFLICT = Problem("Service ns/a", "spec.externalIPs", '"1.2.3.4"', "already belongs to ns/b", conflict=True)
DEFECT = Problem("Service ns/a", "spec.externalIPs", '"x"', "not an address")


class World:
    def __init__(self) -> None:
        self.metrics = Metrics()
        self.notices: list[Notice] = []
        self.observer = SyncObserver(self.metrics, self.notices.append)
        self.observer.begin([IPV4])

    def sync(
        self,
        plans: Mapping[str, ServicePlan] | None = None,
        *,
        failed: Mapping[str, str] | None = None,
        **report: object,
    ) -> None:
        made = SyncReport(quarantined(failed or {}), **report)  # type: ignore[arg-type]
        self.observer.synced(IPV4, made, plans or {}, 0.001, 0.002)

    def value(self, wanted: Series, *labels: str) -> float:
        for sample in self.metrics.samples():
            if (sample.series, sample.labels) == (wanted, labels):
                assert not isinstance(sample.value, Distribution)
                return sample.value
        return 0.0

    def observed(self, wanted: Series, *labels: str) -> int:
        return sum(
            sum(sample.value.counts)
            for sample in self.metrics.samples()
            if (sample.series, sample.labels) == (wanted, labels) and isinstance(sample.value, Distribution)
        )


@pytest.fixture
def world() -> World:
    return World()


def test_a_sync_is_timed_and_its_writes_are_counted(world: World) -> None:
    world.sync(full=True, changes={"rules": 7, "restores": 2}, rules={"nat": 5, "filter": 2})
    world.sync(changes={"rules": 1}, rules={"nat": 1})
    assert world.observed(series.SYNC, "IPv4") == 2
    assert world.observed(series.SYNC_FULL, "IPv4") == 1
    assert world.observed(series.SYNC_PARTIAL, "IPv4") == 1
    (timed,) = (sample.value for sample in world.metrics.samples() if sample.series == series.SYNC)
    assert isinstance(timed, Distribution)
    assert timed.sum == pytest.approx(2 * (0.001 + 0.002))
    assert world.value(series.WRITES, "IPv4", "rules") == 8
    assert world.value(series.RULES_LAST, "nat", "IPv4") == 1
    assert world.value(series.RULES_LAST, "filter", "IPv4") == 0
    assert world.value(series.LAST_SYNC, "IPv4") == pytest.approx(datetime.now(UTC).timestamp(), abs=60)


def test_a_sync_that_fails_is_no_sync_and_says_why(world: World) -> None:
    world.sync(error="locked: another program holds the lock")
    status = world.observer.family_status()[IPV4]
    assert status.last_success is None
    assert status.last_failure is not None
    assert status.last_failure.reason == "locked: another program holds the lock"
    assert world.value(series.LAST_SYNC, "IPv4") == 0
    assert world.value(series.SYNC_FAILURES, "IPv4") == 1
    assert world.value(series.RESTORE_FAILURES, "IPv4") == 1
    assert world.notices == []


def test_a_refused_service_is_logged_once_and_counted_at_each_try(world: World) -> None:
    world.sync(failed={"ns/a": "line 3 failed"})
    first = world.observer.family_status()[IPV4].quarantined
    world.sync(failed={"ns/a": "line 3 failed"})
    world.sync(failed={"ns/a": "line 3 failed"}, refusals=1)
    assert world.observer.family_status()[IPV4].quarantined == first
    assert [(each.service, each.reason) for each in first] == [("ns/a", "line 3 failed")]
    assert world.notices == [Notice(Reason.QUARANTINED, "ns/a", "IPv4: line 3 failed")]
    assert world.value(series.RESTORE_FAILURES, "IPv4") == 2
    assert world.value(series.QUARANTINED, "IPv4") == 1
    world.sync()
    assert world.value(series.QUARANTINED, "IPv4") == 0
    assert world.observer.family_status()[IPV4].quarantined == []


def test_failures_count_for_nftables_too_and_so_does_what_could_not_be_deleted(world: World) -> None:
    world.sync(error="refused: table is busy")
    world.sync(failed={"ns/a": "File exists"})
    world.sync(failed={"ns/a": "File exists"})
    assert world.value(series.NFTABLES_SYNC_FAILURES, "IPv4") == 2
    assert world.value(series.NFTABLES_CLEANUP_FAILURES, "IPv4") == 0
    world.sync(leftovers={"chain all-1": "busy", "chain all-2": "busy"}, kept=2)
    world.sync(leftovers={"chain all-1": "busy", "chain all-2": "busy"})
    assert world.value(series.NFTABLES_CLEANUP_FAILURES, "IPv4") == 1


def test_leftovers_are_in_the_status_and_in_a_number_and_are_no_services(world: World) -> None:
    left = {f"virtual server TCP fd00::{n} port 80": "device busy" for n in (1, 2)}
    with structlog.testing.capture_logs() as told:
        for _ in range(2):
            world.sync(leftovers=left)
    status = world.observer.family_status()[IPV4]
    assert status.leftovers == left
    assert status.quarantined == []
    assert world.value(series.LEFTOVERS, "IPv4") == 2
    assert world.value(series.QUARANTINED, "IPv4") == 0
    assert world.notices == []
    lines = [(line["object"], line["reason"]) for line in told if line["event"] == "removal_refused"]
    assert lines == sorted(left.items())
    world.sync()
    assert world.observer.family_status()[IPV4].leftovers == {}


@pytest.mark.parametrize(
    ("leftover", "event", "chain"),
    [
        ("chain nat/KUBE-SVC-A", "stale_chain_delete_failed", "KUBE-SVC-A"),
        ("chain cluster-all-1", "chain_delete_failed", "cluster-all-1"),
    ],
)
def test_a_chain_that_cannot_be_deleted_is_logged_once(
    world: World, leftover: str, event: str, chain: str
) -> None:
    with structlog.testing.capture_logs() as told:
        for _ in range(2):
            world.sync(leftovers={leftover: "in use"})
    assert [(line["chain"], line["reason"]) for line in told if line["event"] == event] == [(chain, "in use")]


def test_what_becomes_of_a_service_is_logged_once_in_the_same_words_in_every_mode(world: World) -> None:
    degraded = {"ns/b": ServiceStatus(ServiceState.DEGRADED, "no scheduler sh")}
    with structlog.testing.capture_logs() as told:
        for _ in range(2):
            world.observer.synced(
                IPV4, SyncReport(quarantined({"ns/a": "no such target"}) | degraded), {}, 0.0, 0.0
            )
        world.sync(changes={"rules": 1})
    lines = [(line["event"], line.get("service"), line.get("reason")) for line in told]
    assert [line for line in lines if line[0].startswith("service_")] == [
        ("service_quarantined", "ns/a", "no such target"),
        ("service_degraded", "ns/b", "no scheduler sh"),
        ("service_recovered", "ns/a", None),
    ]
    assert [line["rules"] for line in told if line["event"] == "synced"] == [1]


def test_drift_is_logged_as_text_joined_by_semicolons(world: World) -> None:
    with structlog.testing.capture_logs() as told:
        world.observer.drifted(IPV4, DRIFTS)
    (line,) = told
    assert (line["event"], line["objects"]) == ("drift_found", 2)
    assert line["first"] == "chain nat/A is missing; chain nat/B is missing"


def test_local_policies_without_local_endpoints_are_counted(world: World) -> None:
    plan = ServicePlan("ns/a", IPV4, ports=(LOCAL, LOCAL))
    world.sync({"ns/a": plan})
    assert world.value(series.NO_LOCAL_ENDPOINTS, "internal", "IPv4") == 2
    assert world.value(series.NO_LOCAL_ENDPOINTS, "external", "IPv4") == 0
    assert world.observer.family_status()[IPV4].services == 1
    world.sync({"ns/a": ServicePlan("ns/a", IPV4)}, error="nothing was applied")
    assert world.value(series.NO_LOCAL_ENDPOINTS, "internal", "IPv4") == 2
    world.sync({"ns/a": ServicePlan("ns/a", IPV4)})
    assert world.value(series.NO_LOCAL_ENDPOINTS, "internal", "IPv4") == 0
    assert world.observer.family_status()[IPV4].services == 0


@pytest.mark.parametrize(
    ("offset", "count"), [(1, 1), (-3600, 0)], ids=["changed since the start", "changed before the start"]
)
def test_programming_time_counts_from_the_change(world: World, offset: float, count: int) -> None:
    moment = datetime.now(UTC) + timedelta(seconds=offset)
    text = moment.strftime("%Y-%m-%dT%H:%M:%S.%f") + "789Z"
    world.observer.applied([Trigger("ns/a-x", "IPv4", text)])
    assert world.observed(series.PROGRAMMING, "IPv4") == count


def test_changes_of_a_family_that_is_not_served_here_take_no_time(world: World) -> None:
    text = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    world.observer.applied([Trigger("ns/a-x", "IPv6", text)])
    assert world.observed(series.PROGRAMMING, "IPv6") == 0


def test_a_trigger_time_that_cannot_be_read_is_named(world: World) -> None:
    with structlog.testing.capture_logs() as told:
        world.observer.applied([Trigger("ns/a-x", "IPv4", "yesterday")])
    assert [(line["object"], line["value"]) for line in told] == [("EndpointSlice ns/a-x", "yesterday")]
    assert world.observed(series.PROGRAMMING, "IPv4") == 0


def test_a_conflict_is_reported_once_for_both_families_and_again_when_it_returns(world: World) -> None:
    notice = Notice(Reason.CONFLICT, "ns/a", 'spec.externalIPs "1.2.3.4": already belongs to ns/b')
    world.observer.problems({"ns/a": (CONFLICT, DEFECT)})
    world.observer.problems({"ns/a": (DEFECT, CONFLICT)})
    assert world.notices == [notice]
    assert world.observer.known_problems() == sorted([CONFLICT, DEFECT])
    world.observer.problems({"ns/a": ()})
    assert world.observer.known_problems() == []
    world.observer.problems({"ns/a": (CONFLICT,)})
    assert world.notices == [notice, notice]


def test_an_address_that_is_not_served_is_reported_at_the_service(world: World) -> None:
    refused = Problem("Service ns/a", "spec.externalIPs[0]", '"127.0.0.1"', "is not served", refused=True)
    world.observer.problems({"ns/a": (refused, DEFECT)})
    world.observer.problems({"ns/a": (refused,)})
    told = 'spec.externalIPs[0] "127.0.0.1": is not served'
    assert world.notices == [Notice(Reason.REFUSED, "ns/a", told)]


def test_drift_counts_as_repaired_once_a_sync_got_through(world: World) -> None:
    world.observer.drifted(
        IPV4, [Drift("chain", "nat/A", Difference.MISSING), Drift("chain", "nat/B", Difference.MISSING)]
    )
    world.sync(error="missing: no iptables-restore")
    assert world.value(series.DRIFT_FOUND, "IPv4") == 2
    assert world.value(series.DRIFT_REPAIRED, "IPv4") == 0
    world.sync()
    drift = world.observer.family_status()[IPV4].drift
    assert (drift.found, drift.repaired) == (2, 2)
    assert drift.last_objects == ("chain nat/A is missing", "chain nat/B is missing")
    assert world.value(series.DRIFT_REPAIRED, "IPv4") == 2


def test_a_look_that_finds_nothing_wrong_is_as_good_as_a_sync(world: World) -> None:
    world.observer.confirmed(IPV4)
    assert world.value(series.LAST_SYNC, "IPv4") > 0
    assert world.observed(series.SYNC, "IPv4") == 0


DRIFTS = (Drift("chain", "nat/A", Difference.MISSING), Drift("chain", "nat/B", Difference.MISSING))


def test_a_failing_family_says_since_when_until_a_sync_succeeds(world: World) -> None:
    def failing_since() -> datetime | None:
        return world.observer.family_status()[IPV4].failing_since

    assert failing_since() is None
    world.sync(error="locked")
    first = failing_since()
    assert first is not None
    world.sync(error="locked again")
    assert failing_since() == first
    world.sync()
    assert failing_since() is None


def test_drift_is_outstanding_until_a_sync_succeeds(world: World) -> None:
    world.observer.drifted(IPV4, DRIFTS)
    assert world.observer.family_status()[IPV4].drift.outstanding == 2
    world.sync(error="locked")
    assert world.observer.family_status()[IPV4].drift.outstanding == 2
    world.sync()
    drift = world.observer.family_status()[IPV4].drift
    assert (drift.outstanding, drift.repaired, drift.found) == (0, 2, 2)


def test_drift_whose_repair_the_kernel_refuses_is_outstanding_until_it_does_not(world: World) -> None:
    world.sync(failed={"ns/old": "refused before"})
    world.observer.drifted(IPV4, DRIFTS)
    world.sync(failed={"ns/a": "no such target", "ns/old": "refused before"})
    assert world.value(series.DRIFT_REPAIRED, "IPv4") == 0
    world.sync(failed={"ns/a": "no such target"})
    assert world.observer.family_status()[IPV4].drift.outstanding == 2
    world.sync(failed={"ns/old": "refused again"})
    assert world.observer.family_status()[IPV4].drift.outstanding == 0
    assert world.value(series.DRIFT_REPAIRED, "IPv4") == 2


def test_drift_that_returns_after_each_repair_is_named_until_a_comparison_is_clean(world: World) -> None:
    def returning() -> tuple[str, ...]:
        return world.observer.family_status()[IPV4].drift.returning

    for _ in range(3):
        assert returning() == ()
        world.observer.compared(IPV4, clean=False)
        world.observer.drifted(IPV4, DRIFTS[:1])
        world.sync()
    assert returning() == ("chain nat/A",)
    world.observer.compared(IPV4, clean=True)
    assert returning() == ()


def test_a_comparison_that_fails_says_since_when_until_one_succeeds(world: World) -> None:
    world.observer.not_compared(IPV4, "cannot be read")
    first = world.observer.family_status()[IPV4].comparison_failure
    world.observer.not_compared(IPV4, "incompatible")
    then = world.observer.family_status()[IPV4].comparison_failure
    assert first is not None
    assert then is not None
    assert (then.at, then.reason) == (first.at, "incompatible")
    world.observer.compared(IPV4, clean=True)
    assert world.observer.family_status()[IPV4].comparison_failure is None
