"""One family's part of the enforcement: its enforcer, and what it has not applied yet.

A family that fails keeps what it has to apply and is tried again; the other one goes on.
"""

import time
from collections.abc import Callable, Collection

import msgspec

from kproxy.addresses import Family
from kproxy.agent.policy.kernel import Enforcer
from kproxy.backends.core.base import SyncReport
from kproxy.backends.policy.config import PolicyConfig
from kproxy.plan.policy.model import PolicyTable, Touched


class PolicyOutcome(msgspec.Struct, frozen=True):
    """The result of one sync: what it applied, its seconds, and how long the oldest change had waited.

    `touched` is empty if it failed; `waited` is None if no object had changed.
    """

    report: SyncReport
    touched: Touched
    seconds: float
    waited: float | None


class PolicyFamily:
    """`error`: why the last sync failed as a whole, or None. `refused`: the policies that it refused."""

    def __init__(
        self, config: PolicyConfig, backend: Enforcer, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.family: Family = config.family
        self.backend = backend
        self.error: str | None = None
        self.refused: dict[str, str] = {}
        self.groups = 0
        self.retry_at: float | None = None
        """When something refused is due to be tried again (monotonic); None: nothing is."""
        self.applied = False
        """Whether a sync has succeeded."""
        self.config = config
        self._clock = clock
        self._touched = Touched()
        self._local: Collection[str] = ()
        """The addresses of all local pods."""
        self._damaged = False
        self._since: float | None = None
        self._due = True

    @property
    def failing(self) -> bool:
        """Whether the last sync failed as a whole."""
        return self.error is not None

    @property
    def due(self) -> bool:
        """Whether a sync has something to do."""
        return self._due or (self.retry_at is not None and self.retry_at <= self._clock())

    def mark(self) -> None:
        """Make the next sync look at this family, because others changed the kernel."""
        self._due = self._damaged = True

    def configure(self, config: PolicyConfig, *, retry: bool) -> None:
        """Use these settings from the next sync on; with `retry` it tries again what was refused."""
        if config != self.config:
            self.config = config
            self.backend.reconfigure(config)
            self._due = True
        if retry:
            self.backend.retry()
            self._due = True

    def plan(self, table: PolicyTable, touched: Touched, since: float | None) -> None:
        """Take what changed in the desired table; `since` is the arrival of the oldest of the changes."""
        self.groups = len(table.groups)
        self._local = table.local
        if not touched and self.applied:
            return
        self.backend.update(table, touched)
        self._touched = together(self._touched, touched)
        if since is not None:
            self._since = since if self._since is None else min(self._since, since)
        self._due = True

    def apply(self) -> PolicyOutcome:
        """Bring the kernel to the desired table.

        After a repair all local pods count as touched: connections that began in between were judged by what
        others had left.
        """
        began = self._clock()
        report = self.backend.sync()
        ended = self._clock()
        self.error = report.error
        self.retry_at = None if report.retry_in is None else ended + report.retry_in
        if report.error is not None:
            return PolicyOutcome(report, Touched(), ended - began, None)
        self.applied = True
        self.refused = report.failed
        self._due = bool(report.unfinished)
        waited = None if self._since is None else max(0.0, ended - self._since)
        touched, self._touched, self._since = self._touched, Touched(), None
        if self._damaged or report.drifts:
            self._damaged = False
            touched = together(touched, Touched(addresses=frozenset(self._local)))
        return PolicyOutcome(report, touched, ended - began, waited)


def together(first: Touched, second: Touched) -> Touched:
    """Everything that either names."""
    if not first or not second:
        return first or second
    return Touched(
        first.groups | second.groups,
        first.members | second.members,
        first.ranges | second.ranges,
        first.addresses | second.addresses,
    )
