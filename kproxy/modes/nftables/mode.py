"""The nftables mode on this kernel: probe the whole layout and build the backends."""

from collections.abc import Mapping

import msgspec
import structlog

from kproxy.addresses import Family, is_link_local, is_loopback
from kproxy.backends.core.base import Backend, Drift, MeasureError, Measurement
from kproxy.backends.core.foreign_writes import ForeignWrites, RulesetWatches
from kproxy.backends.nftables.backend import NftablesBackend
from kproxy.backends.nftables.config import NftablesConfig
from kproxy.backends.nftables.probe import probe
from kproxy.config.model import ProxyConfig
from kproxy.kernel.links import AddressNews
from kproxy.kernel.nft.types import Nft, NftError, NftFailure
from kproxy.kernel.xtables.types import Variant
from kproxy.modes.base import ModeUnavailable, NoFamilyUsable
from kproxy.node.facts import FamilyFacts

log = structlog.stdlib.get_logger(__name__)


class NftablesMode:
    """The nftables mode. The constructor raises ModeUnavailable if the kernel does not support it."""

    def __init__(self, config: ProxyConfig, nft: Nft) -> None:
        self._config = config
        self._nft = nft
        self._watch = ForeignWrites(nft.generation)
        self._backends: dict[Family, NftablesBackend] = {}
        self.families = self._usable()
        self.variants: Mapping[Family, Variant] = {}

    def share_writes(self, watches: RulesetWatches) -> None:
        """See SharesWrites."""
        self._watch = watches.setdefault(Variant.NFT, self._watch)

    def configure(self, family: Family, facts: FamilyFacts) -> Backend:
        """Return the backend of a family."""
        config = nftables_config(self._config, family, facts)
        backend = self._backends.get(family)
        if backend is None:
            backend = self._backends[family] = NftablesBackend(config, self._nft, self._watch)
        else:
            backend.reconfigure(config)
        return backend

    def reconfigure(self, config: ProxyConfig) -> None:
        """Apply new settings."""
        self._config = config

    def compare_addresses(self, news: AddressNews) -> Mapping[Family, tuple[Drift, ...]]:  # noqa: ARG002
        """Return nothing: this mode adds no address to the node."""
        return {}

    def measure(self, family: Family, *, traffic: bool) -> Measurement:
        """Count objects from the backend's state, and traffic from the kernel."""
        backend = self._backends.get(family)
        if backend is None:
            return Measurement()
        try:
            found = Measurement(objects=backend.objects())
            if not traffic:
                return found
            return msgspec.structs.replace(found, traffic=backend.traffic(), affinity=backend.affinity())
        except NftError as error:
            raise MeasureError(error.message) from error

    def on_first_sync(self) -> None:
        """Do nothing; the mode has one form."""

    def run_timers(self) -> float | None:
        """Do nothing; the tables do not depend on time."""
        return None

    def _usable(self) -> tuple[Family, ...]:
        reasons: dict[Family, str] = {}
        for family in Family:
            try:
                probe(self._nft, NftablesConfig(family))
            except NftError as error:
                reason = f"--proxy-mode nftables: {error.message}"
                if error.kind is NftFailure.INTERRUPTED:
                    raise ModeUnavailable(reason) from error
                reasons[family] = reason
        if len(reasons) == len(Family):
            raise NoFamilyUsable(reasons)
        for family, reason in reasons.items():
            log.warning("family_unusable", family=family.value, reason=reason)
        return tuple(family for family in Family if family not in reasons)


def nftables_config(config: ProxyConfig, family: Family, facts: FamilyFacts) -> NftablesConfig:
    """The settings of one family, on a node with these facts."""
    accepting = facts.local_addresses if facts.node_port_addresses is None else facts.node_port_addresses
    return NftablesConfig(
        family=family,
        masquerade_bit=config.masquerade_bit,
        masquerade_all=config.masquerade_all,
        local_traffic=facts.local_traffic,
        node_addresses=tuple(ip for ip in accepting if not is_loopback(ip) and not is_link_local(ip)),
        reject_unallocated=config.nftables_reject_unallocated,
        service_cidrs=facts.service_ranges,
    )
