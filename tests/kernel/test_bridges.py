"""Flags of real bridges: what is read, what setting them does to packets, and what it leaves alone."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kproxy.addresses import Family
from kproxy.kernel import bridges
from kproxy.kernel.bridges import Bridge
from kproxy_lab.lab import Lab, LabSpec
from kproxy_lab.lab.flows import Flow, FlowProtocol, FlowTester, ends_of
from kproxy_lab.lab.topology import BRIDGE
from tests.kernel.namespace import fresh_network

PROTOCOLS: tuple[tuple[FlowProtocol, int], ...] = (("TCP", 80), ("UDP", 53), ("SCTP", 9), ("ICMP", 0))
BOTH = {Family.IPV4: True, Family.IPV6: True}
REFUSE = """table ip t { chain forward { type filter hook forward priority 0; ip saddr 10.244.1.10 drop; }; }
table ip6 t { chain forward { type filter hook forward priority 0;
 icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept; ip6 saddr fd00:10:244:1::10 drop; }; }
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def named(name: str) -> Bridge:
    return next(bridge for bridge in bridges.read().values() if bridge.name == name)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if reasons := Lab.missing():
        pytest.skip("; ".join(reasons))
    with Lab(LabSpec(local_pods=2, remote_pods=0, plain_bridge=True)) as made:
        if not made.node.call(bridges.loaded):
            pytest.skip("this kernel has no br_netfilter")
        for name in ("iptables", "ip6tables"):
            made.node.sysctl(f"net.bridge.bridge-nf-call-{name}", 0)
        made.node.run(["nft", "-f", "-"], stdin=REFUSE)
        yield made


@pytest.mark.root
def test_rules_judge_packets_between_pods_of_a_bridge_only_with_its_flag(lab: Lab) -> None:
    first, second = lab.pods
    flows = [
        Flow(source.namespace, to, protocol, port)
        for source, pod in ((first, second), (second, first))
        for to in (pod.ip4, pod.ip6)
        for protocol, port in PROTOCOLS
    ]
    with FlowTester(ends_of(lab.pods), {"TCP": (80,), "UDP": (53,)}) as tester:
        assert all(tried.open for tried in tester.attempt(flows, [True] * len(flows)))
        lab.node.call(lambda: bridges.set_filtered(named(BRIDGE), BOTH))
        sent, answered = tester.attempt(flows[:8]), tester.attempt(flows[8:])
        assert not any(tried.open for tried in sent)
        # The rule does not know connections, so it refuses answers too.
        assert not any(tried.answered for tried in answered if tried.flow.protocol != "SCTP")
        assert all(tried.arrived for tried in answered if tried.flow.protocol in {"UDP", "SCTP"})
        lab.node.call(lambda: bridges.set_filtered(named(BRIDGE), dict.fromkeys(Family, False)))
        assert all(tried.open for tried in tester.attempt(flows, [True] * len(flows)))


@fresh_network
def test_one_bridge_and_one_family_are_changed_and_nothing_else() -> None:
    for name in ("one", "two"):
        ip("link", "add", name, "type", "bridge", "stp_state", "1", "ageing_time", "1234")
    ip("link", "add", "port", "type", "veth", "peer", "name", "alone")
    ip("link", "set", "port", "master", "one")
    assert {bridge.filtered for bridge in bridges.read().values()} == {frozenset()}
    bridges.set_filtered(named("one"), {Family.IPV6: True})
    assert named("one").filtered == frozenset({Family.IPV6})
    assert named("two").filtered == frozenset()
    shown = subprocess.run(["ip", "-d", "link", "show", "one"], check=True, capture_output=True, text=True)
    assert "stp_state 1" in shown.stdout
    assert "ageing_time 1234" in shown.stdout
    assert [bridges.master(name) for name in ("port", "alone", "missing")] == [named("one").index, None, None]
    gone = named("two")
    ip("link", "del", "two")
    with pytest.raises(bridges.BridgeError, match="bridge two"):
        bridges.set_filtered(gone, BOTH)


@fresh_network
def test_every_change_of_a_bridge_is_an_event_and_other_links_are_not() -> None:
    with bridges.events() as events:
        ip("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
        assert not events.changed()
        ip("link", "add", "one", "type", "bridge")
        assert events.changed()
        ip("link", "set", "one", "up")
        bridges.set_filtered(named("one"), BOTH)
        assert events.changed()
        ip("link", "set", "one", "type", "bridge", "nf_call_iptables", "0")
        assert events.changed()
        assert named("one").filtered == frozenset({Family.IPV6})
        ip("link", "del", "one")
        assert events.changed()
        assert not events.changed()


def test_the_module_is_there_if_its_parameter_is(tmp_path: Path) -> None:
    file = tmp_path / "bridge-nf-call-iptables"
    assert not bridges.loaded(file)
    with contextlib.closing(file.open("w")):
        assert bridges.loaded(file)
