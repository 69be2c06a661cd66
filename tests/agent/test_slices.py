"""The policy of slices: what is taken when, whatever the namespaces, the costs and the order of arrival."""

from __future__ import annotations

import math
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.agent.slices import FIRST_RATE, FIRST_TIME, SLICE_SECONDS, FairQueue, SliceMeter, units_for

BUDGET = 100.0
KEYS = st.builds(lambda namespace, name: f"n{namespace}/s{name}", st.integers(0, 4), st.integers(0, 30))
COSTS = st.one_of(st.floats(1.0, 10.0), st.floats(1.0, 1000.0))
STEPS = st.lists(
    st.one_of(st.tuples(KEYS, COSTS), st.just("slice"), st.lists(KEYS, max_size=3)), min_size=1, max_size=120
)


def drained(queue: FairQueue, budget: float = BUDGET) -> list[list[str]]:
    """All slices until nothing waits."""
    slices = []
    while queue:
        slices.append(queue.slice(budget))
    return slices


@given(STEPS)
def test_every_change_is_taken_once_and_no_slice_exceeds_its_budget_but_by_a_single_service(
    steps: list[tuple[str, float] | str | list[str]],
) -> None:
    queue, waiting = FairQueue(), dict[str, float]()

    def check(taken: list[str]) -> None:
        assert set(taken) <= waiting.keys()
        assert len(set(taken)) == len(taken)
        cost = sum(waiting.pop(key) for key in taken)
        assert len(taken) == 1 or cost <= BUDGET + 1e-6

    for step in steps:
        if isinstance(step, tuple):
            queue.put(*step)
            waiting[step[0]] = step[1]
        elif step == "slice":
            taken = queue.slice(BUDGET)
            assert bool(taken) == bool(waiting)
            check(taken)
        else:
            gone = {key for key in step if key in waiting}
            assert queue.discard(set(step)) == pytest.approx(sum(waiting.pop(key) for key in gone))
        assert set(queue) == waiting.keys()
        assert len(queue) == len(waiting)
    for taken in drained(queue):
        assert taken
        check(taken)
    assert not waiting
    assert queue.slice(BUDGET) == []


@given(st.dictionaries(KEYS, COSTS, min_size=1), st.randoms(use_true_random=False))
def test_which_services_are_taken_in_all_does_not_depend_on_the_order_of_arrival(
    costs: dict[str, float], chance: object
) -> None:
    first, second = FairQueue(), FairQueue()
    shuffled = list(costs.items())
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    for key, cost in costs.items():
        first.put(key, cost)
    for key, cost in shuffled:
        second.put(key, cost)
    for queue in (first, second):
        assert sorted(chain.from_iterable(drained(queue))) == sorted(costs)


@given(st.lists(COSTS, min_size=1, max_size=80), st.integers(0, 60), st.floats(1.0, BUDGET))
def test_a_small_change_of_another_namespace_is_in_the_next_slice(
    costs: list[float], before: int, small: float
) -> None:
    """Whatever bigger changes one namespace has waiting, and however many were applied before."""
    queue = FairQueue()
    for number, cost in enumerate(costs):
        queue.put(f"busy/{number}", max(cost, 2 * small))
    for _ in range(before):
        queue.slice(BUDGET)
    if not queue:
        queue.put("busy/more", 500.0)
    queue.put("calm/web", small)
    assert "calm/web" in queue.slice(BUDGET)


@given(st.floats(1.0, 500.0), st.floats(1.0, 10.0))
def test_an_expensive_service_is_taken_although_cheap_ones_of_its_namespace_keep_coming(
    cost: float, cheap: float
) -> None:
    queue = FairQueue()
    queue.put("busy/big", cost)
    passed = 0.0
    for number in range(10_000):
        queue.put(f"busy/{number}", cheap)
        taken = queue.slice(cheap)
        if "busy/big" in taken:
            break
        passed += cheap
    else:
        pytest.fail("it starves")
    assert passed <= cost + cheap


@given(st.floats(1.0, 500.0), st.floats(1.0, 10.0))
def test_an_expensive_service_is_taken_although_new_namespaces_keep_coming(cost: float, cheap: float) -> None:
    queue = FairQueue()
    queue.put("busy/big", cost)
    passed = 0.0
    for number in range(10_000):
        queue.put(f"n{number}/web", cheap)
        if "busy/big" in queue.slice(cheap):
            break
        passed += cheap
    else:
        pytest.fail("it starves")
    assert passed <= cost + cheap


