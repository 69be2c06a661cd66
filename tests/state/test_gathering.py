"""The run loop and a service that comes in two parts: one sync for both, and nobody else waits long."""

from __future__ import annotations

import pytest

from kproxy.addresses import Family
from kproxy.agent import schedule
from kproxy.state.kinds import Kind
from kproxy.state.wire import WireObject
from tests.agent.switch_rig import FakeMode, Kernel, Rig
from tests.builders import as_service, as_slice, endpoint_slice, service

SERVICE = as_service(service("c", "10.96.0.3"))
SLICE = as_slice(endpoint_slice("10.1.0.1", service="c"))
LONG = 600.0


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def rig(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> Rig:
    made = Rig(lambda config: FakeMode(kernel, config))
    made.work()
    kernel.history.clear()
    monkeypatch.setattr(schedule, "COALESCE_DELAY", LONG)
    return made


def _due_in(rig: Rig) -> float | None:
    return rig.agent.sync_due_in()


@pytest.mark.parametrize("service_first", [True, False])
def test_both_parts_of_a_service_go_in_one_sync(rig: Rig, kernel: Kernel, *, service_first: bool) -> None:
    parts: list[tuple[Kind, WireObject]] = [(Kind.SERVICE, SERVICE), (Kind.ENDPOINT_SLICE, SLICE)]
    first, second = parts if service_first else reversed(parts)
    assert _due_in(rig) is None
    rig.store.upsert(*first)
    assert LONG / 2 < (_due_in(rig) or 0) <= LONG
    rig.store.upsert(*second)
    assert _due_in(rig) == 0
    rig.work()
    assert kernel.history == ["iptables IPv4: ns1/a ns1/b ns1/c", "iptables IPv6: ns1/a ns1/b"]


def test_a_part_that_nothing_follows_is_waited_for_once(
    rig: Rig, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.store.upsert(Kind.SERVICE, SERVICE)
    monkeypatch.setattr(schedule, "COALESCE_DELAY", 0.0)
    rig.work()
    assert "ns1/c" in kernel.of("iptables")[Family.IPV4]
    monkeypatch.setattr(schedule, "COALESCE_DELAY", LONG)
    rig.store.upsert(Kind.SERVICE, as_service(service("c", "10.96.0.3", externalIPs=["192.0.2.1"])))
    assert _due_in(rig) == 0


def test_changes_of_what_is_there_and_deletions_do_not_wait(rig: Rig) -> None:
    rig.store.upsert(Kind.ENDPOINT_SLICE, as_slice(endpoint_slice("10.1.0.9", service="a")))
    assert _due_in(rig) == 0
    rig.work()
    rig.store.delete(Kind.SERVICE, "ns1/a")
    assert _due_in(rig) == 0
