"""When syncs are due: at once when quiet, spaced by what they cost, backed off after failures."""

import random

import pytest

from kproxy.agent.schedule import FIRST_RETRY, Schedule


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
