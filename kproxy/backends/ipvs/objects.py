"""Everything that the IPVS mode writes for one family, as operations of the reconciler.

The order of a sync keeps every intermediate state correct. Sets are filled before the rules that read them,
and both are written before any virtual server, so no packet leaves the node without its masquerade. Rules of
a former mode are removed after the virtual servers that replace them are made. The set entries that mark a
virtual server as kproxy's are removed after it.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import msgspec
import structlog

from kproxy.backends.core.base import Difference, Drift
from kproxy.backends.core.work import (
    Changes,
    Comparison,
    DesiredChange,
    Failure,
    Observation,
    Operations,
    SyncWork,
)
from kproxy.backends.ipvs.config import IpvsConfig
from kproxy.backends.ipvs.draining import Draining
from kproxy.backends.ipvs.handles import KERNEL_ERRORS, KernelHandles
from kproxy.backends.ipvs.names import KUBE_PROXY_SETS, OWN_MARK
from kproxy.backends.ipvs.render import NOTHING, render_service
from kproxy.backends.ipvs.virtual_servers import VirtualServers
from kproxy.kernel.ipset.types import IpsetError
from kproxy.kernel.ipvs.types import IpvsError, ServerId
from kproxy.plan.model import ServicePlan

log = structlog.stdlib.get_logger(__name__)

SHARE_OF_DESTINATIONS = 20
"""A quick check compares the destinations of one virtual server in this many; a full check, of all."""


class IpvsObjects:
    """One family's virtual servers, sets and addresses, and the iptables rules around them."""

    def __init__(
        self,
        config: IpvsConfig,
        kernel: KernelHandles,
        rules: Operations,
        draining: Draining,
        clock: Callable[[], float],
    ) -> None:
        self.servers = VirtualServers(config.family, kernel, draining, config.exclude_cidrs)
        self.servers.holds.set_own(config.local_addresses)
        self.errors: tuple[type[Exception], ...] = (*KERNEL_ERRORS, *rules.errors)
        self.degraded: dict[str, str] = {}
        self._config = config
        self._kernel = kernel
        self._rules = rules
        self._draining = draining
        self._clock = clock
        self._schedulers: dict[str, bool] = {config.scheduler.name: True}
        self._kube_proxy_sets_removed = False
        self._has_mark = False
        self._rules_seen: int | None = None
        self._next_check = 0.0
        self._turns = itertools.cycle(range(SHARE_OF_DESTINATIONS))

    def set_desired(self, changes: Changes, plans: Mapping[str, ServicePlan]) -> DesiredChange:
        """Render some services."""
        changed = {plan.key for _, plan in changes if self._want(plan)}
        of_rules = self._rules.set_desired(changes, plans)
        return DesiredChange(changed.union(of_rules.changed), of_rules.stale)

    def use_config(self, config: IpvsConfig) -> bool:
        """Change to other settings of the same family; return whether all services are to be rendered."""
        if config == self._config:
            return False
        self._config = config
        self._draining.period = config.graceful_period
        self.servers.known.excluded = tuple(config.exclude_cidrs)
        self.servers.holds.set_own(config.local_addresses)
        return True

    def explain(self, error: Exception) -> Failure:
        """The meaning of an error of any of the kernel interfaces."""
        if isinstance(error, KERNEL_ERRORS):
            return self.servers.explain(error)
        return self._rules.explain(error)

    def foreign_writes(self) -> None:
        """The kernel does not count changes of virtual servers."""

    def observe(self, work: SyncWork, *, compare: bool) -> Observation:
        """Read all kernel interfaces; make the virtual server for the node's own connections."""
        servers = self.servers.observe(work, compare=compare)
        self._kube_proxy_sets_removed = self._has_mark = False
        self._leave_own_connections()
        self._rules_seen = self._rules.foreign_writes()
        rules = self._rules.observe(work, compare=compare)
        return Observation({*servers.pending, *rules.pending}, (*servers.drifts, *rules.drifts))

    def apply(self, work: SyncWork, keys: Sequence[str]) -> tuple[str, ...]:
        """Fill the sets, write the rules, then the virtual servers and their addresses."""
        self.servers.prepare(work, keys)
        with self._sets_ensured(work):
            self._rules.apply(work, keys)
        self.servers.serve(work)
        return ()

    def prune(self, work: SyncWork) -> Mapping[str, str]:
        """Remove rules, sets and addresses that are not needed any more."""
        with self._sets_ensured(work):
            left = self._rules.prune(work)
        if not self._kube_proxy_sets_removed:
            self._remove_kube_proxy_sets()
            self._kube_proxy_sets_removed = True
        return {**left, **self.servers.tidy(work)}

    def drift(self, *, quiet: bool, full: bool) -> Comparison | None:  # noqa: ARG002 - writes are not counted
        """Compare the rules, and from time to time the virtual servers and sets."""
        writes = self._rules.foreign_writes()
        of_rules = self._rules.drift(quiet=writes is not None and writes == self._rules_seen, full=full)
        if of_rules is not None:
            self._rules_seen = writes
            if of_rules.drifts:
                return of_rules
        if not full and self._clock() < self._next_check:
            return None
        turn = next(self._turns)

        def details_of(server: ServerId) -> bool:
            return full or (server.port + sum(server.ip.encode())) % SHARE_OF_DESTINATIONS == turn

        drifts = self.servers.known.check(details_of, full=full)
        if self._has_mark and OWN_MARK not in self._kernel.ipvs.marks(self._config.family):
            drifts += (Drift("virtual server", f"of mark {OWN_MARK:#x}", Difference.MISSING),)
        self._next_check = self._clock() + self._config.drift_check_interval
        return Comparison(drifts)

    def refresh(self) -> None:
        """Look for missing schedulers and for foreign virtual servers again."""
        self._schedulers = {name: True for name, offered in self._schedulers.items() if offered}
        self.servers.refresh()
        self._rules.refresh()

    def _want(self, plan: ServicePlan) -> bool:
        key, desired = plan.key, self.servers.desired
        self.degraded.pop(key, None)
        if not plan.ports:
            return desired.put(key, NOTHING)
        missing = {
            p.scheduler.name
            for p in plan.ports
            if p.scheduler is not None and not self._offers(p.scheduler.name)
        }
        if missing:
            default = self._config.scheduler.name
            names = ", ".join(sorted(missing))
            self.degraded[key] = (
                f"annotation kproxy.io/scheduler: the kernel has no scheduler {names}, {default} is used"
            )
            ports = tuple(msgspec.structs.replace(port, scheduler=None) for port in plan.ports)
            plan = msgspec.structs.replace(plan, ports=ports)
        return desired.put(key, render_service(plan, self._config))

    def _offers(self, scheduler: str) -> bool:
        """Whether the kernel has a scheduler; probed once, and after `refresh` again if it was missing."""
        known = self._schedulers.get(scheduler)
        if known is None:
            try:
                known = self._kernel.ipvs.has_scheduler(scheduler)
            except IpvsError as error:
                log.warning("scheduler_unknown", scheduler=scheduler, reason=str(error))
                return False
            self._schedulers[scheduler] = known
        return known

    @contextmanager
    def _sets_ensured(self, work: SyncWork) -> Iterator[None]:
        """Surround a write of rules: without a set that they name, the kernel refuses them."""
        try:
            yield
        except self._rules.errors as error:
            if self.servers.known.lacks_sets():
                work.resync(self._rules.explain(error).text)
            raise

    def _leave_own_connections(self) -> None:
        """Make the virtual server for OWN_MARK: replies to the node's own connections bypass IPVS."""
        family = self._config.family
        try:
            self._kernel.ipvs.add_local_mark(family, OWN_MARK, self._config.scheduler.name)
        except IpvsError as error:
            effect = "connections that the node opens from a source port which is a node port fail"
            log.warning("own_connections_unprotected", family=family.value, reason=str(error), effect=effect)
        else:
            self._has_mark = True

    def _remove_kube_proxy_sets(self) -> None:
        """Destroy the sets of kube-proxy's IPVS mode; its virtual servers and device have been taken over."""
        ipset = self._kernel.ipset
        for name in sorted(KUBE_PROXY_SETS[self._config.family] & ipset.headers().keys()):
            try:
                ipset.destroy(name)
            except IpsetError as error:
                log.warning("set_delete_failed", set=name, reason=str(error))
