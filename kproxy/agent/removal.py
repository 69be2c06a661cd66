"""Remove all that kproxy made on this node, in whatever mode: both variants of iptables, both families."""

import time

import structlog

from kproxy.addresses import Family
from kproxy.agent.departure import Departure
from kproxy.agent.factory import ipvs_handles
from kproxy.backends.iptables import names
from kproxy.backends.iptables.cleanup import cleanup
from kproxy.backends.iptables.render import INVALID_COUNTER, LOCALHOST_COUNTER
from kproxy.kernel import nfacct, nft_tables
from kproxy.kernel.xtables.detect import find_tools
from kproxy.kernel.xtables.programs import SubprocessXtables
from kproxy.kernel.xtables.types import RestoreError, Variant, XtablesUnavailable

log = structlog.stdlib.get_logger(__name__)


def remove_everything(*, peer: bool = False) -> bool:
    """Remove what is there; False if anything could not be removed (each failure is logged).

    kube-proxy's iptables and IPVS modes write the chains, sets and device that kproxy knows as its own; with
    `peer`, the tables of its nftables mode go too.

    Virtual servers go first, as long as the sets tell which are ours; the sets last, when no rule names them.
    """
    ipvs = Departure(ipvs_handles(), 0, (), time.monotonic)
    cleared = ipvs.clear()
    clean = _remove_rules() and cleared
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


def _remove_rules() -> bool:
    clean = True
    for family in Family:
        for variant in Variant:
            try:
                tools = find_tools(family, variant, probe=False)
            except XtablesUnavailable as error:
                log.debug("variant_absent", family=family.value, variant=variant.value, reason=error.reason)
                continue
            try:
                removals = cleanup(SubprocessXtables(family, tools))
            except RestoreError as error:
                log.error("cleanup_failed", family=family.value, variant=variant.value, reason=error.message)
                clean = False
                continue
            for removal in removals:
                log.info(
                    "removed",
                    family=family.value,
                    variant=variant.value,
                    table=removal.table,
                    chains=len(removal.chains) - len(removal.kept),
                    jumps=len(removal.rules),
                )
                for chain, rule in removal.kept.items():
                    log.warning("chain_kept", table=removal.table, chain=chain, used_by=rule)
                    clean = False
    for counter in (INVALID_COUNTER, LOCALHOST_COUNTER):
        try:
            nfacct.delete(counter)
        except nfacct.NfacctError as error:
            log.debug("counter_kept", counter=counter, reason=str(error))
    return clean
