"""Walk a packet through everything that the kernel holds, or that a dump of another machine shows.

Packets pass the rules of every program, so the readers of all modes take part, whichever mode runs.
"""

from collections.abc import Collection
from typing import Protocol

from kproxy.addresses import Family
from kproxy.backends.core import hooks
from kproxy.backends.core.packets import SharedRules
from kproxy.kernel import routing
from kproxy.modes.base import ExplainError, KernelRules, RuleReader
from kproxy.plan.outcomes import Outcome, Packet, Route, Routing

_MORE_WALKS = 2


class PacketWalker(Protocol):
    """What becomes of a packet in rules that were read before."""

    def read_kernel(self, family: Family) -> KernelRules:
        """Read what the kernel holds for a family. Raises ExplainError."""

    def load_dump(self, text: str, family: Family) -> KernelRules:
        """The rules of a family in a dump of a known kind. Raises ExplainError."""

    def walk(self, rules: KernelRules, packet: Packet, routing: Routing) -> tuple[Outcome, ...]:
        """What becomes of a packet, in all ways that it can go.

        Raises OSError of the routing, and ExplainError of rules that are read on the way.
        """


class RulesOfAllModes:
    """See PacketWalker; it needs the network namespace of the node only to read."""

    def __init__(self, readers: Collection[RuleReader]) -> None:
        self._readers = readers

    def read_kernel(self, family: Family) -> KernelRules:
        """See PacketWalker.read_kernel."""
        shared = SharedRules()
        return _joined([reader.read_kernel(family, shared) for reader in self._readers])

    def load_dump(self, text: str, family: Family) -> KernelRules:
        """See PacketWalker.load_dump."""
        found = [rules for reader in self._readers if (rules := reader.load_dump(text, family)) is not None]
        if not found:
            known = " or ".join(reader.dump for reader in self._readers if reader.dump)
            raise ExplainError(f"not the output of {known}")
        return _joined(found)

    def walk(self, rules: KernelRules, packet: Packet, routing: Routing) -> tuple[Outcome, ...]:
        """See PacketWalker.walk. Once more with new rules if the kernel's have changed since."""
        outcomes = hooks.walk(rules.chains, packet, routing)
        for _ in range(_MORE_WALKS):
            if rules.is_current():
                break
            rules = self.read_kernel(packet.family)
            outcomes = hooks.walk(rules.chains, packet, routing)
        return outcomes


class KernelRouting:
    """The routes of the calling thread's network namespace, each asked once. See plan.outcomes.Routing.

    Raises OSError where the kernel does not answer.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, int, str | None], Route | None] = {}

    def route(
        self, destination: str, source: str = "", mark: int = 0, interface: str | None = None
    ) -> Route | None:
        """See Routing.route."""
        key = (destination, source, mark, interface)
        if key not in self._known:
            found = routing.ask(destination, source, mark, interface)
            self._known[key] = None if found is None else Route(found.interface, found.local, found.source)
        return self._known[key]

    def is_local(self, address: str) -> bool:
        """See Routing.is_local."""
        found = self.route(address)
        return found is not None and found.local


def _joined(found: Collection[KernelRules]) -> KernelRules:
    """All rules; what one reader covers is left out of the others."""
    chains = []
    for rules in found:
        covered = frozenset[str]().union(*(other.covered for other in found if other is not rules))
        chains += [chain for chain in rules.chains if chain.table not in covered]
    return KernelRules(
        tuple(chains),
        unread=tuple(text for rules in found for text in rules.unread),
        is_current=lambda: all(rules.is_current() for rules in found),
    )
