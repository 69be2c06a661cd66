"""Take away the tables of the nftables mode, and nothing else."""

import structlog

from kproxy.addresses import Family
from kproxy.backends.nftables.config import NftablesConfig
from kproxy.backends.nftables.names import TABLE
from kproxy.backends.nftables.script import Script
from kproxy.kernel.nft.program import find_nft
from kproxy.kernel.nft.types import NftError

log = structlog.stdlib.get_logger(__name__)


def remove_tables() -> bool:
    """Remove them where they are; False if one could not be (which is logged).

    Without nft, or in a kernel without nftables, there are none.
    """
    nft = find_nft()
    if nft is None or nft.stamp() is None:
        return True
    clean = True
    for family in Family:
        try:
            if nft.listing(family, TABLE, terse=True) is None:
                continue
            script = Script(NftablesConfig(family))
            script.remove_table()
            nft.run(str(script))
        except NftError as error:
            log.error("cleanup_failed", family=family.value, table=TABLE, reason=error.message)
            clean = False
        else:
            log.info("removed", family=family.value, table=TABLE)
    return clean
