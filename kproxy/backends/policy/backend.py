"""The table of network policies of one family."""

import time
from collections.abc import Callable, Mapping

import msgspec

from kproxy.backends.core.base import CheckError, CheckPostponed, Drift, ServiceStatus, SyncReport
from kproxy.backends.core.foreign_writes import ForeignWrites
from kproxy.backends.core.reconciler import Reconciler
from kproxy.backends.core.work import DesiredChange
from kproxy.backends.policy.config import PolicyConfig
from kproxy.backends.policy.counting import GroupCounts
from kproxy.backends.policy.objects import PolicyObjects
from kproxy.kernel.nft.types import Nft, NftError, NftFailure
from kproxy.plan.policy.model import PolicyTable, Touched


class PolicyBackend(Reconciler[PolicyObjects]):
    """One family's table.

    `update` must be called before the first `sync`, with the whole table as touched, and from the same
    thread: the table is read in place. Reports name policies (`namespace/name`): a group that the kernel
    refuses is closed, and every policy of the group is quarantined.
    """

    def __init__(
        self,
        config: PolicyConfig,
        nft: Nft,
        watch: ForeignWrites,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(config.family, PolicyObjects(config, nft, watch), clock)
        self._nft = nft
        self._policies: dict[str, tuple[str, ...]] = {}
        self._counts = GroupCounts()

    def update(self, table: PolicyTable, touched: Touched) -> None:
        """Take over what an update of the planner touched in the family's table."""
        for name in touched.groups:
            group = table.groups.get(name)
            if group is None:
                self._policies.pop(name, None)
                self._quarantine.discard(name)
            else:
                self._policies[name] = group.policies
        if touched:
            changed = self.operations.update(table, touched)
            # A refused group is tried again when it is due, not whenever a pod of its sets comes or goes.
            self._adopt(DesiredChange(changed - self._quarantine.keys))

    def reconfigure(self, config: PolicyConfig) -> None:
        """Change to other settings of the same family; the next sync writes the differences."""
        if changed := self.operations.use_config(config):
            self._quarantine.clear()
            self._adopt(DesiredChange(changed))

    def sync(self, budget: float | None = None) -> SyncReport:  # noqa: ARG002 - a change is one transaction
        """Bring the kernel to the desired state, in one transaction."""
        report = super().sync()
        return msgspec.structs.replace(report, services=self._by_policy(report.services))

    def check(self, *, full: bool = False) -> tuple[Drift, ...]:
        """Compare the table with the applied state; a long reading gives way. See Backend.check."""
        self._nft.gives_way = self.gives_way
        try:
            return super().check(full=full)
        except CheckError as error:
            cause = error.__cause__
            if isinstance(cause, NftError) and cause.kind is NftFailure.POSTPONED:
                raise CheckPostponed(str(error)) from error
            raise
        finally:
            self._nft.gives_way = None

    def objects(self) -> dict[str, int]:
        """Number of elements, chains and groups in the applied state. May be called from any thread."""
        return self.operations.counts()

    def counts(self) -> Mapping[str, tuple[int, int]]:
        """(allowed, refused) first packets of each group since the start. Raises NftError.

        `unknown`: those of unknown addresses. May be called from any thread, but from one at a time.
        """
        return self._counts.read(self._nft, self.family)

    def _by_policy(self, groups: Mapping[str, ServiceStatus]) -> dict[str, ServiceStatus]:
        """The status of every policy of the groups."""
        found: dict[str, ServiceStatus] = {}
        for name, status in groups.items():
            found |= dict.fromkeys(self._policies.get(name, (name,)), status)
        return found
