"""A comparison with the kernel gives way to changes, but not for good."""

from __future__ import annotations

from typing import cast

import pytest

from kproxy.addresses import Family
from kproxy.agent.drift_checker import LONGEST_POSTPONED, QUICK_PERIOD, DriftChecker
from kproxy.agent.family_sync import FamilySync
from kproxy.backends.core.base import CheckPostponed, Difference, Drift
from kproxy.telemetry.observer import SyncObserver

DRIFT = Drift("chain", "nat/A", Difference.MISSING)


class Observer:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.compared_clean: list[bool] = []
        self.drifts: list[Drift] = []

    def compared(self, _: Family, *, clean: bool) -> None:
        self.compared_clean.append(clean)

    def drifted(self, _: Family, drifts: tuple[Drift, ...]) -> None:
        self.drifts += drifts


class SlowBackend:
    """Its comparison asks whether to give way, and then finds drift."""

    def check(self, *, full: bool = False) -> tuple[Drift, ...]:
        assert full
        if self.gives_way():
            raise CheckPostponed("a change waits")
        return (DRIFT,)

    def gives_way(self) -> bool:
        raise AssertionError("set by the checker")


class World:
    """A drift checker, its clock, and whether a change waits."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits = False
        self.observer = Observer()
        observer = cast("SyncObserver", self.observer)
        self.checker = DriftChecker(observer, lambda: self.now, lambda: self.waits)
        self.backend = SlowBackend()
        self.side = FamilySync(Family.IPV4, self.backend, lambda _: None)  # type: ignore[arg-type]

    def look(self) -> bool:
        return self.checker.check([self.side], lambda: True)


@pytest.fixture
def world() -> World:
    return World()


def test_a_comparison_gives_way_to_a_change_and_is_made_up_for(world: World) -> None:
    world.waits = True
    assert not world.look()
    assert world.observer.compared_clean == []
    assert world.checker.next_check == world.now + QUICK_PERIOD
    world.now += QUICK_PERIOD
    world.waits = False
    assert world.look()
    assert world.observer.drifts == [DRIFT]
    assert world.observer.compared_clean == [False]


def test_changes_without_a_pause_postpone_a_comparison_for_a_minute_at_most(world: World) -> None:
    world.waits = True
    began = world.now
    while not world.look():
        world.now += QUICK_PERIOD
    assert LONGEST_POSTPONED <= world.now - began <= LONGEST_POSTPONED + QUICK_PERIOD
    assert world.observer.drifts == [DRIFT]
