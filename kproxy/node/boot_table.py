"""The table that closes pods between a node's boot and kproxy's first sync of policies.

A script that runs before kubelet makes it (manifests/boot). kproxy removes it once its own table is in force,
and where policies are not enforced, because no pod would ever be reached.
"""

import structlog

from kproxy.addresses import Family
from kproxy.kernel import nft_tables

log = structlog.stdlib.get_logger(__name__)

TABLE = "kproxy-policy-boot"


def remove_boot_table(family: Family) -> bool:
    """Remove the table if it exists; False if that failed, which is logged."""
    reason = nft_tables.remove(TABLE, (family,)).get(family)
    if reason:
        log.error("boot_table_stays", family=family.value, table=TABLE, reason=reason)
    elif reason is not None:
        log.info("boot_table_removed", family=family.value, table=TABLE)
    return not reason
