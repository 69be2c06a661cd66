"""When syncs are due: at once when quiet, spaced by what they cost, backed off after failures."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy.agent.schedule import COALESCE_DELAY, COST_RESTS, FIRST_RETRY, PAUSE, SAVED_RESTS, Schedule
from kproxy.config.schema_modes import MIN_SYNC_PERIOD


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def schedule(clock: Clock) -> Schedule:
    return Schedule(1.0, 30.0, clock, random.Random(1))


def test_a_change_after_a_quiet_time_is_due_at_once(schedule: Schedule) -> None:
    assert schedule.due_in(changed=True) == 0
    assert schedule.due_in(changed=False) is None


def test_the_next_sync_waits_from_the_end_of_the_last(schedule: Schedule, clock: Clock) -> None:
    started = clock.now
    clock.now += 0.25
    schedule.succeeded(started)
    assert schedule.due_in(changed=True) == pytest.approx(1.0)
    clock.now += 1.0
    assert schedule.due_in(changed=True) == 0


@pytest.mark.parametrize(
    ("costs", "rest"),
    [
        pytest.param((4.0, 4.0), 4.0, id="every sync is slow"),
        pytest.param((4.0, 3.0), 3.0, id="a little quicker"),
        pytest.param((4.0,), 1.0, id="only the first"),
        pytest.param((0.1, 4.0), 1.0, id="one among quick ones"),
        pytest.param((4.0, 0.1), 1.0, id="not any more"),
    ],
)
def test_slow_syncs_are_followed_by_as_long_a_rest(
    schedule: Schedule, clock: Clock, costs: tuple[float, ...], rest: float
) -> None:
    for cost in costs:
        started = clock.now
        clock.now += cost
        schedule.succeeded(started)
    assert schedule.due_in(changed=True) == pytest.approx(rest)


def test_a_sync_that_wrote_nothing_hardly_delays_the_next(schedule: Schedule, clock: Clock) -> None:
    started = clock.now
    clock.now += 0.001
    schedule.succeeded(started, wrote=False)
    assert schedule.due_in(changed=True) == pytest.approx(0.01)
    started = clock.now
    clock.now += 2.0
    schedule.succeeded(started, wrote=False)
    assert schedule.due_in(changed=True) == pytest.approx(1.0)


def test_a_blocked_sync_makes_changes_wait_for_the_retry(schedule: Schedule, clock: Clock) -> None:
    schedule.failed(clock.now, blocked=True)
    waiting = schedule.due_in(changed=True)
    assert waiting is not None
    assert waiting == schedule.due_in(changed=False)
    assert not schedule.retry_due()
    clock.now += FIRST_RETRY
    assert schedule.retry_due()


def test_refused_services_do_not_hold_up_changes_of_others(schedule: Schedule, clock: Clock) -> None:
    for _ in range(10):
        schedule.failed(clock.now, blocked=False)
    clock.now += 1.0
    assert schedule.due_in(changed=True) == 0
    later = schedule.due_in(changed=False)
    assert later is None or later <= 30.0


def test_a_backend_that_decides_when_to_retry_is_obeyed_unless_nothing_works(
    schedule: Schedule, clock: Clock
) -> None:
    schedule.failed(clock.now, blocked=False, retry_in=250.0)
    assert schedule.due_in(changed=False) == pytest.approx(250.0)
    schedule.failed(clock.now, blocked=True, retry_in=250.0)
    due = schedule.due_in(changed=False)
    assert due is not None
    assert due <= 1.0


def test_backoff_grows_to_the_sync_period_and_ends_with_success(schedule: Schedule, clock: Clock) -> None:
    waits = []
    for _ in range(40):
        schedule.failed(clock.now, blocked=True)
        due = schedule.due_in(changed=True)
        assert due is not None
        waits.append(due)
    assert max(waits) <= 30.0
    assert max(waits[20:]) > 5.0
    assert schedule.failures == 40
    schedule.succeeded(clock.now)
    assert schedule.failures == 0
    assert schedule.due_in(changed=False) is None


@pytest.mark.parametrize(
    ("halved_ago", "due"),
    [
        pytest.param(None, 0.0, id="nothing is half"),
        pytest.param(0.0, COALESCE_DELAY, id="it has just come"),
        pytest.param(COALESCE_DELAY / 2, COALESCE_DELAY / 2, id="it has waited"),
        pytest.param(5.0, 0.0, id="its other half never came"),
    ],
)
def test_half_a_service_is_waited_for_a_moment(
    schedule: Schedule, clock: Clock, halved_ago: float | None, due: float
) -> None:
    since = None if halved_ago is None else clock.now - halved_ago
    assert schedule.due_in(changed=True, incomplete_since=since) == pytest.approx(due)


def test_half_a_service_waits_during_the_rest_rather_than_after_it(schedule: Schedule, clock: Clock) -> None:
    schedule.succeeded(clock.now)
    assert schedule.due_in(changed=True, incomplete_since=clock.now) == pytest.approx(1.0)


def test_a_retry_waits_for_no_half(schedule: Schedule, clock: Clock) -> None:
    schedule.failed(clock.now, blocked=True)
    clock.now += 60.0
    assert schedule.due_in(changed=True, incomplete_since=clock.now) == 0


def _rests(schedule: Schedule, clock: Clock, cost: float, count: int) -> list[float]:
    """Seconds from the end of each sync to the start of the next, when there is always something to do."""
    rests = []
    for _ in range(count):
        started = clock.now
        clock.now += cost
        schedule.succeeded(started)
        rest = schedule.due_in(changed=True)
        assert rest is not None
        rests.append(rest)
        clock.now += rest
    return rests


@pytest.mark.parametrize(
    ("period", "cost", "soon", "later"),
    [
        pytest.param(0.1, 0.0001, PAUSE, PAUSE, id="the default: nearly free"),
        pytest.param(0.1, 0.002, PAUSE, COST_RESTS * 0.002, id="the default: cheap"),
        pytest.param(0.1, 0.01, PAUSE, 0.1, id="the default: a tenth of it"),
        pytest.param(0.1, 0.05, 0.05, 0.1, id="half of the period"),
        pytest.param(0.1, 0.1, 0.1, 0.1, id="as long as the period"),
        pytest.param(0.1, 0.4, 0.4, 0.4, id="slow"),
        pytest.param(0.05, 0.001, PAUSE, 0.05, id="a short period that was asked for"),
        pytest.param(1.0, 0.001, 1.0, 1.0, id="a period that was asked for"),
    ],
)
def test_a_few_syncs_follow_up_soon_and_then_the_period_holds(
    clock: Clock, period: float, cost: float, soon: float, later: float
) -> None:
    schedule = Schedule(period, 30.0, clock, random.Random(1))
    clock.now += 60.0
    started = clock.now
    clock.now += cost
    schedule.succeeded(started)
    clock.now += 60.0
    rests = _rests(schedule, clock, cost, 12)
    assert rests[:SAVED_RESTS] == pytest.approx([soon] * SAVED_RESTS)
    assert rests[8:] == pytest.approx([later] * 4)
    assert sum(later - rest for rest in rests) <= SAVED_RESTS * later + 1e-9
    clock.now += 60.0
    assert _rests(schedule, clock, cost, 1) == pytest.approx([soon])


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.0, 0.5), st.floats(0.0, 2.0)), min_size=1, max_size=60),
)
def test_on_average_no_sync_comes_sooner_than_after_a_whole_rest(steps: list[tuple[float, float]]) -> None:
    clock = Clock()
    period = 0.08
    schedule = Schedule(period, 30.0, clock, random.Random(1))
    rested = 0.0
    for cost, quiet in steps:
        started = clock.now
        clock.now += cost
        schedule.succeeded(started)
        due = schedule.due_in(changed=True)
        assert due is not None
        assert due >= min(PAUSE, period) - 1e-9
        clock.now += due + quiet
        rested += due + quiet
    # At any time the syncs so far got all their rests but the few that were saved before.
    assert rested >= period * (len(steps) - SAVED_RESTS) - 1e-9


@settings(deadline=None)
@given(cost=st.floats(0.0001, 0.5), quiet=st.lists(st.floats(0.0, 1.0), max_size=20))
def test_with_the_default_steady_changes_rest_by_their_cost_up_to_the_default(
    cost: float, quiet: list[float]
) -> None:
    clock = Clock()
    schedule = Schedule(MIN_SYNC_PERIOD, 30.0, clock, random.Random(1))
    for seconds in quiet:
        started = clock.now
        clock.now += cost
        schedule.succeeded(started)
        clock.now += seconds
    rests = _rests(schedule, clock, cost, 40)
    rest = max(min(max(PAUSE, COST_RESTS * cost), MIN_SYNC_PERIOD), cost)
    assert max(rests) <= rest + 1e-9
    # The first cost is not known to last, and a few rests were saved before.
    assert sum(rests) >= rest * (len(rests) - SAVED_RESTS - 1) - 1e-9
