"""Take away the tables of the nftables mode, or of kube-proxy's, and nothing else.

Over netlink: the program nft may be missing, and to list the names it first reads every rule there is.
"""

import structlog

from kproxy.addresses import Family
from kproxy.backends.nftables.names import TABLE
from kproxy.kernel import nft_tables

log = structlog.stdlib.get_logger(__name__)


def remove_tables(name: str = TABLE) -> bool:
    """Remove both families' tables of that name; False if one could not be (which is logged).

    In a kernel without nftables there are none.
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
