"""The run loop under a backlog: who is applied when, what stays together, and one family that fails."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from kproxy.addresses import Family
from kproxy.agent import slices
from kproxy.backends.core.base import SyncReport
from kproxy.config.model import ProxyConfig
from kproxy.plan.model import ServicePlan
from kproxy.state.kinds import Kind
from tests.agent.switch_rig import CONFIG, FakeBackend, FakeMode, Kernel, Rig
from tests.builders import as_service, as_slice, endpoint, endpoint_slice, port, service

MODE = CONFIG.proxy_mode


class Recording(FakeBackend):
    """Keeps which services each sync was given."""

    def __init__(self, kernel: Kernel, mode: str, family: Family, syncs: list[set[str]]) -> None:
        super().__init__(kernel, mode, family)
        self.given: set[str] = set()
        self.updates = 0
        self._syncs = syncs

    def update(self, plans: Iterable[ServicePlan]) -> None:
        chosen = list(plans)
        self.given |= {plan.key for plan in chosen}
        self.updates += len(chosen)
        super().update(chosen)

    def sync(self, budget: float | None = None) -> SyncReport:
        if self.family is Family.IPV4:
            self._syncs.append(self.given)
        self.given = set()
        return super().sync(budget)


class RecordingMode(FakeMode):
    def __init__(self, kernel: Kernel, config: ProxyConfig) -> None:
        super().__init__(kernel, config)
        self.syncs: list[set[str]] = []
        self.backends = {
            family: Recording(kernel, config.proxy_mode, family, self.syncs) for family in self.families
        }

    def configure(self, family: Family, facts: object) -> Recording:
        return self.backends[family]


class Backed(Rig):
    """A rig after its first sync."""

    def __init__(self) -> None:
        self.kernel = Kernel()
        self.recording: RecordingMode

        def make(config: ProxyConfig) -> RecordingMode:
            self.recording = RecordingMode(self.kernel, config)
            return self.recording

        super().__init__(make)
        self.work()
        self.recording.syncs.clear()

    @property
    def syncs(self) -> list[set[str]]:
        return self.recording.syncs

    def put(self, key: str, number: int, endpoints: int = 1, address: str = "") -> None:
        namespace, _, name = key.partition("/")
        ips = [address or f"10.96.{number // 250}.{number % 250 + 3}"]
        obj = service(name, ips, namespace=namespace, ports=[port(protocol="UDP")])
        pods = [endpoint(f"10.1.{each // 250}.{each % 250}") for each in range(endpoints)]
        piece = endpoint_slice(*pods, service=name, namespace=namespace, ports=[port(protocol="UDP")])
        self.store.upsert(Kind.SERVICE, as_service(obj))
        self.store.upsert(Kind.ENDPOINT_SLICE, as_slice(piece))

    def step(self) -> None:
        """Work until the next sync has ended."""
        before = len(self.syncs)
        while len(self.syncs) == before:
            deadline = self.agent.step(self.agent._clock())
            assert deadline is not None, "nothing is due"

    def drain(self) -> None:
        """Work until nothing waits."""
        while self.store.changed or self.agent._backlog:
            self.step()


@pytest.fixture
def backed(monkeypatch: pytest.MonkeyPatch) -> Backed:
    """The rate is fixed, so that the sizes do not depend on this machine: 2500 units for two families."""
    monkeypatch.setattr(slices.SliceMeter, "note", lambda *_: None)
    monkeypatch.setattr(slices, "FIRST_RATE", 10e-6)
    return Backed()


def test_a_change_of_another_namespace_passes_a_backlog_and_is_not_in_its_last_slice(backed: Backed) -> None:
    for number in range(1000):
        backed.put(f"busy/s{number:04}", number, endpoints=20)
    backed.step()
    backed.put("calm/web", 2000)
    backed.step()
    assert "calm/web" in backed.syncs[-1]
    assert len(backed.agent._backlog) > 500
    backed.drain()
    assert len(backed.syncs) >= 10
    expected = {"ns1/a", "ns1/b", "calm/web", *(f"busy/s{number:04}" for number in range(1000))}
    assert backed.kernel.of(MODE)[Family.IPV4] == expected
    assert backed.store.pending_since is None


def test_a_large_service_is_planned_after_the_small_ones_and_alone(backed: Backed) -> None:
    backed.put("busy/big", 1, endpoints=5000)
    for number in range(2, 100):
        backed.put(f"busy/s{number}", number)
    backed.drain()
    assert [("busy/big" in each, len(each)) for each in backed.syncs] == [(False, 98), (True, 1)]


def test_a_first_sync_and_a_change_of_the_node_take_everything_at_once(backed: Backed) -> None:
    for number in range(1000):
        backed.put(f"busy/s{number:04}", number, endpoints=20)
    backed.step()
    assert backed.agent._backlog
    backed.agent._replan = True
    backed.step()
    assert len(backed.syncs[-1]) == 1002
    assert not backed.agent._backlog
    assert backed.store.pending_since is None


def test_an_address_passes_from_one_service_to_another_in_one_sync_although_others_wait(
    backed: Backed,
) -> None:
    backed.put("busy/holder", 1, endpoints=1000, address="10.96.9.9")
    backed.drain()
    for number in range(1000):
        backed.put(f"busy/s{number:04}", number, endpoints=20)
    backed.put("calm/heir", 1, address="10.96.9.9")
    backed.put("busy/holder", 1, endpoints=1000, address="10.96.9.8")
    backed.syncs.clear()
    backed.step()
    assert {"busy/holder", "calm/heir"} <= backed.syncs[0]
    assert backed.observer.known_problems() == []
    assert backed.agent._backlog
    backed.drain()
    assert backed.observer.known_problems() == []


def test_the_age_of_the_oldest_pending_change_is_right_while_a_backlog_shrinks(backed: Backed) -> None:
    for number in range(1000):
        backed.put(f"busy/s{number:04}", number, endpoints=20)
    since = backed.store.pending_since
    assert since is not None
    backed.step()
    backed.step()
    assert backed.agent._backlog
    assert backed.store.pending_since is not None
    assert backed.store.pending_since <= since + 5.0
    assert backed.store.changes()[Kind.SERVICE].pending == len(backed.agent._backlog)
    backed.drain()
    assert backed.store.pending_since is None


def test_a_family_that_fails_does_not_make_the_other_plan_old_changes_again(backed: Backed) -> None:
    backed.kernel.errors[MODE, Family.IPV6] = "no such kernel"
    backed.put("n/first", 1)
    backed.drain()
    for number in range(2, 52):
        backed.put(f"n/s{number}", number)
        backed.step()
    backend = backed.recording.backends[Family.IPV4]
    assert backed.syncs[-1] <= {"n/s51"}
    assert backend.updates == 2 + 51
    assert backed.store.pending_since is not None
    del backed.kernel.errors[MODE, Family.IPV6]
    backed.agent.sync()
    assert backed.store.changes()[Kind.SERVICE].pending == 0
    assert backed.kernel.of(MODE)[Family.IPV6] == {"ns1/a", "ns1/b"}


def test_a_family_that_fails_is_tried_when_its_retry_is_due_not_with_each_change(backed: Backed) -> None:
    backed.kernel.errors[MODE, Family.IPV6] = "no such kernel"
    backed.put("n/first", 1)
    backed.drain()
    backed.agent._schedule._retry_at = backed.agent._clock() + 1000.0
    backed.kernel.history.clear()
    for number in range(2, 22):
        backed.put(f"n/s{number}", number)
        backed.step()
    assert {line.split(":")[0] for line in backed.kernel.history} == {f"{MODE} IPv4"}
    backed.agent._schedule._retry_at = 0.0
    backed.step()
    assert any(line.startswith(f"{MODE} IPv6") for line in backed.kernel.history)


def test_once_ends_when_no_slice_is_left(backed: Backed) -> None:
    for number in range(1000):
        backed.put(f"busy/s{number:04}", number, endpoints=20)
    backed.work()
    assert len(backed.kernel.of(MODE)[Family.IPV4]) == 1002
