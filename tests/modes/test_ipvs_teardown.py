"""IPVS state that another mode takes over: both families drain in their time, then the device goes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from kproxy.addresses import Family
from kproxy.kernel.addresses import DeviceError
from kproxy.modes.ipvs import teardown as module
from kproxy.modes.ipvs.teardown import IpvsTeardown

V4, V6 = Family.IPV4, Family.IPV6


class Teardown:
    """A family's teardown; `waits` are what its next calls return, None at its end."""

    def __init__(self, family: Family, *waits: float | None) -> None:
        self.family = family
        self.waits = list(waits)
        self.done = False
        self.works = True
        self.asked: list[str] = []

    def run_timers(self) -> float | None:
        wait = self.waits.pop(0)
        self.done = wait is None
        return wait

    def clear(self) -> bool:
        self.asked.append("clear")
        return self.works

    def dissolve(self) -> bool:
        self.asked.append("dissolve")
        return self.works


class World:
    """What is left of each family, a clock, and a device that may be in use."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *left: Teardown) -> None:
        self.now = 10.0
        self.deleted = 0
        self.in_use = False
        by_family = {each.family: each for each in left}
        monkeypatch.setattr(module, "left_in", lambda family, _: family in by_family)
        monkeypatch.setattr(module, "FamilyTeardown", lambda family, *_: by_family[family])
        device: Any = SimpleNamespace(name="kube-ipvs0", delete=self._delete)
        kernel: Any = SimpleNamespace(device=device)
        self.teardown = IpvsTeardown(kernel, 60.0, (), lambda: self.now)

    def _delete(self) -> None:
        if self.in_use:
            raise DeviceError("device or resource busy")
        self.deleted += 1


def test_nothing_left_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    with capture_logs() as logs:
        world.teardown.begin({})
        assert world.teardown.run_timers() is None
        assert world.teardown.clear(kube_proxy=False)
        assert world.teardown.dissolve()
    assert world.deleted == 0
    assert logs == []


def test_each_family_is_asked_in_its_time_and_the_device_goes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    four, six = Teardown(V4, 5.0, 0.0, None), Teardown(V6, 2.0, None)
    world = World(monkeypatch, four, six)
    with capture_logs() as logs:
        world.teardown.begin({})
        assert world.teardown.run_timers() == 2.0
        world.now += 1.0
        assert world.teardown.run_timers() == 1.0
        assert (len(four.waits), len(six.waits)) == (2, 1)
        world.now += 1.0
        assert world.teardown.run_timers() == 3.0
        assert (len(four.waits), six.done) == (2, True)
        world.now += 9.0
        assert world.teardown.run_timers() == 0.0
        assert world.deleted == 0
        assert world.teardown.run_timers() is None
        assert world.deleted == 1
        assert world.teardown.run_timers() is None
    assert world.deleted == 1
    assert [each["event"] for each in logs] == ["ipvs_mode_leaving", "device_deleted"]
    assert logs[0]["families"] == "IPv4, IPv6"


@pytest.mark.parametrize("broken", [None, V4, V6])
def test_a_cleanup_removes_both_families_whatever_one_leaves(
    monkeypatch: pytest.MonkeyPatch, broken: Family | None
) -> None:
    left = [Teardown(V4), Teardown(V6)]
    for each in left:
        each.works = each.family is not broken
    world = World(monkeypatch, *left)
    assert world.teardown.clear(kube_proxy=False) == (broken is None)
    assert world.teardown.dissolve() == (broken is None)
    assert [each.asked for each in left] == [["clear", "dissolve"]] * 2
    assert world.deleted == 1


def test_a_device_that_stays_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, Teardown(V4))
    world.in_use = True
    with capture_logs() as logs:
        assert world.teardown.clear(kube_proxy=False)
        assert not world.teardown.dissolve()
    assert [(each["event"], each.get("reason")) for each in logs[1:]] == [
        ("device_delete_failed", "device or resource busy")
    ]
