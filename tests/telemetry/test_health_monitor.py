"""Changes of health are logged once, and what lasts becomes an Event at the Node."""

from structlog.testing import capture_logs

from kproxy.telemetry.events import Notice, Reason
from kproxy.telemetry.health_monitor import HealthMonitor
from kproxy.telemetry.verdict import Cause, Condition, State, Verdict

STARTING = Verdict(
    State.STARTING, live=True, conditions=(Condition(Cause.LISTS_INCOMPLETE, "", "no list", 1.0),)
)
HEALTHY = Verdict(State.HEALTHY, live=True)


def failing(message: str = "IPv4: the last sync failed: x", *, live: bool = True) -> Verdict:
    return Verdict(State.FAILING, live, (Condition(Cause.SYNC_FAILING, "IPv4", message, 1.0),))


def degraded(cause: Cause, message: str = "why") -> Verdict:
    return Verdict(State.DEGRADED, live=True, conditions=(Condition(cause, "", message, 1.0),))


def watched(*verdicts: Verdict) -> tuple[list[tuple[str, str, str, str]], list[Notice]]:
    """What is logged of these verdicts, one a look, and what becomes an Event."""
    coming = iter(verdicts)
    notices: list[Notice] = []
    monitor = HealthMonitor(lambda: next(coming), notices.append)
    with capture_logs() as logs:
        for _ in verdicts:
            monitor.check()
    told = [(line["log_level"], line["was"], line["state"], line["livez"]) for line in logs]
    assert {line["event"] for line in logs} <= {"health_changed"}
    return told, notices


def test_a_start_that_goes_well_is_two_lines() -> None:
    told, notices = watched(STARTING, STARTING, HEALTHY, HEALTHY)
    assert told == [("info", "starting", "starting", "200"), ("info", "starting", "healthy", "200")]
    assert notices == []


def test_what_lasts_is_an_event_once_and_again_after_it_was_over() -> None:
    told, notices = watched(
        HEALTHY, failing("a"), failing("b"), failing("c"), HEALTHY, failing("d"), failing("e")
    )
    assert [line[:3] for line in told] == [
        ("info", "starting", "healthy"),
        ("warning", "healthy", "failing"),
        ("info", "failing", "healthy"),
        ("warning", "healthy", "failing"),
    ]
    assert notices == [Notice(Reason.UNHEALTHY, "", "b"), Notice(Reason.UNHEALTHY, "", "e")]


def test_a_moment_is_no_event() -> None:
    assert watched(HEALTHY, failing(), HEALTHY, failing(), HEALTHY)[1] == []


def test_what_livez_says_is_a_change_of_its_own() -> None:
    told, _ = watched(failing(), failing(live=False))
    assert [line[3] for line in told] == ["200", "503"]


def test_a_rejected_configuration_has_a_reason_of_its_own_and_a_refused_mode_its_own_event() -> None:
    assert watched(*2 * [degraded(Cause.CONFIGURATION_REJECTED)])[1] == [
        Notice(Reason.CONFIGURATION, "", "why")
    ]
    assert watched(*2 * [degraded(Cause.MODE_REFUSED)])[1] == []
    assert watched(*2 * [degraded(Cause.DRIFT_NOT_REPAIRED)])[1] == [Notice(Reason.UNHEALTHY, "", "why")]
