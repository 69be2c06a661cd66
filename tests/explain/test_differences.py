"""On a healthy node explain finds no difference; KPROXY_EXPLAIN=1000 asks so many questions of each mode."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator
from typing import cast

import msgspec
import pytest

from kproxy.addresses import Family, join_host_port
from kproxy.config.model import ProxyConfig
from kproxy.inspect.explain.desired import explain_desired
from kproxy.inspect.explain.difference import with_differences
from kproxy.inspect.explain.policies import Enforcement
from kproxy.inspect.explain.question import Question
from kproxy.inspect.explain.report import Report, Since, actual_of
from kproxy.modes.packet_walk import KernelRouting, RulesOfAllModes
from kproxy.modes.registry import mode_registry
from kproxy.plan.outcomes import ModeFacts, PacketVerdict
from kproxy.plan.planner import Planner
from kproxy.state.decode import decode
from kproxy.state.kinds import Kind
from kproxy.state.tables import ServiceInput
from kproxy.state.wire import EndpointSlice, Node
from kproxy_lab.lab import Lab
from tests.builders import raw
from tests.explain.judge import PACKETS, Judge
from tests.explain.test_packets import CASES
from tests.explain.world import Probe, World, probes
from tests.peer.objects import SPEC, node


class JudgedCluster:
    """The objects of a world on a judged node; see kproxy.inspect.explain.cluster.Cluster."""

    def __init__(self, judge: Judge, config: ProxyConfig, world: World) -> None:
        self.config = config
        self.facts = judge.facts
        self.node = cast("Node", decode(Kind.NODE, raw(node())))
        self.routing = KernelRouting()
        self.policies = Enforcement(judge.planner) if judge.enforces else None
        self._inputs = {each.key: each for each in world.inputs}
        self._planners = {family: Planner(family) for family in judge.families}
        for planner in self._planners.values():
            planner.update(world.inputs, self.facts.view)

    def planner(self, family: Family) -> Planner:
        """The plans of a family."""
        return self._planners[family]

    def mode_facts(self, family: Family) -> ModeFacts:
        """The behaviour of the mode."""
        spec = mode_registry().spec(self.config)
        return spec.explain_facts(self.config, family, self.facts.families[family])

    def service(self, key: str) -> ServiceInput:
        """A service and its slices."""
        return self._inputs[key]

    def slices(self) -> Iterable[EndpointSlice]:
        """Every slice."""
        return (piece for each in self._inputs.values() for piece in each.slices)

    @staticmethod
    def since(_key: str, _family: Family) -> Since | None:
        """Not known."""
        return None


@pytest.fixture
def lab() -> Iterator[Lab]:
    if reasons := Lab.missing():
        pytest.skip("; ".join(reasons))
    with Lab(SPEC) as made:
        yield made


def ask(cluster: JudgedCluster, sent: list[Probe]) -> list[Report]:
    """Explain packets, in the node's namespace."""
    walker = RulesOfAllModes(mode_registry().rule_readers(cluster.config))
    found = []
    rules = None
    for probe in sent:
        source = "node" if probe.source == "node/own" else probe.address
        asked = Question(source, probe.protocol, join_host_port(probe.destination, probe.port))
        report = explain_desired(asked, cluster)
        packet = report.packet
        rules = walker.read_kernel(packet.family) if rules is None else rules
        actual = actual_of(walker.walk(rules, packet, cluster.routing))
        found.append(with_differences(msgspec.structs.replace(report, actual=actual)))
    return found


USUAL = ("nftables", "iptables-nft-standard", "iptables-legacy-scalable", "ipvs")
"""All cases are asked with KPROXY_EXPLAIN."""


@pytest.mark.root
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(name, marks=[pytest.mark.ipvs] if name.startswith("ipvs") else [])
        for name in (CASES if "KPROXY_EXPLAIN" in os.environ else USUAL)
    ],
)
def test_a_healthy_node_has_no_difference_and_nothing_unknown(lab: Lab, case: str) -> None:
    rng = random.Random(23)
    judge = lab.node.call(Judge, lab, CASES[case])
    for _ in range(max(1, PACKETS // 100)):
        world = World.random(rng, 12)
        lab.node.call(judge.program, world)
        cluster = lab.node.call(JudgedCluster, judge, CASES[case], world)
        for family in judge.families:
            sent = probes(rng, [*judge.plans[family].values()], family, min(PACKETS, 100))
            reports = lab.node.call(ask, cluster, sent)
            wrong = [_text(report) for report in reports if not _agrees(report)]
            assert not wrong, f"{family}: {len(wrong)} of {len(reports)}\n" + "\n".join(wrong[:5])
            verdicts = {way.verdict for report in reports for way in report.desired.outcomes}
            assert verdicts >= {PacketVerdict.FORWARD, PacketVerdict.UNTOUCHED}


def _agrees(report: Report) -> bool:
    assert report.actual is not None
    unknown = any(way.verdict is PacketVerdict.UNKNOWN for way in report.actual.outcomes)
    return not report.differences and not unknown


def _text(report: Report) -> str:
    return f"{report.packet}\n  {report.desired}\n  {report.actual}\n  {report.differences}"
