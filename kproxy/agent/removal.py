"""Remove all that kproxy made on this node, in whatever mode: nftables, both variants of iptables, IPVS."""

import time

from kproxy.agent.departure import Departure
from kproxy.agent.factory import ipvs_handles
from kproxy.agent.peer_tables import warn_of_peer_tables
from kproxy.agent.rules_removal import remove_rules
from kproxy.agent.table_removal import remove_tables
from kproxy.backends.iptables import names


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
        clean = remove_tables(names.PEER_NFT_TABLE) and clean
    # While a virtual server stands, the sets must go on saying that it is ours.
    return cleared and ipvs.dissolve() and clean
