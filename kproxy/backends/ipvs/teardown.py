"""Tear down IPVS state left by a previous mode once its connections have drained, or at a cleanup.

Connections that IPVS translates need their virtual server, its address and the entries that mark it as
kproxy's. So each is kept until its last connection has ended, or until a time limit; new connections go to
the other mode immediately, because its rules match first.
"""

from collections import Counter
from collections.abc import Callable, Collection

import structlog

from kproxy.addresses import Family
from kproxy.backends.core.quarantine import Quarantine
from kproxy.backends.core.sync import Sync
from kproxy.backends.core.work import StaleStateError
from kproxy.backends.ipvs.draining import Draining
from kproxy.backends.ipvs.handles import KERNEL_ERRORS, KernelHandles
from kproxy.backends.ipvs.names import KUBE_PROXY_SETS, OWN_MARK, sets
from kproxy.backends.ipvs.virtual_servers import VirtualServers
from kproxy.kernel.ipset.types import IpsetError, IpsetUnavailable
from kproxy.kernel.ipvs.types import IpvsError, IpvsUnavailable

log = structlog.stdlib.get_logger(__name__)

_AGAIN = 5.0
"""Seconds until the next try after the kernel refused something."""


def left_in(family: Family, kernel: KernelHandles) -> bool:
    """Whether an IPVS mode of kproxy or kube-proxy has left objects of this family; False after an error."""
    try:
        names = kernel.ipset.headers().keys()
        owned = {spec.name for spec in sets(family).all} | KUBE_PROXY_SETS[family]
        return not owned.isdisjoint(names) or bool(kernel.device.addresses(family))
    except IpsetUnavailable:
        return False
    except KERNEL_ERRORS as error:
        log.warning("ipvs_remains_unknown", family=family.value, reason=str(error))
        return False


class FamilyTeardown:
    """Tears down one family's IPVS mode. `period`: greatest number of seconds to wait for connections."""

    def __init__(
        self,
        family: Family,
        kernel: KernelHandles,
        period: float,
        clock: Callable[[], float],
        excluded: Collection[str] = (),
    ) -> None:
        self.family = family
        self.done = False
        self._kernel = kernel
        self._draining = Draining(period, clock)
        self._clock = clock
        self._stale = True
        self._servers = VirtualServers(
            family, kernel, self._draining, excluded, device=False, withdraws=False
        )

    def run_timers(self) -> float | None:
        """Remove objects without connections; return the seconds until the next call is due, None if done."""
        if self.done:
            return None
        due = self._draining.due_in()
        if due:
            return due
        written: Counter[str] = Counter()
        try:
            if due is not None:
                self._servers.drain()
            self._take_away(written)
        except IpvsUnavailable:
            # Without IPVS there are no virtual servers, so there are no connections to wait for.
            return None if self.dissolve() else _AGAIN
        except (*KERNEL_ERRORS, StaleStateError) as error:
            self._stale = True
            log.warning("ipvs_mode_delete_failed", family=self.family.value, reason=str(error))
            return _AGAIN
        if any(written.values()):
            log.info("ipvs_mode_leaving", family=self.family.value, **{k: n for k, n in written.items() if n})
        if not self._servers.known.idle:
            due = self._draining.due_in()
            return _AGAIN if due is None else due
        return None if self.dissolve() else _AGAIN

    def clear(self) -> bool:
        """Remove all virtual servers and addresses without waiting for connections; True if none is left."""
        self._draining.period = 0
        try:
            self._take_away(Counter())
        except IpvsUnavailable:
            return True
        except (*KERNEL_ERRORS, StaleStateError) as error:
            self._stale = True
            log.error("ipvs_mode_delete_failed", family=self.family.value, reason=str(error))
            return False
        return self._servers.known.idle

    def dissolve(self) -> bool:
        """Destroy the sets with their entries; False if a set is in use by a rule."""
        ipset = self._kernel.ipset
        names = {spec.name for spec in sets(self.family).all} | KUBE_PROXY_SETS[self.family]
        self.done = True
        try:
            self._kernel.ipvs.remove_local_mark(self.family, OWN_MARK)
        except IpvsUnavailable:
            pass  # then the mark has no virtual server
        except IpvsError as error:
            log.warning("mark_delete_failed", family=self.family.value, reason=str(error))
            self.done = False
        try:
            for name in sorted(names & ipset.headers().keys()):
                try:
                    ipset.destroy(name)
                except IpsetError as error:
                    log.warning("set_delete_failed", set=name, reason=str(error))
                    self.done = False
        except IpsetError as error:
            log.warning("sets_delete_failed", family=self.family.value, reason=str(error))
            self.done = False
        if self.done:
            log.info("ipvs_mode_gone", family=self.family.value)
        return self.done

    def _take_away(self, written: Counter[str]) -> None:
        """Remove what has no connections; a refusal makes the kernel be read again at the next try."""
        servers = self._servers
        sync = Sync(servers, set(), Quarantine(self._clock), seen_writes=None)
        sync.written = written
        if self._stale:
            servers.observe(sync, compare=False)
            self._stale = False
        servers.apply(sync, ())
        servers.prune(sync)
