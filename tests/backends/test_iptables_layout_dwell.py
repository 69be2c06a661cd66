"""A cluster whose size varies does not change its layout again and again; one that stays large does."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from kproxy.backends.core.foreign_writes import ForeignWrites
from kproxy.backends.iptables import layout_selection
from kproxy.backends.iptables.backend import IptablesBackend
from kproxy.backends.iptables.layout_selection import DWELL, layouts
from tests.backends.iptables_node import CONFIG, IptablesNode
from tests.builders import endpoint_slice, service

LARGE, SMALL = 40, 20


class Auto(IptablesNode):
    """A node that chooses its layout; `now` is its clock, and each change of the layout is counted."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__()
        self.put(service("other", "10.96.0.2"), endpoint_slice("10.9.0.1", service="other"))
        self.changes = 0
        self.scale(1)

    def make_backend(self) -> IptablesBackend:
        usual, larger = layouts(CONFIG, "auto")
        watch = ForeignWrites(self.fake.generation)
        return IptablesBackend(usual, self.fake, watch, larger=larger, clock=lambda: self.now)

    def another(self) -> Auto:
        return Auto()

    def scale(self, count: int) -> None:
        """Give a service so many endpoints."""
        pods = [f"10.1.0.{number + 1}" for number in range(count)]
        self.put(service("busy", "10.96.0.3"), endpoint_slice(*pods, service="busy"))
        with capture_logs() as logs:
            self.done()
        self.changes += sum(line["event"] == "layout_changed" for line in logs)

    def is_scalable(self) -> bool:
        return not any(chain.startswith("KUBE-SEP-") for chain in self.state()["nat"])


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Auto:
    monkeypatch.setattr(layout_selection, "LARGE", LARGE)
    monkeypatch.setattr(layout_selection, "SMALL", SMALL)
    return Auto()


def test_a_single_way_there_and_back_is_not_delayed(node: Auto) -> None:
    assert not node.is_scalable()
    node.scale(LARGE)
    assert node.is_scalable()
    node.scale(1)
    assert not node.is_scalable()
    assert node.changes == 2


def test_a_tenant_that_scales_up_and_down_changes_the_layout_once_in_a_dwell_time(node: Auto) -> None:
    """Every ten seconds, for ten dwell times."""
    began, step = node.now, 10.0
    while node.now < began + 10 * DWELL:
        node.scale(LARGE if node.changes % 2 == 0 else 1)
        node.now += step
        node.scale(1 if node.changes % 2 else LARGE)
        node.now += step
    assert 9 <= node.changes <= 12


def test_growth_that_stays_is_adopted_with_the_first_change_after_the_dwell_time(node: Auto) -> None:
    for count in (LARGE, 1, LARGE):
        node.scale(count)
    assert (node.is_scalable(), node.changes) == (False, 2)
    node.now += DWELL / 2
    node.scale(LARGE + 1)
    assert not node.is_scalable()
    node.now += DWELL / 2
    node.scale(LARGE + 2)
    assert node.is_scalable()
    assert node.state() == node.fresh()


def test_a_huge_cluster_gets_the_large_layout_at_once_and_leaves_it_after_the_dwell_time(
    node: Auto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chain for each of 50,000 endpoints takes 20 s to write."""
    monkeypatch.setattr(layout_selection, "HUGE", 2 * LARGE)
    for count in (LARGE, 1, LARGE):
        node.scale(count)
    assert not node.is_scalable()
    node.scale(2 * LARGE)
    assert node.is_scalable()
    node.scale(1)
    assert (node.is_scalable(), node.changes) == (True, 3)
    node.now += 2 * DWELL
    node.scale(2)
    assert not node.is_scalable()
    assert node.state() == node.fresh()


def test_a_start_uses_the_layout_for_its_size_at_once(node: Auto) -> None:
    for count in (LARGE, 1, LARGE):
        node.scale(count)
    assert not node.is_scalable()
    node.start()
    node.done()
    assert node.is_scalable()
