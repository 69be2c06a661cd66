"""The mode that writes the rules now: one sync for each family, and the leftovers of the other modes.

A switch makes a second one beside it and exchanges the whole value, so nothing of the old mode stays behind
in the run loop.
"""

from collections.abc import Callable, Mapping, Sequence

import structlog

from kproxy.addresses import Family
from kproxy.agent.family_sync import FamilySync, SyncOutcome
from kproxy.modes.base import Leftovers, Mode
from kproxy.node.facts import NodeFacts

log = structlog.stdlib.get_logger(__name__)


class ModeInForce:
    """Used by the run loop's thread; `mode` and `syncs` may be read from any.

    `progressed` is called after each write of a family's sync.
    """

    def __init__(
        self, mode: Mode, leftovers: Sequence[Leftovers], progressed: Callable[[Family], None]
    ) -> None:
        self.mode = mode
        self.syncs: dict[Family, FamilySync] = {}
        self._leftovers = leftovers
        self._progressed = progressed

    @property
    def errors(self) -> dict[Family, str]:
        """The families whose last sync failed as a whole, and the reasons."""
        return {family: sync.error for family, sync in self.syncs.items() if sync.error}

    @property
    def unfinished(self) -> bool:
        """Whether the last sync of a family left services to the next one."""
        return any(sync.unfinished for sync in self.syncs.values())

    def configure(self, facts: NodeFacts, before: NodeFacts | None, *, retry: bool) -> None:
        """Use other facts of the node from the next sync on; `before` are those used until now.

        `retry`: try refused services again in the next sync, because the settings changed.
        """
        for family in self.mode.families:
            known = facts.families[family]
            backend = self.mode.configure(family, known)
            if family not in self.syncs:
                if known.local_traffic is None:
                    effect = "see --cluster-cidr"
                    log.warning("no_local_traffic_detection", family=family.value, effect=effect)
                self.syncs[family] = FamilySync(family, backend, self._progressed)
            elif before and before.families[family].node_port_addresses != known.node_port_addresses:
                self.syncs[family].flows.invalidate()
            if retry:
                backend.retry()

    def take_over(self, facts: NodeFacts, known: Mapping[Family, FamilySync]) -> None:
        """Begin with the UDP flow state of the `known` syncs of another mode."""
        for family in self.mode.families:
            sync = known.get(family)
            backend = self.mode.configure(family, facts.families[family])
            flows = sync.flows if sync is not None else None
            self.syncs[family] = FamilySync(family, backend, self._progressed, flows)

    def invalidate(self) -> None:
        """Read the kernel again in the next sync."""
        for sync in self.syncs.values():
            sync.backend.invalidate()

    def on_first_sync(self) -> None:
        """Begin the work that follows the first sync: also the removal of other modes' leftovers."""
        for each in self._leftovers:
            each.begin(self.mode.variants)
        self.mode.on_first_sync()

    def run_timers(self) -> float | None:
        """Run the due periodic work; return the seconds until the next, None if there is none."""
        waits = [self.mode.run_timers(), *(each.run_timers() for each in self._leftovers)]
        waits += [sync.backend.run_timers() for sync in self.syncs.values()]
        return min((wait for wait in waits if wait is not None), default=None)

    def take_timed(self) -> dict[Family, SyncOutcome]:
        """The outcomes of the syncs that the backends' timers made since the last call."""
        return {family: timed for family, sync in self.syncs.items() if (timed := sync.take_timed())}
