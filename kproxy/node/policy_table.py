"""Remove everything of NetworkPolicies from the kernel, in any proxy mode.

These are the tables of policies, the table of a node's boot, and the flags of bridges. This uses netlink, for
the program nft may be missing on a node.
"""

import structlog

from kproxy.kernel import nft_tables
from kproxy.node import boot_table

log = structlog.stdlib.get_logger(__name__)


def remove_policy_tables() -> bool:
    """Remove all of it; False if that failed (which is logged)."""
    from kproxy.backends.policy.names import TABLE
    from kproxy.node import pod_bridges

    clean = True
    for table in (TABLE, boot_table.TABLE):
        for family, reason in nft_tables.remove(table).items():
            if reason:
                log.error("cleanup_failed", family=family.value, table=table, reason=reason)
                clean = False
            else:
                log.info("removed", family=family.value, table=table)
    return pod_bridges.restore() and clean
