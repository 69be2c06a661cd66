"""Remove all that kproxy made on this node, in whatever mode: nftables, both variants of iptables, IPVS."""

import time

import structlog

from kproxy.addresses import Family
from kproxy.agent.departure import Departure
from kproxy.agent.factory import ipvs_handles
from kproxy.agent.peer_tables import warn_of_peer_tables
from kproxy.agent.rules_removal import remove_rules
from kproxy.agent.table_removal import remove_tables
from kproxy.backends.iptables import names
from kproxy.kernel import nft_tables

log = structlog.stdlib.get_logger(__name__)


def remove_everything(*, peer: bool = False) -> bool:
    """Remove what is there; False if anything could not be removed (each failure is logged).

    kube-proxy's iptables and IPVS modes write the chains, sets and device that kproxy knows as its own; with
    `peer`, the tables of its nftables mode go too; without, they are named and stay.

    Virtual servers go first, as long as the sets tell which are ours; the sets last, when no rule names them.
    """
    if not peer:
        warn_of_peer_tables()
    ipvs = Departure(ipvs_handles(), 0, (), time.monotonic)
    cleared = ipvs.clear()
    clean = remove_tables() and cleared
    clean = remove_rules() and clean
    if peer:
        clean = _remove_peer_tables() and clean
    # While a virtual server stands, the sets must go on saying that it is ours.
    return cleared and ipvs.dissolve() and clean


def _remove_peer_tables() -> bool:
    clean = True
    for family in Family:
        table = names.PEER_NFT_TABLE
        try:
            if table in nft_tables.tables(family):
                nft_tables.delete(family, table)
                log.info("nftables_table_removed", family=family.value, table=table)
        except nft_tables.NftablesError as error:
            log.error("cleanup_failed", family=family.value, table=table, reason=str(error))
            clean = False
    return clean
