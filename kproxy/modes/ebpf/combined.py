"""One family's backend of two halves: the socket table, then the nftables table, for every change.

The maps are written first, and those of all families before any transaction of nftables: an emptied service
leaves the sockets before the packets, and a map never waits for a transaction. A failure of one half does not
stop the other.
"""

from collections.abc import Callable, Iterable

from kproxy.addresses import Family
from kproxy.backends.core.base import Drift, SyncReport
from kproxy.backends.ebpf.config import SocketConfig
from kproxy.backends.nftables.backend import NftablesBackend
from kproxy.modes.ebpf.reports import merged
from kproxy.modes.ebpf.sockets import Sockets
from kproxy.plan.model import ServicePlan


class CombinedBackend:
    """See Backend. Its callbacks are those of the nftables backend, which takes the time."""

    def __init__(self, table: NftablesBackend, sockets: Sockets) -> None:
        self._table = table
        self._sockets = sockets
        self.family: Family = table.family

    @property
    def on_progress(self) -> Callable[[], None]:
        """See Backend."""
        return self._table.on_progress

    @on_progress.setter
    def on_progress(self, called: Callable[[], None]) -> None:
        self._table.on_progress = called

    @property
    def on_timed_sync(self) -> Callable[[SyncReport, float], None]:
        """See Backend."""
        return self._table.on_timed_sync

    @on_timed_sync.setter
    def on_timed_sync(self, called: Callable[[SyncReport, float], None]) -> None:
        self._table.on_timed_sync = called

    @property
    def gives_way(self) -> Callable[[], bool]:
        """See Backend."""
        return self._table.gives_way

    @gives_way.setter
    def gives_way(self, asked: Callable[[], bool]) -> None:
        self._table.gives_way = asked

    def configure(self, config: SocketConfig) -> None:
        """Use these settings for the sockets."""
        self._sockets.configure(self.family, config, lambda: tuple(self._table.plans.values()))

    def update(self, plans: Iterable[ServicePlan]) -> None:
        """Replace the desired state of services in both halves."""
        known = tuple(plans)
        self._table.update(known)
        self._sockets.update(self.family, known)

    def sync(self, budget: float | None = None) -> SyncReport:
        """Write the maps of all families, then this family's table."""
        self._sockets.write()
        report = self._table.sync(budget)
        return merged(report, self._sockets.take_report(self.family))

    def invalidate(self) -> None:
        """Read both halves again in the next sync."""
        self._table.invalidate()
        self._sockets.invalidate(self.family)

    def retry(self) -> None:
        """Try again in the next sync what was refused."""
        self._table.retry()
        self._sockets.retry(self.family)

    def check(self, *, full: bool = False) -> tuple[Drift, ...]:
        """Compare both halves. Raises CheckError for the table; drift of the sockets is then kept back."""
        found = self._table.check(full=full)
        return found + self._sockets.check(self.family, full=full)

    def run_timers(self) -> float | None:
        """See Backend."""
        return self._table.run_timers()
