"""Syncs that a backend runs on its own time, as to remove drained destinations, are reported like any."""

from __future__ import annotations

import time

import pytest

from kproxy.addresses import Family
from kproxy.backends.ipvs.backend import IpvsBackend
from kproxy.config.model import ProxyConfig
from kproxy.kernel.ipvs.types import DestinationId
from kproxy.node.facts import FamilyFacts
from kproxy.state.kinds import Kind
from kproxy.telemetry.status import FamilyStatus
from tests.agent.switch_rig import FakeMode, Kernel, Rig
from tests.backends.ipvs_node import CLUSTER_IP, IpvsNode, eps
from tests.builders import as_service, as_slice, service

LEAVING = DestinationId("10.1.0.1", 80)


class IpvsMode(FakeMode):
    """One IPv4 backend over IPVS in memory."""

    def __init__(self, node: IpvsNode, config: ProxyConfig) -> None:
        super().__init__(Kernel(), config, (Family.IPV4,))
        self._node = node

    def configure(self, family: Family, facts: FamilyFacts) -> IpvsBackend:  # type: ignore[override]
        assert family is Family.IPV4
        return self._node.backend


class World(Rig):
    """A run loop with one TCP service in IPVS mode; one of its endpoints has left and has a connection."""

    def __init__(self) -> None:
        self.node = IpvsNode()
        super().__init__(lambda config: IpvsMode(self.node, config))
        self.store.upsert(Kind.SERVICE, as_service(service()))
        self.store.upsert(Kind.ENDPOINT_SLICE, as_slice(eps("10.1.0.1", "10.1.0.2")))
        assert "synced" in self.work()
        self.node.ipvs.connections[CLUSTER_IP, LEAVING] = 1
        self.store.upsert(Kind.ENDPOINT_SLICE, as_slice(eps("10.1.0.2")))
        assert "synced" in self.work()
        assert LEAVING in self.node.ipvs.table[CLUSTER_IP][1]

    def timers(self) -> None:
        """Let the connection end, and a minute pass for the backend."""
        self.node.ipvs.connections.clear()
        self.node.now += 60
        self.agent.step(time.monotonic())

    @property
    def status(self) -> FamilyStatus:
        return self.observer.family_status()[Family.IPV4]


@pytest.fixture
def world() -> World:
    return World()


def test_a_refused_removal_quarantines_the_service_until_it_succeeds(world: World) -> None:
    world.node.faults.refuse = lambda change: "DEL_DEST" in change
    world.timers()
    assert [each.service for each in world.status.quarantined] == ["ns1/svc1"]
    assert "DEL_DEST" in world.status.quarantined[0].reason
    assert world.agent.sync_due_in() is not None
    world.node.faults.refuse = lambda _: False
    world.node.now += 3600
    world.work()
    assert world.status.quarantined == []
    assert LEAVING not in world.node.ipvs.table[CLUSTER_IP][1]


def test_a_refused_removal_without_a_service_is_a_leftover(world: World) -> None:
    world.store.delete(Kind.SERVICE, "ns1/svc1")
    world.work()
    world.node.faults.refuse = lambda change: "DEL_SERVICE" in change
    world.timers()
    assert list(world.status.leftovers) == ["virtual server TCP 10.96.0.1 port 80"]
    assert world.agent.sync_due_in() is not None
    world.node.faults.refuse = lambda _: False
    world.node.now += 3600
    world.work()
    assert world.status.leftovers == {}
    assert CLUSTER_IP not in world.node.ipvs.table


def test_a_failure_is_a_failed_sync_and_is_retried(world: World) -> None:
    world.node.faults.lose_soon(0)
    world.timers()
    assert world.status.failing_since is not None
    assert list(world.agent.sync_errors) == [Family.IPV4]
    assert world.agent.sync_due_in() is not None
    world.work()
    assert not world.agent.sync_errors
    assert world.observer.family_status()[Family.IPV4].failing_since is None
    assert LEAVING not in world.node.ipvs.table[CLUSTER_IP][1]


def test_drift_that_it_finds_is_recorded(world: World) -> None:
    del world.node.ipvs.table[CLUSTER_IP][1][DestinationId("10.1.0.2", 80)]
    world.node.faults.lose_soon(0)
    world.timers()
    world.work()
    assert world.status.drift.found == 1
    assert "10.1.0.2 port 80 is missing" in world.status.drift.last_objects[0]


def test_a_removal_is_counted(world: World) -> None:
    before = world.status.last_success
    assert before is not None
    world.timers()
    assert LEAVING not in world.node.ipvs.table[CLUSTER_IP][1]
    after = world.status.last_success
    assert after is not None
    assert after > before
    assert world.agent.sync_due_in() is None
