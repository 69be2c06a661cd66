"""The companions of the enforcement that look beyond its table.

Bridges, packets of pods that are not known yet, connections from before a change, and results of CNI. Each
class here connects one of these with the agent: it says when the work is on, and passes on what was applied.
"""

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kproxy.addresses import Family
from kproxy.agent.policy.bridges import BridgeWatch
from kproxy.agent.policy.connections import PolicyConnections
from kproxy.agent.policy.held import HeldPackets
from kproxy.backends.policy.config import QUEUE, Unknown
from kproxy.config.model import ProxyConfig
from kproxy.kernel.conntrack.connections import NetlinkConnections
from kproxy.node.boot_table import remove_boot_table
from kproxy.node.pod_bridges import BridgeReport, PodBridges
from kproxy.plan.policy.model import PolicyTable, Touched

if TYPE_CHECKING:
    from kproxy.agent.policy.agent import PolicyAgent
    from kproxy.agent.policy.companions import Companion


class HeldCompanion:
    """Holds packets of unknown pods while the settings say so. `known`: local pods in the kernel's table."""

    name = "policy-held"

    def __init__(self, agent: "PolicyAgent", queue: int) -> None:
        self.known: frozenset[str] = frozenset()
        self._agent = agent
        self._of: dict[Family, frozenset[str]] = {}
        self._held = HeldPackets(queue, self._counted)
        self.follow(agent.config)

    def follow(self, config: ProxyConfig) -> None:
        """Give up the queue unless packets are to be held."""
        self._held.turn(on=config.network_policy and config.network_policy_unknown_pods == Unknown.HOLD)

    def applied(self, family: Family, touched: Touched) -> None:
        """Release the packets of pods that are known now."""
        if touched.addresses or family not in self._of:
            found = self._agent.ask(lambda planner: frozenset(planner.tables[family].local))
            self._of[family] = found or frozenset()
            self.known = frozenset[str]().union(*self._of.values())
        self._held.follow(self.known, self._agent.pod_ranges)

    def run(self, stop: threading.Event) -> None:
        """See Companion."""
        self._held.run(stop)

    def wake(self) -> None:
        """See Companion."""
        self._held.wake()

    def _counted(self, outcome: str, packets: int) -> None:
        self._agent.observer.held(outcome, packets)


class BridgeCompanion:
    """Keeps bridges with pods judged while policies are enforced, by the rules of one family or both."""

    name = "policy-bridges"

    def __init__(self, agent: "PolicyAgent", held: HeldCompanion) -> None:
        self._held = held
        self._cni = agent.cni
        self._watch = BridgeWatch(
            PodBridges(agent.families, writing=agent.kernel.writing), self._interfaces, agent.observer.drifted
        )
        self._prepared: set[Family] = set()
        agent.cni.follow(self._watch.wake)

    @property
    def report(self) -> BridgeReport:
        """What it found last."""
        return self._watch.report

    @property
    def gaps(self) -> tuple[str, ...]:
        """See FindsGaps."""
        return self.report.problems

    def follow(self, config: ProxyConfig) -> None:
        """Pause while policies are off."""
        if not config.network_policy:
            self._prepared.clear()
        self._watch.turn(on=config.network_policy)

    def planned(self, family: Family, table: PolicyTable, touched: Touched) -> None:  # noqa: ARG002
        """Set the flags before the first rules of a family: policies in force leave no bridge open."""
        if family not in self._prepared:
            self._prepared.add(family)
            self._watch.prepare(table.local)

    def applied(self, family: Family, touched: Touched) -> None:  # noqa: ARG002
        """Look for the bridges of new pods."""
        self._watch.follow(self._held.known)

    def run(self, stop: threading.Event) -> None:
        """See Companion."""
        self._watch.run(stop)

    def wake(self) -> None:
        """See Companion."""
        self._watch.wake()

    def _interfaces(self) -> frozenset[str]:
        """The node's interfaces that CNI results name."""
        return frozenset(name for result in self._cni.results.values() for name in result.interfaces)


class ConnectionCompanion:
    """Ends forbidden connections unless they are to be kept."""

    name = "policy-connections"

    def __init__(self, agent: "PolicyAgent") -> None:
        self._agent = agent
        self._connections = PolicyConnections(
            NetlinkConnections, agent.ask, self._keep, agent.kernel.refuse_answers, self._counted
        )

    def follow(self, config: ProxyConfig) -> None:
        """Do nothing: the settings are read before each pass."""

    def applied(self, family: Family, touched: Touched) -> None:
        """Look at the connections that the change concerns."""
        self._connections.submit(family, touched)

    def run(self, stop: threading.Event) -> None:
        """See Companion."""
        self._connections.run(stop)

    def wake(self) -> None:
        """See Companion."""
        self._connections.wake()

    def _keep(self) -> bool:
        config = self._agent.config
        return config.network_policy_keep_connections or not config.network_policy

    def _counted(self, family: Family, connections: int) -> None:
        self._agent.observer.ended(family, connections)


class BootCompanion:
    """Removes the table that closed pods since the boot, also one that is loaded again by mistake.

    On a thread of its own: a netfilter socket that is closed after a transaction waits for the kernel's grace
    period, which would delay changes.
    """

    name = "policy-boot"

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._applied: set[Family] = set()
        self._woken = False

    def follow(self, config: ProxyConfig) -> None:
        """Do nothing: where policies are off, what removes their tables removes this one too."""

    def applied(self, family: Family, touched: Touched) -> None:  # noqa: ARG002
        """Look for the table of a family."""
        with self._changed:
            self._applied.add(family)
            self._changed.notify_all()

    def run(self, stop: threading.Event) -> None:
        """See Companion."""
        while not stop.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._applied or self._woken)
                families, self._applied, self._woken = self._applied, set(), False
            for family in sorted(families):
                remove_boot_table(family)

    def wake(self) -> None:
        """See Companion."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()


class CniCompanion:
    """Follows the cache of CNI results."""

    name = "policy-cni"

    def __init__(self, agent: "PolicyAgent") -> None:
        self._cache = agent.cni

    def follow(self, config: ProxyConfig) -> None:
        """Do nothing: results are read while policies are off too, for they are few."""

    def applied(self, family: Family, touched: Touched) -> None:
        """Do nothing."""

    def run(self, stop: threading.Event) -> None:
        """See Companion."""
        self._cache.run(stop)

    def wake(self) -> None:
        """Do nothing: the cache notices the stop."""


def edges(agent: "PolicyAgent") -> "Sequence[Companion]":
    """All of them, in the order in which they hear what was applied."""
    held = HeldCompanion(agent, QUEUE)
    bridges = BridgeCompanion(agent, held)
    return held, ConnectionCompanion(agent), bridges, BootCompanion(), CniCompanion(agent)
