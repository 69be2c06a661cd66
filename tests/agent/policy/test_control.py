"""Turning the enforcement of policies on and off, at the start and by a reload, and what a node cannot do."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import msgspec
import pytest

from kproxy.agent.policy.control import PolicyControl
from kproxy.agent.policy.kernel import PolicyUnavailable
from kproxy.agent.threads import Threads
from kproxy.config.refusals import SettingRefused
from kproxy.modes.base import ModeUnavailable
from kproxy.modes.registry import mode_registry
from kproxy.state.kinds import POLICY_KINDS, Kind
from kproxy.state.store import ObjectStore
from kproxy.telemetry.metrics import Metrics
from kproxy.telemetry.series import OF_POLICIES
from tests.agent.policy.rig import ON, V4, FakeKernel, cluster

OFF = msgspec.structs.replace(ON, network_policy=False)
PATIENCE = 20.0


class World:
    """A process with its threads and a kernel in memory; objects are complete."""

    def __init__(self, threads: Threads, stop: threading.Event, store: ObjectStore) -> None:
        self.kernel = FakeKernel()
        self.removed = threading.Event()
        self.kernel.remove = self._remove  # type: ignore[method-assign]
        self.store = store
        self._threads = threads
        self._stop = stop
        store.replace(Kind.NODE, [], ())
        for kind in POLICY_KINDS:
            store.replace(kind, [each for each in cluster() if isinstance(each, kind.wire)], ())

    def control(self, network_policy: bool) -> PolicyControl:
        made = PolicyControl(
            ON if network_policy else OFF,
            self.store,
            Metrics(),
            lambda _: None,
            self._threads,
            self._stop,
            lambda _: self.kernel,
        )
        made.begin({})
        return made

    def _remove(self) -> bool:
        self.kernel.tables.clear()
        self.removed.set()
        return True


@pytest.fixture
def world() -> Iterator[World]:
    stop = threading.Event()
    store = ObjectStore((Kind.NODE,))
    with Threads(stop, store) as threads:
        yield World(threads, stop, store)
    assert not threads.died


def test_off_it_does_nothing_and_shows_nothing(world: World) -> None:
    control = world.control(network_policy=False)
    assert (control.agent, control.status(), control.health(), control.hidden) == (
        None,
        None,
        {},
        OF_POLICIES,
    )
    assert control.wait_applied(0.0)
    assert world.kernel.enforcers == {}
    assert "policy" not in {thread.name for thread in threading.enumerate()}


def test_on_it_enforces_on_a_thread_of_its_own(world: World) -> None:
    control = world.control(network_policy=True)
    assert control.wait_applied(PATIENCE)
    assert set(world.kernel.tables[V4]) == {"10.1.0.1", "10.1.0.2"}
    status = control.status()
    assert status is not None
    assert (status.policies, control.hidden) == (1, frozenset())
    assert all(each.healthy for each in control.health().values())


def test_a_node_that_cannot_enforce_refuses_to_start(world: World) -> None:
    world.kernel.lacks = "--network-policy: the kernel cannot enforce policies for IPv4: no nf_tables"
    with pytest.raises(PolicyUnavailable, match="no nf_tables") as caught:
        world.control(network_policy=True)
    assert isinstance(caught.value, ModeUnavailable)


def test_a_reload_that_a_node_cannot_obey_is_refused_and_tried_again(world: World) -> None:
    control = world.control(network_policy=False)
    world.kernel.lacks = "no nf_tables"
    with pytest.raises(SettingRefused) as caught:
        control.follow(ON)
    assert (caught.value.path, caught.value.kept) == ("networkPolicy.enabled", False)
    control.follow(OFF)
    assert control.status() is None
    world.kernel.lacks = ""
    control.follow(ON)
    assert control.wait_applied(PATIENCE)


def test_a_reload_turns_it_off_and_on_again(world: World) -> None:
    control = world.control(network_policy=True)
    assert control.wait_applied(PATIENCE)
    control.follow(OFF)
    assert world.removed.wait(PATIENCE)
    assert (control.status(), control.health(), control.hidden) == (None, {}, OF_POLICIES)
    control.follow(ON)
    agent = control.agent
    assert agent is not None
    assert control.wait_applied(PATIENCE)
    assert set(world.kernel.tables[V4]) == {"10.1.0.1", "10.1.0.2"}


@pytest.mark.parametrize("on", [False, True])
def test_tables_of_a_former_process_are_leftovers_only_while_it_is_off(
    world: World, on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[bool] = []

    def remove() -> bool:
        removed.append(True)
        return True

    monkeypatch.setattr("kproxy.agent.policy.control.remove_policy_tables", remove)
    control = world.control(network_policy=on)
    leftovers = mode_registry(None, control.leftovers).leftovers(ON)
    leftovers[-1].begin({})
    assert removed == ([] if on else [True])
