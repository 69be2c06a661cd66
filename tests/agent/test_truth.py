"""A whole agent over a kernel in memory: what the status, the probes and the metrics say of each failure."""

import json
import threading
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from kproxy.addresses import Family
from kproxy.agent import backlog
from kproxy.backends.core.base import CheckError, Difference, Drift
from kproxy.config.desired import Refusal
from kproxy.config.loading import CommandLine
from kproxy.config.model import ProxyConfig
from kproxy.config.reload import Reloader
from kproxy.state import store as inbox_module
from kproxy.state.kinds import Kind
from kproxy.state.problems import Problem
from kproxy.telemetry import series
from kproxy.telemetry.collection import readers
from kproxy.telemetry.http.debug import StatusBuilder
from kproxy.telemetry.http.health import HealthState, answer
from kproxy.telemetry.http.message import Answer
from kproxy.telemetry.metrics import Distribution, Sample
from kproxy.telemetry.series import Series
from kproxy.telemetry.status import Status, Watch
from kproxy.telemetry.verdict import State
from tests.agent import switch_rig
from tests.agent.switch_rig import CONFIG, FakeMode, Kernel, Rig

PERIOD = 30.0
MODE = CONFIG.proxy_mode
SERVICE = Watch(
    "Service", synced=True, connected_since=datetime.now(UTC), consecutive_failures=0, last_error=None
)


def down(seconds: float) -> Watch:
    since = datetime.now(UTC) - timedelta(seconds=seconds)
    return Watch(
        "Service",
        synced=True,
        connected_since=None,
        consecutive_failures=3,
        last_error="connection refused",
        down_since=since,
    )


