"""Warn of tables that kube-proxy's nftables mode left: they act on packets in every mode of kproxy."""

import structlog

from kproxy.addresses import Family
from kproxy.backends.nftables.names import KUBE_PROXY_TABLE
from kproxy.kernel import nft_tables
from kproxy.kernel.nft.commands import TABLE_FAMILY

log = structlog.stdlib.get_logger(__name__)


def warn_of_kube_proxy_tables() -> None:
    """Log one warning that names kube-proxy's tables in this network namespace, if there are any."""
    try:
        found = [
            f"{TABLE_FAMILY[family]} {KUBE_PROXY_TABLE}"
            for family in Family
            if KUBE_PROXY_TABLE in nft_tables.tables(family)
        ]
    except nft_tables.NftablesError as error:
        log.info("tables_not_listed", reason=str(error))
        return
    if found:
        log.warning(
            "foreign_proxy_tables_found",
            tables=found,
            effect="they act on the packets of services beside kproxy's rules",
            remedy="stop kube-proxy on this node and run kproxy cleanup --peer kube-proxy, then start again",
        )
