"""Remove the tables of the nftables mode, or of kube-proxy's, and nothing else.

This uses netlink: the program nft may be missing, and it reads every rule before it lists the names.
"""

from collections.abc import Mapping

import structlog

from kproxy.addresses import Family
from kproxy.backends.nftables.names import KUBE_PROXY_TABLE, TABLE
from kproxy.config.model import ProxyConfig
from kproxy.config.modes import traits_of
from kproxy.kernel import nft_tables
from kproxy.kernel.processes import Runner
from kproxy.kernel.xtables.types import Variant

log = structlog.stdlib.get_logger(__name__)


class TableLeftovers:
    """The tables that the nftables mode left."""

    def __init__(self, config: ProxyConfig | None, runner: Runner) -> None:  # noqa: ARG002
        """`config`: the settings of the mode that takes over."""
        self._are_used = config is not None and traits_of(config.proxy_mode).writes_table

    def begin(self, used: Mapping[Family, Variant]) -> None:  # noqa: ARG002
        """Remove the tables, unless the mode that takes over has made them its own."""
        if not self._are_used:
            remove_tables()

    def run_timers(self) -> float | None:
        """Do nothing; no removal is deferred."""
        return None

    def clear(self, *, kube_proxy: bool) -> bool:
        """Remove the tables, with `kube_proxy` also those of its nftables mode; True if they are gone."""
        clean = remove_tables()
        return (remove_tables(KUBE_PROXY_TABLE) and clean) if kube_proxy else clean

    def dissolve(self) -> bool:
        """Do nothing; `clear` has removed everything."""
        return True


def remove_tables(name: str = TABLE) -> bool:
    """Remove both families' tables of that name; False if that failed (which is logged).

    A kernel without nftables has none: True.
    """
    clean = True
    for family in Family:
        try:
            if name not in nft_tables.tables(family):
                continue
            nft_tables.delete(family, name)
        except nft_tables.NftablesError as error:
            log.error("cleanup_failed", family=family.value, table=name, reason=str(error))
            clean = False
        else:
            log.info("removed", family=family.value, table=name)
    return clean
