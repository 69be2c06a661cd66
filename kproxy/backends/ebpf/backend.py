"""The socket table of one family: a Backend whose services are degraded at worst, never failed.

What the maps do not hold is translated packet by packet, so that a refused service is served all the same.
"""

import time
from collections.abc import Callable

import msgspec

from kproxy.addresses import Family
from kproxy.backends.core.base import ServiceState, ServiceStatus, SyncReport
from kproxy.backends.core.service_reconciler import ServiceReconciler
from kproxy.backends.ebpf.config import SocketConfig
from kproxy.backends.ebpf.objects import SocketObjects
from kproxy.backends.ebpf.record import NO_COUNTER
from kproxy.backends.ebpf.shared import SharedTable


class PortConnections(msgspec.Struct, frozen=True, gc=False):
    """Connections that programs have sent to endpoints of a TCP port; `name` is that of PortPlan."""

    name: str
    connections: int


class SocketBackend(ServiceReconciler[SocketObjects]):
    """One family's part of a table; all backends of a table run in one thread."""

    def __init__(
        self,
        family: Family,
        table: SharedTable,
        config: SocketConfig,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        # The kernel answers each request by itself, so there is nothing to assume.
        super().__init__(family, SocketObjects(family, table, config, clock, wait), clock, assumes=False)
        self._table = table

    def reconfigure(self, config: SocketConfig) -> None:
        """Change to other settings of the same family; the next sync writes the differences.

        Addresses of the node may change often: only services at those that came or went are rendered again.
        """
        before = self.operations.use_config(config)
        if msgspec.structs.replace(before, local_addresses=config.local_addresses) != config:
            self.replan()
            return
        moved = before.local_addresses ^ config.local_addresses
        if moved:
            plans = self.plans.values()
            self.update([plan for plan in plans if any(port.cluster_ip in moved for port in plan.ports)])

    def sync(self, budget: float | None = None) -> SyncReport:
        """Bring the maps to the desired state; see Backend. A refused service is degraded."""
        report = super().sync(budget)
        refused = report.failed
        if not refused:
            return report
        services = dict(report.services)
        for key, reason in refused.items():
            text = f"not translated at the socket: {reason}"
            services[key] = ServiceStatus(ServiceState.DEGRADED, text)
        return msgspec.structs.replace(report, services=services)

    def counts(self) -> dict[str, int]:
        """Frontends in the map and slots in use. May be called from any thread."""
        writer = self.operations.writer
        return {"frontends": len(writer.standing), "slots": writer.blocks.used}

    def connections(self) -> tuple[PortConnections, ...]:
        """The connections of each service port in the table, since this process has known its frontend.

        May be called from any thread. Raises BpfError.
        """
        counts = self._table.connections()
        writer = self.operations.writer
        standing, since = writer.standing, writer.counters.since
        return tuple(
            PortConnections(frontend.name, since(each.counter, counts))
            for key, frontend in self.operations.frontends()
            if (each := standing.get(key)) is not None and each.counter != NO_COUNTER
        )
