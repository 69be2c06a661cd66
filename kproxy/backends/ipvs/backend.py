"""The IPVS mode of one family."""

import time
from collections.abc import Callable, Mapping
from typing import Protocol

import structlog

from kproxy.backends.core.base import CheckError, Drift, PortTraffic
from kproxy.backends.core.service_reconciler import ServiceReconciler
from kproxy.backends.core.work import Operations
from kproxy.backends.ipvs.config import IpvsConfig, RuleSettings
from kproxy.backends.ipvs.draining import Draining
from kproxy.backends.ipvs.handles import KernelHandles
from kproxy.backends.ipvs.objects import IpvsObjects
from kproxy.backends.ipvs.traffic import port_traffic
from kproxy.kernel.addresses import DeviceError
from kproxy.kernel.ipvs.types import IpvsError, ServerId, Statistics

log = structlog.stdlib.get_logger(__name__)


class RuleWriter(Operations, Protocol):
    """The iptables rules around the virtual servers of one family; the mode passes them in."""

    def use_settings(self, settings: RuleSettings) -> bool:
        """Change to other settings of the same family; False if they are equal."""

    def rules(self) -> dict[str, int]:
        """Number of kproxy's rules in the applied state, by table. May be called from any thread."""


class IpvsBackend(ServiceReconciler[IpvsObjects]):
    """One family's IPVS mode; `rules` writes its iptables rules."""

    def __init__(
        self,
        config: IpvsConfig,
        kernel: KernelHandles,
        rules: RuleWriter,
        clock: Callable[[], float],
    ) -> None:
        self._draining = Draining(config.graceful_period, clock)
        objects = IpvsObjects(config, kernel, rules, self._draining, clock)
        # The kernel answers each request by itself, so there is nothing to assume.
        super().__init__(config.family, objects, clock, assumes=False)
        self._kernel = kernel
        self._rules = rules
        self._node_addresses = config.node_addresses

    def reconfigure(self, config: IpvsConfig) -> None:
        """Change to other settings of the same family; the next sync writes the differences."""
        if not self.operations.use_config(config):
            return
        self._node_addresses = config.node_addresses
        if self._rules.use_settings(config.rules):
            self.invalidate()
        self.replan()

    def run_timers(self) -> float | None:
        """Remove destinations that have drained; return the seconds until the next call is due, or None."""
        due = self._draining.due_in()
        if due is None or due > 0:
            return due
        try:
            ended = self.operations.servers.drain()
        except IpvsError as error:
            log.warning("drain_check_failed", family=self.family.value, reason=str(error))
            return 1.0
        if ended:
            began = time.monotonic()
            report = self.sync()
            log.info("drained", family=self.family.value, **report.changes)
            self.on_timed_sync(report, time.monotonic() - began)
        return self._draining.due_in()

    def compare_addresses(self, events: Mapping[str, bool] | None) -> tuple[Drift, ...]:
        """Compare the device's addresses with the applied state; return the drift and mark it as pending.

        `events` maps addresses of which events came to whether the device has them; if that equals the
        applied state, nothing is read. None: events were lost. Raises CheckError if the kernel cannot be
        read.
        """
        if not self.in_step:
            return ()
        try:
            return self.operations.servers.known.compare_addresses(events)
        except DeviceError as error:
            raise CheckError(str(error)) from error

    def rules(self) -> dict[str, int]:
        """Number of kproxy's iptables rules in the applied state, by table."""
        return self._rules.rules()

    def traffic(self, statistics: Mapping[ServerId, Statistics]) -> tuple[PortTraffic, ...]:
        """Traffic of each service port, from the counters of virtual servers. Safe in any thread."""
        return port_traffic(list(self.plans.values()), statistics, self._node_addresses)
