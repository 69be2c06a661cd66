"""Flows that exist before a change: datagrams follow the service, connections keep their endpoint."""

import time
from contextlib import ExitStack

import pytest

from kproxy_lab.lab import AskError, HeldConnection, Protocol
from tests.peer.objects import port, served, service, slices
from tests.peer.site import DEADLINE, Runner, Site

pytestmark = pytest.mark.root

WAYS = ("cluster", "node")


def _hold(stack: ExitStack, runner: Runner, site: Site, way: str, protocol: Protocol) -> HeldConnection:
    (stored,) = site.services()
    at = stored["spec"]["ports"][0]
    ip, number = (
        (stored["spec"]["clusterIP"], at["port"]) if way == "cluster" else ("192.168.100.10", at["nodePort"])
    )
    return stack.enter_context(runner.lab.hold(runner.lab.client, ip, number, protocol, timeout=5))


def _met(held: HeldConnection) -> str:
    try:
        return held.exchange(timeout=2).pod
    except AskError as error:
        return type(error).__name__


def _write(site: Site, protocol: str, *places: str) -> None:
    site.write(service("web", port(53, "", protocol), type="NodePort"))
    site.write(*slices("web", *places, ports=[served(protocol=protocol)]))
    site.settle()


@pytest.mark.parametrize("way", WAYS)
def test_datagrams_follow_their_service(site: Site, way: str) -> None:
    _write(site, "UDP", "local-0")
    with ExitStack() as stack:
        held = [_hold(stack, runner, site, way, "UDP") for runner in site.runners]
        assert [_met(one) for one in held] == ["local-0"] * len(held)
        for place in ("local-1", "remote-0"):
            _write(site, "UDP", place)
            for runner, one in zip(site.runners, held, strict=True):
                deadline = time.monotonic() + DEADLINE
                while (met := _met(one)) != place:
                    assert time.monotonic() < deadline, f"{runner.contender}: still {met}, not {place}"


@pytest.mark.parametrize("way", WAYS)
def test_connections_outlive_their_endpoint(site: Site, way: str) -> None:
    _write(site, "TCP", "local-0")
    with ExitStack() as stack:
        held = [_hold(stack, runner, site, way, "TCP") for runner in site.runners]
        assert [_met(one) for one in held] == ["local-0"] * len(held)
        for places in (("remote-0",), ()):
            _write(site, "TCP", *places)
            assert [_met(one) for one in held] == ["local-0"] * len(held)
