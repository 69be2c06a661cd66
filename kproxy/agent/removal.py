"""Remove all that kproxy made on this node, in whatever mode: nftables, both variants of iptables, IPVS."""

import time

from kproxy.agent.departure import Departure
from kproxy.agent.factory import ipvs_handles
from kproxy.agent.peer_tables import warn_of_peer_tables
from kproxy.agent.rules_removal import remove_rules
from kproxy.agent.table_removal import remove_tables


def remove_everything() -> bool:
    """Remove what is there; False if anything could not be removed (each failure is logged).

    What kube-proxy's nftables mode left is not kproxy's: it is named and stays.
    Virtual servers go first, as long as the sets tell which are ours; the sets last, when no rule names them.
    """
    warn_of_peer_tables()
    ipvs = Departure(ipvs_handles(), 0, (), time.monotonic)
    cleared = ipvs.clear()
    clean = remove_tables() and cleared
    clean = remove_rules() and clean
    # While a virtual server stands, the sets must go on saying that it is ours.
    return cleared and ipvs.dissolve() and clean
