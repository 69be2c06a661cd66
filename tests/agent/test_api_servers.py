"""The run loop and the addresses of API servers, which no service may take from the moment they are known."""

from __future__ import annotations

import msgspec

from kproxy.state.kinds import Kind
from tests.agent.switch_rig import CONFIG, FakeMode, Kernel, Rig
from tests.builders import as_service, as_slice, endpoint_slice, service

ADDRESS = "192.0.2.1"


def _refused(rig: Rig) -> list[str]:
    return [problem.object for problem in rig.observer.known_problems() if problem.refused]


def _rig() -> Rig:
    kernel = Kernel()
    rig = Rig(lambda config: FakeMode(kernel, config))
    rig.store.upsert(Kind.SERVICE, as_service(service("thief", "10.96.0.3", externalIPs=[ADDRESS])))
    rig.store.upsert(Kind.ENDPOINT_SLICE, as_slice(endpoint_slice("10.1.0.1", service="thief")))
    rig.work()
    return rig


def test_a_service_loses_the_address_that_an_api_server_turns_out_to_have() -> None:
    rig = _rig()
    assert _refused(rig) == []
    rig.api_servers = frozenset({(ADDRESS, 80)})
    rig.work()
    assert _refused(rig) == ["Service ns1/thief"]
    rig.api_servers = frozenset({("192.0.2.9", 80)})
    rig.work()
    assert _refused(rig) == []


def test_allowed_ranges_apply_at_once() -> None:
    rig = _rig()
    rig.work(msgspec.structs.replace(CONFIG, external_ip_cidrs=("198.51.100.0/24",)))
    assert _refused(rig) == ["Service ns1/thief"]
    rig.work(CONFIG)
    assert _refused(rig) == []
