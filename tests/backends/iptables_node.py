"""A node in memory in iptables mode: a backend over a fake, and what is looked at after each restore."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from kproxy.addresses import Family
from kproxy.backends.core.base import LocalTraffic, SyncReport
from kproxy.backends.core.foreign_writes import ForeignWrites
from kproxy.backends.iptables.backend import IptablesBackend
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.iptables.dump import parse_save
from kproxy.backends.iptables.layout import Layout, StandardLayout
from kproxy.backends.iptables.scalable import ScalableLayout
from kproxy.backends.iptables.shared import Placement, rerooted
from kproxy.kernel.xtables.types import Variant
from kproxy.plan.model import PortPlan, ServicePlan, Verdict
from tests.backends.node import Node
from tests.backends.packets import Packet, is_served, outcomes
from tests.support.fake_xtables import FakeXtables

CONFIG = IptablesConfig(Family.IPV4, local_traffic=LocalTraffic(cidr="10.1.0.0/16"))
CONTESTED = ("203.0.113.1", "203.0.113.2")
State = dict[str, dict[str, list[str]]]


class WatchedXtables(FakeXtables):
    """Calls `after` whenever a restore may have changed something."""

    after: Callable[[], None] | None = None
    _spared = 0

    def restore(self, text: bytes) -> None:
        faults = self._faults
        if self._spared:
            self._spared -= 1
            self._faults = []
        try:
            super().restore(text)
        finally:
            self._faults = faults
            if self.after is not None:
                self.after()

    def spare(self, restores: int) -> None:
        """Let so many restores pass before the faults that were ordered."""
        self._spared = restores

    def refuse_new_rules_of(self, service: str) -> None:
        """Refuse rules that name the service, but for those that stand already: these the kernel knows."""
        standing = {
            rule.split(" ", 2)[2]
            for table in ("nat", "filter")
            for rules in self.chains(table).values()
            for rule in rules
        }
        taken = "|".join(re.escape(rule) for rule in sorted(standing) if f'"{service}' in rule)
        named = rf'.*"{service}[:" ]'
        self.refuse_rules_matching(rf"^-A \S+ (?!(?:{taken})$){named}" if taken else named)

    def clear_faults(self) -> None:
        """Let everything work again."""
        self._spared = 0
        self._faults.clear()
        self.accept_all_rules()


class IptablesNode(Node[IptablesBackend, State]):
    """One node of a variant and a layout; `now` is its clock."""

    now = 1000.0

    def __init__(
        self,
        variant: Variant = Variant.NFT,
        *,
        piece: int | None = None,
        config: IptablesConfig = CONFIG,
        fake: WatchedXtables | None = None,
        layout: Callable[[IptablesConfig], Layout] = StandardLayout,
    ) -> None:
        self.fake = fake or WatchedXtables(config.family, variant)
        self.config = config
        self.piece = piece
        self.layout = layout
        super().__init__(config.family)

    def make_backend(self) -> IptablesBackend:
        """A backend of the layout."""
        watch = ForeignWrites(self.fake.generation)
        return IptablesBackend(
            self.layout(self.config), self.fake, watch, batch_size=self.piece, clock=lambda: self.now
        )

    def another(self) -> IptablesNode:
        """A node with the same settings and an empty kernel."""
        return IptablesNode(self.fake.variant, config=self.config, layout=self.layout)

    def state(self) -> State:
        """Everything in the kernel: table -> chain -> rules."""
        return parse_save(self.fake.save())

    def holds(self, key: str) -> bool:
        """Whether the kernel has every rule of the service as it is planned."""
        layout = self.layout(self.config)
        rules = layout.render(self.plans[key], comments=True)
        state = self.state()
        return all(
            state["nat"].get(chain) == text.splitlines() for chain, text in rules.chains.items()
        ) and all(
            line in _lines_within(state.get(placement.root[0], {}), placement)
            for field, placement in layout.shared.items()
            for line in getattr(rules.shared, field)
        )


def _lines_within(chains: dict[str, list[str]], placement: Placement) -> list[str]:
    """The lines of a placement's chains as they would stand in its root."""
    ours = [chain for chain in chains if chain == placement.root[1] or placement.contains(chain)]
    return [rerooted(placement, f"{line}\n") for chain in ours for line in chains[chain]]


def frontends(plans: Iterable[ServicePlan]) -> dict[Packet, Verdict]:
    """The packets that name a service's addresses, with what should become of each."""
    found: dict[Packet, Verdict] = {}
    for plan in plans:
        for port in plan.ports:
            found |= dict.fromkeys(_packets(port, [port.cluster_ip]), port.internal)
            outside = [*port.external_ips, *_open_balancers(port)]
            found |= dict.fromkeys(_packets(port, outside), port.external)
            if port.node_port:
                node_port = Packet("192.168.0.2", port.node_port, port.protocol.value.lower())
                found[node_port] = port.external
    return found


def _open_balancers(port: PortPlan) -> tuple[str, ...]:
    return port.load_balancer_ips if port.source_ranges is None else ()


def _packets(port: PortPlan, addresses: Iterable[str]) -> Iterable[Packet]:
    return [Packet(ip, port.port, port.protocol.value.lower()) for ip in addresses]


class NeverLost:
    """Checks after each restore that no address which stays loses its service on the way."""

    def __init__(self, cluster: IptablesNode) -> None:
        self.cluster = cluster
        self._watched: dict[Packet, bool] = {}

    def expect(self, *, contested: bool) -> None:
        """Take note of what works now and will work after the next sync; call it before each."""
        self.cluster.plan()
        wanted = frontends(self.cluster.plans.values())
        if not contested:
            wanted = {packet: verdict for packet, verdict in wanted.items() if packet.dst not in CONTESTED}
        now = {packet: outcomes(self.cluster.fake, packet) for packet in wanted}
        self._watched = {
            packet: is_served(now[packet]) and verdict is Verdict.FORWARD
            for packet, verdict in wanted.items()
            if "LOST" not in now[packet]
        }
        self.cluster.fake.after = self.check

    def check(self) -> None:
        for packet, served in self._watched.items():
            found = outcomes(self.cluster.fake, packet)
            assert "LOST" not in found, (packet, self.cluster.fake.restores[-1].decode())
            assert not served or is_served(found), (packet, found, self.cluster.fake.restores[-1].decode())


def sync_checked(cluster: IptablesNode, *, contested: bool = True) -> SyncReport:
    """A sync during which no address may be lost, not even between two restores.

    `contested` off leaves out addresses that may change hands: where the kernel refuses the new owner, the
    old one has none to go back to.
    """
    NeverLost(cluster).expect(contested=contested)
    try:
        return cluster.sync()
    finally:
        cluster.fake.after = None


def divided(config: IptablesConfig) -> ScalableLayout:
    """The scalable layout with chains so short that a few services make a tree."""
    return ScalableLayout(config, longest=2)


def config_with(**changes: Any) -> IptablesConfig:
    """The usual settings with some changed."""
    return msgspec.structs.replace(CONFIG, **changes)
