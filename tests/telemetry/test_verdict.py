"""The one definition of health: which facts lead to which state, with which reasons."""

import msgspec
import pytest

from kproxy.telemetry.verdict import (
    WATCH_TOLERANCE,
    Cause,
    Facts,
    FamilyFacts,
    Outage,
    State,
    WatchFacts,
    evaluate,
    in_time,
)

PATIENCE = 60.0
IPV4 = FamilyFacts("IPv4", synced=True, services=10)
IPV6 = FamilyFacts("IPv6", synced=True, services=10)
FINE = Facts(age=1000.0, longest_wait=PATIENCE, families=(IPV4, IPV6), watches=(WatchFacts("Service"),))
BROKEN = Outage(3.0, "nft ended with signal 11")


def ipv6(**facts: object) -> Facts:
    return msgspec.structs.replace(FINE, families=(IPV4, msgspec.structs.replace(IPV6, **facts)))


def changed(**facts: object) -> Facts:
    return msgspec.structs.replace(FINE, **facts)


def down(seconds: float, kind: str = "Service") -> WatchFacts:
    return WatchFacts(kind, Outage(seconds, "connection refused"))


def test_an_idle_agent_is_healthy() -> None:
    verdict = evaluate(FINE)
    assert (verdict.state, verdict.live, verdict.conditions) == (State.HEALTHY, True, ())


@pytest.mark.parametrize(
    ("facts", "state", "live", "causes"),
    [
        (changed(missing_lists=("Service", "Node")), State.STARTING, True, [Cause.LISTS_INCOMPLETE]),
        (ipv6(synced=False, behind=5.0), State.STARTING, True, [Cause.NOT_SYNCED]),
        (
            ipv6(synced=False, behind=PATIENCE + 1),
            State.FAILING,
            False,
            [Cause.NOT_SYNCED, Cause.CHANGES_LATE],
        ),
        (ipv6(synced=False, failing=BROKEN, behind=1.0), State.FAILING, True, [Cause.SYNC_FAILING]),
        (ipv6(failing=BROKEN, behind=3.0), State.FAILING, True, [Cause.SYNC_FAILING]),
        (
            ipv6(failing=BROKEN, behind=PATIENCE + 1),
            State.FAILING,
            False,
            [Cause.SYNC_FAILING, Cause.CHANGES_LATE],
        ),
        (ipv6(behind=PATIENCE), State.HEALTHY, True, []),
        (ipv6(behind=PATIENCE + 1), State.FAILING, False, [Cause.CHANGES_LATE]),
        (ipv6(refused=9), State.HEALTHY, True, []),
        (ipv6(refused=10), State.FAILING, True, [Cause.ALL_REFUSED]),
        (ipv6(refused=1, services=1), State.HEALTHY, True, []),
        (ipv6(refused=2, services=2), State.FAILING, True, [Cause.ALL_REFUSED]),
        (ipv6(refused=0, services=0), State.HEALTHY, True, []),
        (ipv6(drifted=3), State.DEGRADED, True, [Cause.DRIFT_NOT_REPAIRED]),
        (ipv6(returning=("chain A", "chain B")), State.DEGRADED, True, [Cause.DRIFT_NOT_REPAIRED]),
        (ipv6(uncompared=BROKEN), State.DEGRADED, True, [Cause.COMPARISON_FAILING]),
        (changed(watches=(down(WATCH_TOLERANCE - 0.1),)), State.HEALTHY, True, []),
        (changed(watches=(down(WATCH_TOLERANCE),)), State.DEGRADED, True, [Cause.WATCH_DOWN]),
        (
            changed(watches=(down(8.0), down(9.0, "Node"))),
            State.DEGRADED,
            True,
            [Cause.WATCH_DOWN],
        ),
        (changed(watches=(WatchFacts("Service", Outage(59.0, "")),)), State.HEALTHY, True, []),
        (
            changed(watches=(WatchFacts("Service", Outage(60.0, "")),)),
            State.DEGRADED,
            True,
            [Cause.WATCH_DOWN],
        ),
        (changed(mode_refused=BROKEN), State.DEGRADED, True, [Cause.MODE_REFUSED]),
        (changed(policy_gaps=("no br_netfilter",)), State.DEGRADED, True, [Cause.POLICY_GAP]),
        (changed(setting_refused=BROKEN), State.DEGRADED, True, [Cause.SETTING_REFUSED]),
        (changed(configuration_rejected=BROKEN), State.DEGRADED, True, [Cause.CONFIGURATION_REJECTED]),
        (changed(socket_table=BROKEN), State.HEALTHY, True, [Cause.SOCKET_TABLE]),
        (
            changed(socket_table=BROKEN, mode_refused=BROKEN),
            State.DEGRADED,
            True,
            [Cause.MODE_REFUSED, Cause.SOCKET_TABLE],
        ),
        (
            changed(missing_lists=("Service",), watches=(down(30.0),)),
            State.STARTING,
            True,
            [Cause.LISTS_INCOMPLETE, Cause.WATCH_DOWN],
        ),
    ],
)
def test_each_trouble_has_its_state(facts: Facts, state: State, live: bool, causes: list[Cause]) -> None:
    verdict = evaluate(facts)
    assert (verdict.state, verdict.live, list(verdict.causes)) == (state, live, causes)
    assert (verdict.state is State.HEALTHY) == all(each.state is State.HEALTHY for each in causes)


def test_each_cause_has_a_case_above() -> None:
    marks = test_each_trouble_has_its_state.pytestmark  # type: ignore[attr-defined]
    assert {cause for case in marks[0].args[1] for cause in case[3]} == set(Cause)


def test_messages_name_the_family_and_the_reason() -> None:
    facts = ipv6(failing=BROKEN)
    (condition,) = evaluate(facts).conditions
    assert condition.message == "IPv6: the last sync failed: nft ended with signal 11"
    assert (condition.subject, condition.seconds) == ("IPv6", 3.0)
    waiting = changed(families=(FamilyFacts("IPv4", synced=False, behind=1.0),), waits_for="pod CIDRs")
    assert "pod CIDRs" in evaluate(waiting).conditions[0].message
    (again,) = evaluate(ipv6(returning=("chain A", "chain B"))).conditions
    assert "chain A and 1 more" in again.message


def test_a_change_may_wait_for_its_time_and_no_longer() -> None:
    assert [in_time(behind, 60.0) for behind in (None, 0.0, 60.0, 60.1)] == [True, True, True, False]
