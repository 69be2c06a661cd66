"""What an IPVS mode left on this node, seen off by the mode that took over from it."""

from collections.abc import Callable, Collection

import structlog

from kproxy.addresses import Family
from kproxy.backends.ipvs.handles import KernelHandles
from kproxy.backends.ipvs.teardown import FamilyTeardown, left_in
from kproxy.kernel.addresses import DeviceError

log = structlog.stdlib.get_logger(__name__)


class IpvsTeardown:
    """Both families' teardown, and the end of the device they share."""

    def __init__(
        self,
        kernel: KernelHandles,
        period: float,
        excluded: Collection[str],
        clock: Callable[[], float],
    ) -> None:
        self._kernel = kernel
        self._period = period
        self._excluded = excluded
        self._clock = clock
        self._teardowns: list[FamilyTeardown] = []
        self._due: dict[Family, float] = {}

    def begin(self) -> None:
        """Look for what is left, and let it go."""
        self._teardowns = [
            FamilyTeardown(family, self._kernel, self._period, self._clock, self._excluded)
            for family in Family
            if left_in(family, self._kernel)
        ]
        if self._teardowns:
            log.info("ipvs_mode_leaving", families=[r.family.value for r in self._teardowns])

    def run_timers(self) -> float | None:
        """Take away what has no connections any more; seconds until the next time, None at the end."""
        if not self._teardowns:
            return None
        now = self._clock()
        for teardown in self._teardowns:
            if self._due.get(teardown.family, now) <= now:
                wait = teardown.run_timers()
                self._due[teardown.family] = now + (wait or 0.0)
        self._teardowns = [r for r in self._teardowns if not r.done]
        if self._teardowns:
            return max(0.0, min(self._due[r.family] for r in self._teardowns) - self._clock())
        self._delete_device()
        return None

    def clear(self) -> bool:
        """Take everything away at once but the sets, which rules may still name; True if it is gone."""
        self.begin()
        cleared = [teardown.clear() for teardown in self._teardowns]
        return all(cleared)

    def dissolve(self) -> bool:
        """Destroy the sets and the device; True if they are gone."""
        if not self._teardowns:
            return True
        dissolved = [teardown.dissolve() for teardown in self._teardowns]
        return self._delete_device() and all(dissolved)

    def _delete_device(self) -> bool:
        try:
            self._kernel.device.delete()
        except DeviceError as error:
            log.warning("device_delete_failed", device=self._kernel.device.name, reason=str(error))
            return False
        log.info("device_deleted", device=self._kernel.device.name)
        return True
