"""What an IPVS mode left on this node, seen off by the mode that took over from it."""

from collections.abc import Callable, Collection

import structlog

from kproxy.addresses import Family
from kproxy.backends.ipvs.handles import KernelHandles
from kproxy.backends.ipvs.teardown import Retirement, left_in
from kproxy.kernel.addresses import DeviceError

log = structlog.stdlib.get_logger(__name__)


class Departure:
    """Both families' retirement, and the end of the device they share."""

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
        self._retirements: list[Retirement] = []
        self._due: dict[Family, float] = {}

    def begin(self) -> None:
        """Look for what is left, and let it go."""
        self._retirements = [
            Retirement(family, self._kernel, self._period, self._clock, self._excluded)
            for family in Family
            if left_in(family, self._kernel)
        ]
        if self._retirements:
            log.info("ipvs_mode_leaving", families=[r.family.value for r in self._retirements])

    def tend(self) -> float | None:
        """Take away what has no connections any more; seconds until the next time, None at the end."""
        if not self._retirements:
            return None
        now = self._clock()
        for retirement in self._retirements:
            if self._due.get(retirement.family, now) <= now:
                wait = retirement.tend()
                self._due[retirement.family] = now + (wait or 0.0)
        self._retirements = [r for r in self._retirements if not r.done]
        if self._retirements:
            return max(0.0, min(self._due[r.family] for r in self._retirements) - self._clock())
        self._delete_device()
        return None

    def clear(self) -> bool:
        """Take everything away at once but the sets, which rules may still name; True if it is gone."""
        self.begin()
        cleared = [retirement.clear() for retirement in self._retirements]
        return all(cleared)

    def dissolve(self) -> bool:
        """Destroy the sets and the device; True if they are gone."""
        if not self._retirements:
            return True
        dissolved = [retirement.dissolve() for retirement in self._retirements]
        return self._delete_device() and all(dissolved)

    def _delete_device(self) -> bool:
        try:
            self._kernel.device.delete()
        except DeviceError as error:
            log.warning("device_kept", device=self._kernel.device.name, reason=str(error))
            return False
        log.info("device_deleted", device=self._kernel.device.name)
        return True
