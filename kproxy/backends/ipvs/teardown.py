"""Take the IPVS mode away from a node where another mode has taken over, or where nothing shall be left.

Connections that IPVS translates need their virtual server, the address and the entries that say whose these
are. So each stays until its last connection has ended, or the time for that is over; new connections are the
other mode's at once, whose rules see them first.
"""

from collections import Counter
from collections.abc import Callable, Collection

import structlog

from kproxy.addresses import Family
from kproxy.backends.ipvs.draining import Draining
from kproxy.backends.ipvs.handles import KERNEL_ERRORS, KernelHandles
from kproxy.backends.ipvs.names import OWN_MARK, PEER_SETS, sets
from kproxy.backends.ipvs.reconciler import IpvsReconciler
from kproxy.backends.ipvs.refusals import StaleStateError
from kproxy.kernel.ipset.types import IpsetError, IpsetUnavailable
from kproxy.kernel.ipvs.types import IpvsError, IpvsUnavailable

log = structlog.stdlib.get_logger(__name__)

_AGAIN = 5.0
"""Seconds until the next try after the kernel refused something."""


def left_in(family: Family, kernel: KernelHandles) -> bool:
    """Whether an IPVS mode, kproxy's or kube-proxy's, has left anything of this family. Never raises."""
    try:
        names = kernel.ipset.headers().keys()
        ours = {spec.name for spec in sets(family).all} | PEER_SETS[family]
        return not ours.isdisjoint(names) or bool(kernel.device.addresses(family))
    except IpsetUnavailable:
        return False
    except KERNEL_ERRORS as error:
        log.warning("ipvs_remains_unknown", family=family.value, reason=str(error))
        return False


class FamilyTeardown:
    """One family's IPVS mode on its way out. `period`: seconds that connections are waited for."""

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
        self._reconciler = IpvsReconciler(family, kernel, self._draining, excluded, withdraws=False)

    def run_timers(self) -> float | None:
        """Take away what nothing needs; the seconds until it wants to be called again, None at the end."""
        if self.done:
            return None
        due = self._draining.due_in()
        if due:
            return due
        written: Counter[str] = Counter()
        try:
            if due is not None:
                self._reconciler.drain()
            self._take_away(written)
        except IpvsUnavailable:
            # Without IPVS there is no virtual server whose connections could be waited for.
            return None if self.dissolve() else _AGAIN
        except (*KERNEL_ERRORS, StaleStateError) as error:
            self._reconciler.known.invalidate()
            log.warning("ipvs_mode_delete_failed", family=self.family.value, reason=str(error))
            return _AGAIN
        if any(written.values()):
            log.info("ipvs_mode_leaving", family=self.family.value, **{k: n for k, n in written.items() if n})
        if not self._reconciler.known.idle:
            due = self._draining.due_in()
            return _AGAIN if due is None else due
        return None if self.dissolve() else _AGAIN

    def clear(self) -> bool:
        """Take all virtual servers and addresses away at once, whatever connections they have."""
        self._draining.period = 0
        try:
            self._take_away(Counter())
        except IpvsUnavailable:
            return True
        except (*KERNEL_ERRORS, StaleStateError) as error:
            self._reconciler.known.invalidate()
            log.error("ipvs_mode_delete_failed", family=self.family.value, reason=str(error))
            return False
        return self._reconciler.known.idle

    def dissolve(self) -> bool:
        """Destroy the sets, which lets go of whatever was still listed; False if a rule holds one."""
        ipset = self._kernel.ipset
        names = {spec.name for spec in sets(self.family).all} | PEER_SETS[self.family]
        self.done = True
        try:
            self._kernel.ipvs.remove_local_mark(self.family, OWN_MARK)
        except IpvsUnavailable:
            pass  # and so there is none
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
        reconciler = self._reconciler
        reconciler.look(device=False)
        reconciler.prepare(written)
        reconciler.serve(written)
        reconciler.tidy(written)
