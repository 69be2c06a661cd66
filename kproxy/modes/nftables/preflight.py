"""Probes of `kproxy check` for the nftables mode."""

from collections.abc import Iterator, Mapping

from kproxy.addresses import Family
from kproxy.backends.nftables.config import NftablesConfig
from kproxy.backends.nftables.probe import probe
from kproxy.config.model import ProxyConfig
from kproxy.kernel.nft.netlink import NetlinkNft
from kproxy.kernel.nft.types import NftError
from kproxy.kernel.xtables.types import Variant
from kproxy.modes.findings import Finding, failed, ok


def check(_config: ProxyConfig, _variants: Mapping[Family, Variant]) -> Iterator[Finding]:
    """Create and delete the whole layout in one transaction, in a table of its own."""
    nft = NetlinkNft()
    for family in Family:
        subject = f"nftables {family.value}"
        try:
            probe(nft, NftablesConfig(family))
        except NftError as error:
            remedy = "use another --proxy-mode, or a newer kernel"
            yield failed(subject, f"its maps and chains cannot be made: {error.message}", remedy)
        else:
            yield ok(subject, "all maps, sets and chains of the mode work")
