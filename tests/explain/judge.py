"""Packets are the judge: what the interpreters say of the kernel's rules is compared with what packets do."""

import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from kproxy.addresses import Family, split_host_port
from kproxy.backends.core.base import Backend
from kproxy.backends.core.foreign_writes import ForeignWrites
from kproxy.backends.policy import probe as kernel_probe
from kproxy.backends.policy.backend import PolicyBackend
from kproxy.backends.policy.config import PolicyConfig
from kproxy.config.model import ProxyConfig
from kproxy.kernel import links
from kproxy.kernel.nft.netlink import NetlinkNft
from kproxy.kernel.nft.types import NftError
from kproxy.kernel.processes import Runner
from kproxy.modes.base import KernelRules
from kproxy.modes.packet_walk import KernelRouting, RulesOfAllModes
from kproxy.modes.registry import mode_registry
from kproxy.node.facts import NodeFacts, node_facts
from kproxy.plan.model import ServicePlan
from kproxy.plan.outcomes import Outcome, Packet, PacketVerdict, Where
from kproxy.plan.planner import Planner
from kproxy.plan.policy.planner import PolicyPlanner
from kproxy.state.decode import decode
from kproxy.state.kinds import Kind
from kproxy.state.policy_wire import Namespace, NetworkPolicy, Pod
from kproxy.state.wire import Node
from kproxy_lab.lab import Lab
from tests.builders import raw
from tests.explain.policies import PolicyObjects
from tests.explain.site import Seen, Site
from tests.explain.world import Probe, World, probes
from tests.peer.objects import SPEC, node

PACKETS = int(os.environ.get("KPROXY_EXPLAIN", "40"))
"""Packets of each mode and family."""

CIDRS = ("10.244.0.0/16", "fd00:10:244::/56")


@dataclass
class Verdicts:
    """How many predictions were right, and the wrong ones in words."""

    agreed: int = 0
    wrong: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """All predictions."""
        return self.agreed + len(self.wrong)


class Judge:
    """A node of a lab that kproxy programs. Its methods run in the node's namespace."""

    def __init__(self, lab: Lab, config: ProxyConfig) -> None:
        self._lab = lab
        self._config = config
        self._modes = mode_registry(Runner())
        self._mode = self._modes.make(config)
        self._walker = RulesOfAllModes(self._modes.rule_readers(config))
        decoded = decode(Kind.NODE, raw(node()))
        assert isinstance(decoded, Node)
        facts = node_facts(config, decoded, links.local_addresses())
        assert facts is not None
        self.facts: NodeFacts = facts
        self._backends: dict[Family, Backend] = {
            family: self._mode.configure(family, self.facts.families[family])
            for family in self._mode.families
        }
        self._planners = {family: Planner(family) for family in self._backends}
        self.planner = PolicyPlanner(SPEC.node_name, self._backends)
        self._objects: PolicyObjects = {}
        nft = NetlinkNft()
        watch = ForeignWrites(nft.generation)
        self._policies = {
            family: PolicyBackend(PolicyConfig(family), nft, watch)
            for family in self._backends
            if _has_nftables(nft, family)
        }
        self.plans: dict[Family, dict[str, ServicePlan]] = {family: {} for family in self._backends}

    @property
    def families(self) -> tuple[Family, ...]:
        """The families that the mode serves."""
        return tuple(self._backends)

    @property
    def enforces(self) -> bool:
        """Whether this kernel can enforce policies: the user-mode kernels have no nftables."""
        return bool(self._policies)

    def program(self, world: World) -> None:
        """Bring a world's services into the kernel, instead of those before."""
        for family, backend in self._backends.items():
            changed = self._planners[family].update(world.inputs, self.facts.view)
            self.plans[family] |= changed
            backend.update(changed.values())
            report = backend.sync()
            assert (report.error, report.failed) == (None, {})
        self._enforce(world.policies)

    def _enforce(self, objects: PolicyObjects) -> None:
        """Bring a world's policies into the kernel, instead of those before."""
        changes = dict.fromkeys(self._objects, None) | objects
        self._objects = objects
        of = {
            kind: {
                name.partition(" ")[2]: each for name, each in changes.items() if name.startswith(f"{kind} ")
            }
            for kind in ("pod", "namespace", "policy")
        }
        touched = self.planner.update(
            cast("dict[str, Pod | None]", of["pod"]),
            cast("dict[str, Namespace | None]", of["namespace"]),
            cast("dict[str, NetworkPolicy | None]", of["policy"]),
        )
        for family, backend in self._policies.items():
            backend.update(self.planner.tables[family], touched[family])
            report = backend.sync()
            assert (report.error, report.failed) == (None, {}), report

    def read(self, family: Family) -> KernelRules:
        """What the kernel holds."""
        return self._walker.read_kernel(family)

    def predict(self, rules: KernelRules, sent: Sequence[Probe]) -> list[tuple[Outcome, ...]]:
        """What should become of packets."""
        routing = KernelRouting()
        return [self._walker.walk(rules, packet_of(probe), routing) for probe in sent]

    @staticmethod
    def with_sources(sent: Sequence[Probe]) -> list[Probe]:
        """The packets, those of the node itself with the source that its kernel prefers."""
        routing = KernelRouting()
        found = []
        for probe in sent:
            route = routing.route(probe.destination) if probe.source == "node/own" else None
            found.append(probe if route is None else replace(probe, address=route.source))
        return found