class World(Rig):
    """An agent whose clock is `now`, from the moment on at which it was made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        clock = SimpleNamespace(monotonic=lambda: self.now, time=lambda: self.now)
        monkeypatch.setattr(inbox_module, "time", clock)
        monkeypatch.setattr(switch_rig, "HealthState", self._health)
        self.kernel = Kernel()
        self.watches: list[Watch] = [SERVICE]
        self.lists: list[Kind] = []
        self.unopened_ports: list[Problem] = []
        super().__init__(self._mode)
        given = CommandLine(None, {})
        self.reloader = Reloader(given, given.load(), lambda _: 1)
        self.status_builder = StatusBuilder(
            lambda: self.agent.config,
            self.reloader,
            self.store,
            self.health,
            self.observer,
            lambda: self.watches,
            lambda: self.now,
            lambda: self.unopened_ports,
        )

    def _health(self, *_: object) -> HealthState:
        return HealthState(PERIOD, lambda: self.now, lambda: self.store.waiting_since)

    def _mode(self, config: ProxyConfig) -> FakeMode:
        return FakeMode(self.kernel, config)

    def sync(self) -> None:
        """One sync, however it ends."""
        self.agent.observe()
        assert self.agent.knows_node
        self.agent.sync()

    @property
    def status(self) -> Status:
        found = self.status_builder.status()
        assert (found.state is State.HEALTHY) == found.healthy == (not found.conditions)
        assert self.metric(series.HEALTHY) == float(found.healthy)
        assert self.metric(series.STATE, str(found.state)) == 1
        assert {each.reason for each in found.conditions} == {
            sample.labels[0]
            for sample in self.samples()
            if sample.series is series.CONDITION and sample.value
        }
        assert found.live == all(code == HTTPStatus.OK for code in self.probes())
        return found

    def summary(self) -> tuple[str, int, list[str]]:
        found = self.status
        return str(found.state), found.exit_code, sorted({each.reason for each in found.conditions})

    def probes(self) -> list[int]:
        health = self.health.report()
        return [answer(health, include_node=False)[0]]

    def samples(self) -> list[Sample]:
        read = readers(
            lambda: self.agent.mode,
            self.status_builder.verdict,
            self.store,
            self.observer,
            0,
            dict,
            lambda: self.now,
        )
        return [
            sample for name, each in read if name in ("health", "changes", "objects") for sample in each()
        ]

    def metric(self, wanted: Series, *labels: str) -> float:
        (found,) = [each.value for each in self.samples() if (each.series, each.labels) == (wanted, labels)]
        assert not isinstance(found, Distribution)
        return found


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_each_page_of_the_metrics_address_answers(world: World) -> None:
    world.sync()
    routes = world.status_builder.routes(cast("Any", None), world.metrics)

    def page(path: str) -> bytes:
        made = routes[path]()
        assert isinstance(made, Answer)
        assert made.status == 200
        return made.body

    assert (page("/healthz"), page("/proxyMode")) == (b"ok", b"iptables")
    assert json.loads(page("/configz"))["kubeproxy.config.k8s.io"]["kind"] == "KubeProxyConfiguration"
    assert json.loads(page("/status"))["healthy"] is True


def test_a_health_check_port_that_is_not_open_is_a_problem_of_the_service(world: World) -> None:
    world.sync()
    taken = Problem("Service ns/a", "spec.healthCheckNodePort", "30100", "in use", refused=True)
    world.unopened_ports.append(taken)
    assert (world.status.problems, world.summary()) == ([taken], ("healthy", 3, []))
    world.unopened_ports.clear()
    assert world.summary() == ("healthy", 0, [])


def test_the_debug_pages_are_there_where_profiling_is_enabled(world: World) -> None:
    def asked() -> tuple[int, bytes]:
        made = world.status_builder.routes(cast("Any", None), cast("Any", None))["/debug/threads"]()
        assert isinstance(made, Answer)
        return int(made.status), made.body

    assert asked() == (404, b"enableProfiling is false\n")
    world.agent.reconfigure(msgspec.structs.replace(CONFIG, profiling=True))
    world.sync()
    status, text = asked()
    assert status == 200
    assert b"thread MainThread" in text


def test_an_agent_without_a_sync_starts_and_fails_when_its_time_is_over(world: World) -> None:
    world.now += 5
    assert world.summary() == ("starting", 1, ["NotSynced"])
    assert world.metric(series.OLDEST_PENDING) == 5
    world.now += 2 * PERIOD
    assert world.summary() == ("failing", 1, ["ChangesLate", "NotSynced"])
    assert world.probes() == [503]
    world.sync()
    assert world.summary() == ("healthy", 0, [])
    assert world.metric(series.OLDEST_PENDING) == 0


def test_lists_that_never_complete_are_late_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox_module.ObjectStore, "replace", lambda *_: None)
    bare = World(monkeypatch)
    bare.now += 5
    assert bare.summary() == ("starting", 1, ["ListsIncomplete", "NotSynced"])
    assert bare.metric(series.OLDEST_PENDING) == 5
    message = bare.status.conditions[0].message
    assert all(kind.name in message for kind in (Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NODE))
    bare.now += 2 * PERIOD
    assert bare.summary() == ("failing", 1, ["ChangesLate", "ListsIncomplete", "NotSynced"])
    assert bare.probes() == [503]


def test_an_idle_agent_stays_healthy(world: World) -> None:
    world.sync()
    world.now += 100_000
    assert world.summary() == ("healthy", 0, [])
    assert world.probes() == [200]


def test_a_long_backlog_is_healthy_while_it_shrinks_and_late_when_the_loop_hangs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.sync()
    monkeypatch.setattr(backlog, "units_for", lambda _: 1.0)
    for number in range(3, 23):
        world.add(f"s{number}", number)
    for number in range(20):
        assert world.status.state is State.HEALTHY
        assert world.metric(series.OLDEST_PENDING) == number * PERIOD
        world.now += PERIOD
        world.sync()
    assert world.metric(series.OLDEST_PENDING) == 0

    def hang() -> None:
        world.now += 2 * PERIOD + 1
        seen.append((world.summary(), world.probes()))

    seen: list[object] = []
    world.kernel.during = hang
    world.add("c", 30)
    world.sync()
    assert seen == [(("failing", 1, ["ChangesLate"]), [503])] * 2
    world.kernel.during = lambda: None
    world.add("d", 31)
    world.sync()
    assert world.summary() == ("healthy", 0, [])


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("before", [True, False], ids=["after a sync", "from the start"])
def test_a_failing_family_is_reported_at_once_and_fails_livez_when_its_time_is_over(
    world: World, family: Family, before: bool
) -> None:
    if before:
        world.sync()
    world.kernel.errors[MODE, family] = "nft ended with signal 11"
    world.add("c", 3)
    world.sync()
    assert world.summary()[:2] == ("failing", 1)
    assert "SyncFailing" in world.summary()[2]
    assert f"{family.value}: the last sync failed: nft ended with signal 11" in {
        each.message for each in world.status.conditions
    }
    assert world.probes() == [200]
    world.now += 26
    world.sync()
    assert world.metric(series.OLDEST_PENDING) == 26
    assert world.summary()[:2] == ("failing", 1)
    world.now += 2 * PERIOD
    assert world.probes() == [503]
    assert "ChangesLate" in world.summary()[2]
    del world.kernel.errors[MODE, family]
    world.sync()
    assert world.summary() == ("healthy", 0, [])
    assert (world.probes(), world.metric(series.OLDEST_PENDING)) == ([200], 0)


def test_a_repair_that_fails_waits_although_no_object_changed(world: World) -> None:
    world.sync()
    world.observer.drifted(Family.IPV4, [Drift("chain", "nat/A", Difference.MISSING)])
    assert world.summary() == ("degraded", 1, ["DriftNotRepaired"])
    world.kernel.errors[MODE, Family.IPV4] = "locked"
    world.sync()
    world.now += 7
    assert world.summary() == ("failing", 1, ["DriftNotRepaired", "SyncFailing"])
    assert world.metric(series.OLDEST_PENDING) == 7
    world.now += 2 * PERIOD
    assert world.probes() == [503]
    world.kernel.errors.clear()
    world.sync()
    assert world.summary() == ("healthy", 0, [])


def test_a_quarantined_service_is_a_finding_and_its_change_is_pending(world: World) -> None:
    world.sync()
    world.add("c", 3)
    world.kernel.refused = {(MODE, "ns1/c")}
    world.sync()
    world.now += 500
    world.sync()
    assert world.summary() == ("healthy", 3, [])
    assert [each.service for each in world.status.families[Family.IPV4].quarantined] == ["ns1/c"]
    assert (world.probes(), world.metric(series.OLDEST_PENDING)) == ([200], 500)
    world.kernel.refused.clear()
    world.sync()
    assert world.summary() == ("healthy", 0, [])
    assert world.metric(series.OLDEST_PENDING) == 0


def test_a_kernel_that_refuses_every_service_is_no_matter_of_objects(world: World) -> None:
    world.sync()
    world.kernel.refused = {(MODE, "ns1/a"), (MODE, "ns1/b")}
    world.sync()
    assert world.summary() == ("failing", 1, ["AllServicesRefused"])
    world.kernel.refused.clear()
    world.sync()
    assert world.summary() == ("healthy", 0, [])


def test_defects_of_objects_are_findings(world: World) -> None:
    world.sync()
    defect = Problem("Service ns/a", "metadata.annotations", '"x"', "is no number")
    world.observer.problems({"ns/a": (defect,)})
    assert world.summary() == ("healthy", 3, [])
    world.observer.problems({"ns/a": ()})
    world.store.reject(Kind.SERVICE, "ns/b", defect)
    assert world.summary() == ("healthy", 3, [])
    world.store.delete(Kind.SERVICE, "ns/b")
    assert world.summary() == ("healthy", 0, [])


def test_watches_may_be_down_for_a_moment(world: World) -> None:
    world.sync()
    world.watches = [SERVICE, down(2)]
    assert world.summary() == ("healthy", 0, [])
    assert world.status.watches[1].down_since is not None
    world.watches = [SERVICE, down(8)]
    assert world.summary() == ("degraded", 1, ["WatchDown"])
    assert "connection refused" in world.status.conditions[0].message
    world.watches = [SERVICE, down(8 * 3600)]
    assert world.probes() == [200]
    world.watches = [SERVICE]
    assert world.summary() == ("healthy", 0, [])


def test_a_kernel_that_cannot_be_compared_is_reported_until_it_can(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.sync()

    def unreadable(*_: object, **__: object) -> tuple[Drift, ...]:
        raise CheckError("iptables-nft-save: table `nat' is incompatible")

    def check() -> None:
        world.agent._drift_checker._compare_from = 0.0
        world.agent._drift_checker.check(world.agent._in_force.syncs.values(), world.agent._in_step)

    with monkeypatch.context() as patch:
        patch.setattr(switch_rig.FakeBackend, "check", unreadable)
        check()
        assert world.summary() == ("degraded", 1, ["ComparisonFailing"])
    check()
    assert world.summary() == ("healthy", 0, [])


def test_repeated_drift_is_reported(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.sync()

    def check() -> None:
        world.agent._drift_checker._compare_from = 0.0
        if world.agent._drift_checker.check(world.agent._in_force.syncs.values(), world.agent._in_step):
            world.sync()

    with monkeypatch.context() as patch:
        patch.setattr(
            switch_rig.FakeBackend, "check", lambda *_, **__: (Drift("chain", "nat/A", Difference.MISSING),)
        )
        for _ in range(2):
            check()
            assert world.summary() == ("healthy", 0, [])
        check()
        assert world.summary() == ("degraded", 1, ["DriftNotRepaired"])
    check()
    assert world.summary() == ("healthy", 0, [])


def test_a_refused_mode_is_reported(world: World) -> None:
    world.sync()
    config = world.agent.config
    world.reloader._requested = 1, config
    world.agent.reported.report(Refusal(1, config, "no IPVS here"))
    ended = threading.Event()
    ended.set()
    world.reloader.follow(world.agent.reported, ended)
    assert world.summary() == ("degraded", 1, ["ModeRefused"])
    assert "no IPVS here" in world.status.conditions[0].message
    assert world.metric(series.MODE_REFUSED) == 1
    assert world.metric(series.CONFIGURATION_REJECTED) == 0
