"""The eBPF mode on this kernel: the nftables mode, with a socket table in front of it where BPF can run.

Where it cannot, the mode is the nftables mode, and says why (see SocketTableState).
"""

import time
from collections.abc import Callable, Mapping

import msgspec

from kproxy.addresses import Family
from kproxy.backends.core.base import Backend, Drift, MeasureError, Measurement, PortTraffic
from kproxy.backends.core.foreign_writes import RulesetWatches
from kproxy.backends.ebpf.config import SocketConfig
from kproxy.backends.nftables.backend import NftablesBackend
from kproxy.config.model import ProxyConfig
from kproxy.kernel.bpf.types import BpfError
from kproxy.kernel.links import AddressNews
from kproxy.kernel.nft.types import Nft
from kproxy.kernel.xtables.types import Variant
from kproxy.modes.base import SocketTableState
from kproxy.modes.ebpf.combined import CombinedBackend
from kproxy.modes.ebpf.kernel import table_settings
from kproxy.modes.ebpf.sockets import Kernel, Sockets
from kproxy.modes.nftables.mode import NftablesMode
from kproxy.node.facts import FamilyFacts
from kproxy.plan.model import Protocol


class EbpfMode:
    """The eBPF mode. The constructor raises ModeUnavailable only where the nftables mode cannot run."""

    def __init__(
        self,
        config: ProxyConfig,
        nft: Nft,
        kernel: Kernel | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._table = NftablesMode(config, nft)
        self._backends: dict[Family, CombinedBackend] = {}
        self.families = self._table.families
        self.variants: Mapping[Family, Variant] = {}
        self._sockets = Sockets(self.families, table_settings(config), kernel, clock)
        self._sockets.open()

    @property
    def socket_table(self) -> SocketTableState:
        """See HasSocketTable."""
        return self._sockets.state

    def share_writes(self, watches: RulesetWatches) -> None:
        """See SharesWrites."""
        self._table.share_writes(watches)

    def configure(self, family: Family, facts: FamilyFacts) -> Backend:
        """Return the backend of a family."""
        table = self._table.configure(family, facts)
        backend = self._backends.get(family)
        if backend is None:
            assert isinstance(table, NftablesBackend)  # noqa: S101 - the nftables mode has no other
            backend = self._backends[family] = CombinedBackend(table, self._sockets)
        backend.configure(socket_config(self._config, family, facts))
        return backend

    def reconfigure(self, config: ProxyConfig) -> None:
        """Apply new settings."""
        self._config = config
        self._table.reconfigure(config)
        self._sockets.use_settings(table_settings(config))

    def on_first_sync(self) -> None:
        """Do nothing; the mode has one form."""

    def run_timers(self) -> float | None:
        """Try the socket table again if it is due; return the seconds until the next time."""
        return self._sockets.run_timers()

    def compare_addresses(self, news: AddressNews) -> Mapping[Family, tuple[Drift, ...]]:
        """Return nothing: this mode adds no address to the node."""
        return self._table.compare_addresses(news)

    def measure(self, family: Family, *, traffic: bool) -> Measurement:
        """Count objects, and connections of both halves."""
        found = self._table.measure(family, traffic=traffic)
        frontends = self._sockets.frontends(family)
        found = msgspec.structs.replace(found, frontends=frontends)
        if not traffic:
            return found
        try:
            connections = self._sockets.connections(family)
        except BpfError as error:
            raise MeasureError(error.message) from error
        return msgspec.structs.replace(found, traffic=tuple(with_connections(found.traffic, connections)))

    def close(self) -> None:
        """Let another have the table; see HoldsResources."""
        self._sockets.close()


def socket_config(config: ProxyConfig, family: Family, facts: FamilyFacts) -> SocketConfig:
    """The settings of the sockets of one family, on a node with these facts."""
    return SocketConfig(
        family=family,
        local_addresses=frozenset(facts.local_addresses),
        masquerade_all=config.masquerade_all,
        drift_check_interval=config.sync_period,
    )


def with_connections(ports: tuple[PortTraffic, ...], more: Mapping[str, int]) -> list[PortTraffic]:
    """Add connections of TCP ports, by the ports' names."""
    return [
        msgspec.structs.replace(port, connections=port.connections + more[port.name])
        if port.protocol == Protocol.TCP.value and port.name in more
        else port
        for port in ports
    ]