def _has_nftables(nft: NetlinkNft, family: Family) -> bool:
    try:
        kernel_probe.probe(nft, family)
    except NftError:
        return False
    return True


def packet_of(probe: Probe) -> Packet:
    """The packet as an interpreter takes it."""
    if probe.source.startswith("node"):
        where, interface = Where.NODE, None
    elif probe.source.startswith("local"):
        where, interface = Where.POD, "mynet0"
    else:
        where, interface = Where.OUTSIDE, "eth0"
    return Packet(probe.address, probe.protocol, probe.destination, probe.port, where, interface)


def settings(**fields: object) -> ProxyConfig:
    """The configuration of a judged node."""
    return ProxyConfig(node_name=SPEC.node_name, cluster_cidrs=CIDRS, **fields)  # type: ignore[arg-type]


def judge_round(
    judge: Judge, lab: Lab, site: Site, family: Family, sent: Sequence[Probe], found: Verdicts
) -> None:
    """Predict packets, send them, and compare."""
    sent = lab.node.call(judge.with_sources, sent)
    predicted = lab.node.call(lambda: judge.predict(judge.read(family), sent))
    awaited = [
        all(_leaves_trace(site, probe, each) for each in ways)
        for probe, ways in zip(sent, predicted, strict=True)
    ]
    for probe, ways, seen in zip(sent, predicted, site.send(sent, awaited), strict=True):
        total = sum(way.probability for way in ways)
        if abs(total - 1) < 1e-6 and any(agrees(site, probe, way, seen) for way in ways):
            found.agreed += 1
            found.kinds.update({f"{way.verdict}{' masquerade' * way.masquerade}" for way in ways})
        else:
            found.wrong.append(
                f"{probe}\n  seen {seen}\n  predicted " + "\n            ".join(map(str, ways))
            )


def _leaves_trace(site: Site, probe: Probe, way: Outcome) -> bool:
    if way.verdict is PacketVerdict.UNTOUCHED:
        return bool(site.owner(probe.destination))
    if way.verdict is PacketVerdict.FORWARD:
        return not _is_discarded(split_host_port(way.endpoint or "")[0], probe, way)
    return way.verdict is PacketVerdict.REJECT


def _is_discarded(ip: str, probe: Probe, way: Outcome) -> bool:
    """Whether the endpoint discards the packet: in IPv4 a host takes none from its own address."""
    return ip == probe.address and not way.masquerade and ":" not in ip


def agrees(site: Site, probe: Probe, way: Outcome, seen: Seen) -> bool:
    """Whether a predicted way is what was seen."""
    match way.verdict:
        case PacketVerdict.FORWARD:
            assert way.endpoint is not None
            ip, port = split_host_port(way.endpoint)
            if _is_discarded(ip, probe, way):
                return not seen.arrived
            kept = seen.source == probe.address
            from_node = probe.source.startswith("node")
            return (seen.arrived, seen.port) == (site.owner(ip), port) and (
                kept != way.masquerade or from_node
            )
        case PacketVerdict.UNTOUCHED:
            owner = site.owner(probe.destination)
            if not owner and not seen.arrived:
                return True
            owner = owner or "node"  # in IPVS mode the node has the addresses of services
            return (seen.arrived, seen.port, seen.source) == (owner, probe.port, probe.address)
        case PacketVerdict.REJECT:
            return seen == Seen(refused=True)
        case PacketVerdict.DROP:
            return seen == Seen()
    return False


def run(lab: Lab, judge: Judge, seed: int, packets: int = PACKETS) -> Mapping[Family, Verdicts]:
    """Random worlds and packets, `packets` for each family."""
    rng = random.Random(seed)
    found = {family: Verdicts() for family in judge.families}
    sites = {family: Site(lab, family) for family in judge.families}
    try:
        left = packets
        while left > 0:
            world = World.random(rng, 12)
            lab.node.call(judge.program, world)
            for size in _rounds(min(left, 200)):
                for family, site in sites.items():
                    sent = probes(rng, list(judge.plans[family].values()), family, size)
                    judge_round(judge, lab, site, family, sent, found[family])
            left -= 200
    finally:
        for site in sites.values():
            site.close()
    return found


def _rounds(packets: int) -> list[int]:
    """Several rounds, so that affinity remembers clients of earlier ones."""
    size = max(10, packets // 4)
    return [size] * (packets // size) + ([packets % size] if packets % size else [])
