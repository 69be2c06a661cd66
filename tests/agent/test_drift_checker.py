"""Comparisons with the kernel: how often, what a drift leads to, and what one costs at the most."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from kproxy.addresses import Family
from kproxy.agent import drift_checker as module
from kproxy.agent.drift_checker import CHECK_SHARE, FULL_PERIOD, QUICK_PERIOD, SUSPICION_PERIOD, DriftChecker
from kproxy.backends.core.base import CheckError, Difference, Drift
from kproxy.kernel.links import AddressNews

V4, V6 = Family.IPV4, Family.IPV6
MISSING = Drift("chain", "nat/KUBE-SERVICES", Difference.MISSING)


class World:
    """Both families of a node; a comparison takes `seconds` and finds `drifts`, or fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.seconds = 0.0
        self.drifts: dict[Family, list[Drift]] = {}
        self.failing: set[Family] = set()
        self.full: list[bool] = []
        self.told: list[tuple[object, ...]] = []
        self.suspected = 0
        self.in_step = True
        monkeypatch.setattr(module, "warn_of_kube_proxy", self._suspect)
        observer: Any = SimpleNamespace(
            not_compared=lambda family, reason: self.told.append((family, reason)),
            compared=lambda family, *, clean: self.told.append((family, "clean" if clean else "drifted")),
            drifted=lambda family, drifts: self.told.append((family, *drifts)),
            confirmed=lambda family: self.told.append((family, "confirmed")),
        )
        self.checker = DriftChecker(observer, lambda: self.now)
        self.syncs: Any = [
            SimpleNamespace(family=family, backend=SimpleNamespace(check=self._check(family)))
            for family in (V4, V6)
        ]

    def _suspect(self, *, ask: bool) -> None:
        assert not ask
        self.suspected += 1

    def _check(self, family: Family) -> Any:
        def check(*, full: bool) -> list[Drift]:
            self.full.append(full)
            self.now += self.seconds / 2
            if family in self.failing:
                raise CheckError("the rules cannot be read")
            return self.drifts.get(family, [])

        return check

    def check(self) -> bool:
        self.told.clear()
        self.full.clear()
        return self.checker.check(self.syncs, lambda: self.in_step)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_a_comparison_without_drift_confirms_what_is_applied(world: World) -> None:
    assert not world.check()
    assert world.told == [(V4, "clean"), (V4, "confirmed"), (V6, "clean"), (V6, "confirmed")]
    world.in_step = False
    assert not world.check()
    assert world.told == [(V4, "clean"), (V6, "clean")]
    assert world.suspected == 0


def test_a_drift_of_one_family_is_reported_and_the_other_is_compared_too(world: World) -> None:
    world.drifts[V4] = [MISSING]
    assert world.check()
    assert world.told == [(V4, "drifted"), (V4, MISSING), (V6, "clean"), (V6, "confirmed")]


def test_a_comparison_that_fails_is_no_drift_and_the_other_family_is_compared(world: World) -> None:
    world.failing = {V4}
    with capture_logs() as logs:
        assert not world.check()
    assert world.told == [(V4, "the rules cannot be read"), (V6, "clean"), (V6, "confirmed")]
    assert [(each["event"], each["family"]) for each in logs] == [("check_failed", "IPv4")]


def test_a_full_comparison_comes_first_and_then_once_a_period(world: World) -> None:
    found = []
    for passed in (0.0, QUICK_PERIOD, FULL_PERIOD - QUICK_PERIOD - 1, 1.0, 1.0):
        world.now += passed
        world.check()
        found.append(tuple(world.full))
    assert found == [(True, True), (False, False), (False, False), (True, True), (False, False)]
    assert world.checker.next_check == world.now + QUICK_PERIOD


def test_after_a_first_sync_a_full_comparison_waits_for_a_period(world: World) -> None:
    world.checker.begin()
    world.check()
    assert world.full == [False, False]
    world.now += FULL_PERIOD
    world.check()
    assert world.full == [True, True]


def test_comparisons_take_a_bounded_share_of_the_time(world: World) -> None:
    world.seconds = 2.0
    world.check()
    ended = world.now
    world.now = ended + 2.0 * CHECK_SHARE - 0.5
    assert not world.check()
    assert world.full == []
    assert world.checker.next_check == ended + 2.0 * CHECK_SHARE
    world.now = ended + 2.0 * CHECK_SHARE
    world.check()
    assert world.full == [False, False]
    world.now = ended + 500 * 2.0 - 1
    world.check()
    assert world.full == [False, False]
    world.now += 1 + 2.0 * CHECK_SHARE
    world.check()
    assert world.full == [True, True]


def test_a_kube_proxy_is_suspected_once_a_while(world: World) -> None:
    world.drifts[V4] = [MISSING]
    world.check()
    world.check()
    assert world.suspected == 1
    world.now += SUSPICION_PERIOD
    world.check()
    assert world.suspected == 2


def test_addresses_that_drifted_are_reported_by_family(world: World) -> None:
    class Mode:
        families = (V4, V6)
        found: Mapping[Family, list[Drift]] | None = {V6: [MISSING]}

        def compare_addresses(self, news: AddressNews) -> Mapping[Family, list[Drift]]:
            assert news == AddressNews(elsewhere=True)
            if self.found is None:
                raise CheckError("no memory")
            return self.found

    mode: Any = Mode()
    news = AddressNews(elsewhere=True)
    assert world.checker.compare_addresses(mode, news)
    assert world.told == [(V6, MISSING)]
    mode.found = {}
    assert not world.checker.compare_addresses(mode, news)
    mode.found = None
    assert not world.checker.compare_addresses(mode, news)
    assert world.told[1:] == [(V4, "no memory"), (V6, "no memory")]


def test_a_comparison_that_is_asked_for_during_one_comes_as_soon_as_another_may_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.seconds = 0.01
    world.checker.check(world.syncs, lambda: True)
    world.checker.next_check = world.now  # what `soon` does on another thread while one runs
    assert not world.checker.check(world.syncs, lambda: True)
    assert len(world.full) == len(world.syncs)
    assert world.checker.next_check == pytest.approx(world.now + CHECK_SHARE * world.seconds)
