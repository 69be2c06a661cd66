"""The IPVS mode of one family: reconciles rules, sets, virtual servers and addresses.

The order of a sync keeps every intermediate state correct. Sets are filled before the rules that read them,
and both are written before any virtual server, so no packet leaves the node without its masquerade. Rules of
a former mode are removed after the virtual servers that replace them are made. The set entries that mark a
virtual server as kproxy's are removed after it.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import msgspec
import structlog

from kproxy.addresses import Family
from kproxy.backends.core.base import CheckError, Drift, PortTraffic, SyncReport
from kproxy.backends.iptables.backend import IptablesBackend
from kproxy.backends.ipvs.config import IpvsConfig
from kproxy.backends.ipvs.draining import Draining
from kproxy.backends.ipvs.handles import KERNEL_ERRORS, KernelHandles
from kproxy.backends.ipvs.layout import IpvsLayout
from kproxy.backends.ipvs.names import OWN_MARK, PEER_SETS
from kproxy.backends.ipvs.reconciler import IpvsReconciler
from kproxy.backends.ipvs.refusals import StaleStateError
from kproxy.backends.ipvs.render import NOTHING, render_service
from kproxy.backends.ipvs.traffic import port_traffic
from kproxy.kernel.addresses import DeviceError, DeviceMissing
from kproxy.kernel.ipset.types import IpsetError
from kproxy.kernel.ipvs.types import IpvsError, ServerId, Statistics
from kproxy.plan.model import ServicePlan

log = structlog.stdlib.get_logger(__name__)

SHARE_OF_DESTINATIONS = 20
"""A quick check compares the destinations of one virtual server in this many; a full check, of all."""


class IpvsBackend:
    """One family's IPVS mode; `rules` writes its iptables rules."""

    def __init__(
        self,
        config: IpvsConfig,
        kernel: KernelHandles,
        rules: IptablesBackend,
        clock: Callable[[], float],
    ) -> None:
        self.family: Family = config.family
        self._config = config
        self._kernel = kernel
        self._rules = rules
        self._clock = clock
        self._draining = Draining(config.graceful_period, clock)
        self._reconciler = IpvsReconciler(config.family, kernel, self._draining, config.exclude_cidrs)
        self._reconciler.holds.set_own(config.local_addresses)
        self._plans: dict[str, ServicePlan] = {}
        self._schedulers: dict[str, bool] = {config.scheduler.name: True}
        self._degraded: dict[str, str] = {}
        self._first_sync_done = False
        self._has_mark = False
        self._next_look = 0.0
        self._turns = itertools.cycle(range(SHARE_OF_DESTINATIONS))

    def update(self, plans: Iterable[ServicePlan]) -> None:
        """Replace the desired state of the plans' services; a plan without ports removes its service."""
        taken = list(plans)
        for plan in taken:
            if plan.ports:
                self._plans[plan.key] = plan
            else:
                self._plans.pop(plan.key, None)
            self._want(plan)
        self._rules.update(taken)

    def reconfigure(self, config: IpvsConfig) -> None:
        """Change to other settings of the same family; the next sync writes the differences."""
        if config == self._config:
            return
        self._config = config
        self._draining.period = config.graceful_period
        self._reconciler.known.excluded = tuple(config.exclude_cidrs)
        self._reconciler.holds.set_own(config.local_addresses)
        for plan in self._plans.values():
            self._want(plan)
        self._rules.reconfigure(IpvsLayout(config.rules))

    def invalidate(self) -> None:
        """Mark the applied state as stale: the next sync reads and compares the kernel."""
        self._reconciler.known.invalidate()
        self._rules.invalidate()

    def retry(self) -> None:
        """Make the next sync retry quarantined services and missing schedulers."""
        self._reconciler.retry()
        self._rules.retry()
        self._schedulers = {name: True for name, offered in self._schedulers.items() if offered}
        for key in tuple(self._degraded):
            self._want(self._plans[key])

    def sync(self) -> SyncReport:
        """Bring the kernel to the desired state; send only differences.

        If sets or the device are missing, the same sync creates them again.
        """
        written: Counter[str] = Counter()
        drifts: list[Drift] = []
        reconciler = self._reconciler
        reconciler.refusals.current = False
        try:
            try:
                report = self._write(written, drifts)
                if report.error is not None and reconciler.known.lacks_sets():
                    raise StaleStateError(report.error)
            except (StaleStateError, DeviceMissing) as error:
                log.info("resync_after_refusal", family=self.family.value, reason=str(error))
                reconciler.known.fail()
                reconciler.refusals.current = True
                report = self._write(written, drifts)
        except KERNEL_ERRORS as error:
            reconciler.known.fail()
            return SyncReport(error=str(error), changes=_nonzero(written), drifts=tuple(drifts))
        return msgspec.structs.replace(
            report,
            changes=_nonzero(written),
            degraded=dict(self._degraded),
            drifts=(*drifts, *report.drifts),
        )

    def run_timers(self) -> float | None:
        """Remove destinations that have drained; return the seconds until the next call is due, or None."""
        due = self._draining.due_in()
        if due is None or due > 0:
            return due
        try:
            ended = self._reconciler.drain()
        except IpvsError as error:
            log.warning("drain_check_failed", family=self.family.value, reason=str(error))
            return 1.0
        if ended:
            report = self.sync()
            log.info("drained", family=self.family.value, **report.changes)
        return self._draining.due_in()

    def check(self, *, full: bool = False) -> tuple[Drift, ...]:
        """Compare the kernel with the applied state; return the drift and mark it as pending.

        Raises CheckError if the kernel cannot be read.
        """
        drifts = self._rules.check(full=full)
        now = self._clock()
        if drifts or (not full and now < self._next_look):
            return drifts
        turn = next(self._turns)

        def details_of(server: ServerId) -> bool:
            return full or (server.port + sum(server.ip.encode())) % SHARE_OF_DESTINATIONS == turn

        try:
            drifts += self._reconciler.known.check(details_of, full=full)
            if self._has_mark and OWN_MARK not in self._kernel.ipvs.marks(self.family):
                drifts += (Drift(f"virtual server of mark {OWN_MARK:#x}", "is missing"),)
                self._reconciler.known.invalidate()
        except KERNEL_ERRORS as error:
            raise CheckError(str(error)) from error
        self._next_look = self._clock() + self._config.look_period
        return drifts

    def compare_addresses(self, events: Mapping[str, bool] | None) -> tuple[Drift, ...]:
        """Compare the device's addresses with the applied state; return the drift and mark it as pending.

        `events` maps addresses of which events came to whether the device has them; if that equals the
        applied state, nothing is read. None: events were lost. Raises CheckError if the kernel cannot be
        read.
        """
        try:
            return self._reconciler.known.compare_addresses(events)
        except DeviceError as error:
            raise CheckError(str(error)) from error

    def rules(self) -> dict[str, int]:
        """Number of kproxy's iptables rules in the applied state, by table."""
        return self._rules.rules()

    def traffic(self, statistics: Mapping[ServerId, Statistics]) -> tuple[PortTraffic, ...]:
        """Traffic of each service port, from the counters of virtual servers. Safe in any thread."""
        return port_traffic(list(self._plans.values()), statistics, self._config.node_addresses)

    def _want(self, plan: ServicePlan) -> None:
        key = plan.key
        self._degraded.pop(key, None)
        if not plan.ports:
            self._reconciler.want(key, NOTHING)
            return
        missing = {
            p.scheduler.name
            for p in plan.ports
            if p.scheduler is not None and not self._offers(p.scheduler.name)
        }
        if missing:
            default = self._config.scheduler.name
            names = ", ".join(sorted(missing))
            self._degraded[key] = (
                f"annotation kproxy.io/scheduler: the kernel has no scheduler {names}, {default} is used"
            )
            ports = tuple(msgspec.structs.replace(port, scheduler=None) for port in plan.ports)
            plan = msgspec.structs.replace(plan, ports=ports)
        self._reconciler.want(key, render_service(plan, self._config))

    def _offers(self, scheduler: str) -> bool:
        """Whether the kernel has a scheduler; probed once, and after `retry` again if it was missing."""
        known = self._schedulers.get(scheduler)
        if known is None:
            try:
                known = self._kernel.ipvs.has_scheduler(scheduler)
            except IpvsError as error:
                log.warning("scheduler_unknown", scheduler=scheduler, reason=str(error))
                return False
            self._schedulers[scheduler] = known
        return known

    def _write(self, written: Counter[str], drifts: list[Drift]) -> SyncReport:
        reconciler = self._reconciler
        if reconciler.look():
            self._first_sync_done = self._has_mark = False
            drifts += reconciler.known.drifts
            self._leave_own_connections()
        reconciler.prepare(written)
        report = self._rules.sync(retire=self._first_sync_done)
        written.update(report.changes)
        if report.error is not None:
            return report
        reconciler.serve(written)
        if not self._first_sync_done:
            retired = self._rules.retire()
            written.update(retired.changes)
            if retired.error is not None:
                return retired
            self._remove_peer_sets()
            self._first_sync_done = True
        reconciler.tidy(written)
        leftovers = {f"({text.partition(':')[0]})": text for text in reconciler.refusals.leftovers.values()}
        failed = {**report.failed, **reconciler.refusals.services, **leftovers}
        return msgspec.structs.replace(report, failed=failed)

    def _leave_own_connections(self) -> None:
        """Make the virtual server for OWN_MARK: replies to the node's own connections bypass IPVS."""
        try:
            self._kernel.ipvs.add_local_mark(self.family, OWN_MARK, self._config.scheduler.name)
        except IpvsError as error:
            effect = "connections that the node opens from a source port which is a node port fail"
            log.warning(
                "own_connections_unprotected", family=self.family.value, reason=str(error), effect=effect
            )
        else:
            self._has_mark = True

    def _remove_peer_sets(self) -> None:
        """Destroy the sets of kube-proxy's IPVS mode; its virtual servers and device have been taken over."""
        ipset = self._kernel.ipset
        for name in sorted(PEER_SETS[self.family] & ipset.headers().keys()):
            try:
                ipset.destroy(name)
            except IpsetError as error:
                log.warning("set_delete_failed", set=name, reason=str(error))


def _nonzero(written: Counter[str]) -> dict[str, int]:
    return {name: count for name, count in written.items() if count}
