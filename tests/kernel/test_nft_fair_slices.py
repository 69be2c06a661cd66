"""The run loop over the real kernel: a small change is committed before a backlog of another namespace."""

from __future__ import annotations

import msgspec
import pytest

from kproxy.addresses import Family
from kproxy.agent import slices
from kproxy.backends.nftables import names
from kproxy.kernel.nft.netlink import NetlinkNft
from kproxy.modes.base import ModeUnavailable
from kproxy.modes.nftables.mode import NftablesMode
from kproxy.state.kinds import Kind
from tests.agent.switch_rig import CONFIG, Rig
from tests.builders import as_service, as_slice, endpoint_slice, service
from tests.kernel.namespace import fresh_network

SERVICES, ENDPOINTS = 1000, 20
VICTIM = "10.97.0.1"


def _put(rig: Rig, namespace: str, name: str, ip: str, endpoints: int) -> None:
    rig.store.upsert(Kind.SERVICE, as_service(service(name, ip, namespace=namespace)))
    pods = [f"10.1.{number // 250}.{number % 250 + 1}" for number in range(endpoints)]
    rig.store.upsert(Kind.ENDPOINT_SLICE, as_slice(endpoint_slice(*pods, service=name, namespace=namespace)))


def _in_the_kernel() -> set[str]:
    """The addresses of the services that the kernel has."""
    frontends = NetlinkNft().counts(Family.IPV4, names.TABLE, names.SERVICES) or {}
    return {key.split(" . ")[0] for key in frontends}


@fresh_network
def test_a_small_change_is_committed_while_a_thousand_expensive_ones_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Slices have a fixed size, so that the order does not depend on this machine."""
    monkeypatch.setattr(slices.SliceMeter, "note", lambda *_: None)
    nftables = msgspec.structs.replace(CONFIG, proxy_mode="nftables")
    try:
        rig = Rig(lambda config: NftablesMode(config, NetlinkNft()), nftables)
    except ModeUnavailable as error:
        pytest.skip(str(error))
    rig.work()
    busy = {f"10.96.{number // 250 + 1}.{number % 250 + 1}" for number in range(SERVICES)}
    for number, ip in enumerate(sorted(busy)):
        _put(rig, "busy", f"s{number}", ip, ENDPOINTS)
    rig.agent.observe()
    rig.agent.sync()
    first = len(busy & _in_the_kernel())
    assert 0 < first < SERVICES / 4
    _put(rig, "calm", "web", VICTIM, 1)
    rig.agent.sync()
    found = _in_the_kernel()
    assert VICTIM in found
    assert len(busy & found) < SERVICES / 2
    rig.work()
    assert _in_the_kernel() >= busy | {VICTIM}
    assert rig.store.pending_since is None
