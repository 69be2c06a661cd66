"""What an operator can do about a transaction that fails."""

from kproxy.kernel.generations import has_nftables
from kproxy.kernel.nft.types import NftError, NftFailure


def remedy(error: NftError) -> str:
    """The remedy in words, without a capital and a full stop."""
    if not has_nftables():
        return "load nftables (modprobe nf_tables), or use a kernel that has it"
    if error.kind is NftFailure.MISSING:
        return "run as root, or add NET_ADMIN to securityContext.capabilities.add of the container"
    if error.kind is NftFailure.REFUSED:
        return "use a newer kernel"
    return "try again"