def test_cheap_services_are_first_and_the_expensive_one_is_alone() -> None:
    queue = FairQueue()
    queue.put("a/big", 1000.0)
    for number in range(10):
        queue.put(f"a/{number}", 5.0)
        queue.put(f"b/{number}", 5.0)
    first, second = drained(queue)
    assert len(first) == 20
    assert second == ["a/big"]


def test_a_change_passes_new_services_of_any_number_of_namespaces() -> None:
    """Each of them asks for as little as the change, so their shares alone do not put it first."""
    queue = FairQueue()
    for number in range(1000):
        queue.put(f"n{number}/web", 4.0, new=True)
    queue.slice(BUDGET)
    for turn in range(10):
        queue.put("calm/web", 7.0)
        assert "calm/web" in queue.slice(BUDGET), turn


@given(st.floats(1.0, 10.0))
def test_a_new_service_is_taken_although_changes_of_others_keep_coming(cheap: float) -> None:
    queue = FairQueue()
    queue.put("calm/new", 5.0, new=True)
    passed = 0.0
    while "calm/new" in queue:
        queue.put(f"busy/{passed}", cheap)
        passed += sum(cheap for key in queue.slice(cheap) if key != "calm/new")
        assert passed <= FIRST_TIME + 5.0 + 2 * cheap, "it starves"


def test_namespaces_take_turns_by_cost_not_by_number() -> None:
    queue = FairQueue()
    for number in range(40):
        queue.put(f"a/{number}", 10.0)
    for number in range(20):
        queue.put(f"b/{number}", 20.0)
    shares = [sum(key.startswith("a/") for key in taken) for taken in drained(queue)]
    assert all(4 <= share <= 6 or index >= 6 for index, share in enumerate(shares)), shares
    assert sum(shares) == 40


def test_a_waiting_service_that_changes_again_keeps_its_place() -> None:
    queue = FairQueue()
    queue.put("a/first", 50.0)
    for number in range(100):
        queue.put(f"a/{number}", 40.0)
        queue.put("a/first", 50.0 + number % 2)
        if "a/first" in queue.slice(BUDGET):
            break
    assert number < 3


def test_updates_of_waiting_services_need_no_memory() -> None:
    queue = FairQueue()
    queue.put("b/big", 10.0)
    for number in range(100_000):
        queue.put("a/web", 1.0 + number % 7)
    assert sum(map(len, queue._queues.values())) + len(queue._namespaces) < 2000
    assert sorted(chain.from_iterable(drained(queue))) == ["a/web", "b/big"]


def learned(fixed: float, rate: float, *, slices: int = 12, units: float | None = None) -> SliceMeter:
    """A meter after syncs that cost this, of the sizes that it chose itself."""
    meter = SliceMeter()
    for _ in range(slices):
        size = units_for([meter]) if units is None else units
        meter.note(size, fixed + rate * size)
    return meter


@pytest.mark.parametrize("rate", [2e-6, 5e-6, 20e-6, 1e-4, 1e-3])
@pytest.mark.parametrize("fixed", [0.0, 0.002, 0.03, 0.4, 1.6])
def test_a_slice_takes_its_time_beyond_what_any_sync_takes(fixed: float, rate: float) -> None:
    meter = learned(fixed, rate)
    beyond = units_for([meter]) * rate
    least, most = SLICE_SECONDS
    assert least / 3 <= beyond <= most * 1.5


def test_two_families_share_a_slice() -> None:
    one, two = learned(0.0, 20e-6), learned(0.0, 60e-6)
    assert units_for([one, two]) == pytest.approx(SLICE_SECONDS[0] / 80e-6, rel=0.2)


def test_a_sync_that_takes_no_time_halves_the_rate_at_most() -> None:
    """It wrote little, which says little of others."""
    meter = learned(0.0, 100e-6)
    before = meter.rate
    meter.note(10 * units_for([meter]), 0.0)
    assert meter.rate == pytest.approx(before / 2)


def test_single_changes_teach_no_rate_whatever_their_noise() -> None:
    meter = SliceMeter()
    for number in range(200):
        meter.note(7 + number % 3, 0.002 + 0.0005 * math.sin(number))
    assert meter.rate == FIRST_RATE
    assert meter.fixed == pytest.approx(0.0018, abs=0.0005)


def test_after_a_sync_that_was_preempted_slices_soon_have_their_size_again() -> None:
    meter = learned(0.001, 10e-6)
    size = units_for([meter])
    meter.note(size, 3.0)
    for _ in range(40):
        again = units_for([meter])
        meter.note(again, 0.001 + 10e-6 * again)
    assert units_for([meter]) >= size / 3
