"""Tear down IPVS state left by a previous mode once its connections have drained."""

from collections.abc import Callable, Collection, Mapping

import structlog

from kproxy.addresses import Family
from kproxy.backends.ipvs.handles import KernelHandles
from kproxy.backends.ipvs.teardown import FamilyTeardown, left_in
from kproxy.kernel.addresses import DeviceError
from kproxy.kernel.xtables.types import Variant

log = structlog.stdlib.get_logger(__name__)


class IpvsTeardown:
    """Tears down both families, then removes the device they share."""

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

    def begin(self, used: Mapping[Family, Variant]) -> None:  # noqa: ARG002 - leftovers of rules go apart
        """Find the leftovers; `run_timers` removes them."""
        self._find()

    def run_timers(self) -> float | None:
        """Remove servers without connections; return seconds until the next call, or None at the end."""
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

    def clear(self, *, kube_proxy: bool) -> bool:  # noqa: ARG002 - kube-proxy's objects have the same names
        """Remove everything now except the sets, to which rules may still refer; True if it is gone."""
        self._find()
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

    def _find(self) -> None:
        self._teardowns = [
            FamilyTeardown(family, self._kernel, self._period, self._clock, self._excluded)
            for family in Family
            if left_in(family, self._kernel)
        ]
        if self._teardowns:
            log.info("ipvs_mode_leaving", families=", ".join(r.family.value for r in self._teardowns))
