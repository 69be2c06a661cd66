"""The nftables mode of one family."""

import time
from collections.abc import Callable

from kproxy.backends.core.base import CheckError, CheckPostponed, Drift, PortAffinity, PortTraffic
from kproxy.backends.core.foreign_writes import ForeignWrites
from kproxy.backends.core.hashes import port_hash
from kproxy.backends.core.service_reconciler import ServiceReconciler
from kproxy.backends.nftables import names
from kproxy.backends.nftables.config import NftablesConfig
from kproxy.backends.nftables.objects import TableObjects
from kproxy.backends.nftables.traffic import Traffic, port_of
from kproxy.kernel.nft.types import CountsElements, Nft, NftError, NftFailure
from kproxy.plan.model import PortPlan

BATCH_SIZE = 10000
"""Elements per transaction of a big change; the kernel's commit lock is then held for about 30 ms."""


class NftablesBackend(ServiceReconciler[TableObjects]):
    """One family's table."""

    def __init__(
        self,
        config: NftablesConfig,
        nft: Nft,
        watch: ForeignWrites,
        *,
        batch_size: int = BATCH_SIZE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(config.family, TableObjects(config, nft, watch, batch_size), clock)
        self._nft = nft
        self._traffic = Traffic()

    def reconfigure(self, config: NftablesConfig) -> None:
        """Change to other settings of the same family; the next sync writes the differences."""
        if self.operations.use_config(config):
            self.replan()

    def check(self, *, full: bool = False) -> tuple[Drift, ...]:
        """Compare the table with the applied state; a long reading gives way. See Backend.check."""
        self._nft.gives_way = self.gives_way
        try:
            return super().check(full=full)
        except CheckError as error:
            cause = error.__cause__
            if isinstance(cause, NftError) and cause.kind is NftFailure.POSTPONED:
                raise CheckPostponed(str(error)) from error
            raise
        finally:
            self._nft.gives_way = None

    def objects(self) -> dict[str, int]:
        """Number of elements and chains in the applied state. May be called from any thread."""
        return self.operations.counts()

    def traffic(self) -> tuple[PortTraffic, ...]:
        """The traffic of every service port that has endpoints. Raises NftError.

        May be called from any thread, but from one at a time.
        """
        counts = self._nft.counts(self.family, names.TABLE, names.SERVICES)
        return self._traffic.read(counts or {}, self._port_at)

    def affinity(self) -> tuple[PortAffinity, ...]:
        """How full the affinity sets of service ports are. Raises NftError. May be called from any thread."""
        if not isinstance(self._nft, CountsElements):
            return ()
        ports = {
            names.affinity(port_hash(port.name, port.protocol.value.lower())): port
            for plan in tuple(self.plans.values())
            for port in plan.ports
            if port.affinity_seconds is not None
        }
        sizes = self._nft.sizes(self.family, names.TABLE, ports.__contains__) if ports else {}
        return tuple(
            PortAffinity(port.name, port.protocol.value, sizes[name], names.AFFINITY_SIZE)
            for name, port in ports.items()
            if name in sizes
        )

    def _port_at(self, frontend: str) -> PortPlan | None:
        plan = self.plans.get(self.operations.owner(names.SERVICES, frontend) or "")
        return None if plan is None else port_of(plan, frontend)
