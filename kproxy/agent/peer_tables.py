"""Say that kube-proxy left tables of its nftables mode: they act on packets whatever mode kproxy runs in."""

import structlog

from kproxy.kernel.nft.program import find_nft
from kproxy.kernel.nft.types import Nft, NftError

log = structlog.stdlib.get_logger(__name__)

PEER_TABLES = frozenset({"ip kube-proxy", "ip6 kube-proxy"})
"""kube-proxy 1.36, pkg/proxy/nftables/proxier.go: kubeProxyTable, in both families."""


def warn_of_peer_tables(nft: Nft | None = None) -> None:
    """Name the tables of kube-proxy that stand in this network namespace, if any, in one warning.

    Without nft, or in a kernel without nftables, there are none that could be seen.
    """
    nft = nft or find_nft()
    if nft is None or nft.stamp() is None:
        return
    try:
        found = sorted(PEER_TABLES.intersection(nft.table_names()))
    except NftError as error:
        log.info("tables_not_listed", reason=error.message)
        return
    if found:
        log.warning(
            "peer_tables_found",
            tables=found,
            effect="they act on the packets of services beside kproxy's rules",
            remedy="stop kube-proxy on this node and run kproxy cleanup --peer kube-proxy, then start again",
        )
