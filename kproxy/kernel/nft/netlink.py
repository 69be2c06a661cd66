"""nftables over netlink: transactions are encoded and tables decoded here, without the program nft.

The program reads every table of the namespace before it writes to one, and ends with a signal where another
version of it has left what it cannot read (Kubernetes issue 136786); and it is a process for each change.
"""

import errno
from collections.abc import Callable, Mapping
from typing import TypeVar

from kproxy.addresses import Family
from kproxy.kernel.nft import batch, dump
from kproxy.kernel.nft.commands import Transaction
from kproxy.kernel.nft.decoding import Counts, UndecodableError
from kproxy.kernel.nft.messages import encode
from kproxy.kernel.nft.types import NftError, NftFailure, Reading
from kproxy.kernel.xtables import stamps
from kproxy.kernel.xtables.types import Stamp, Variant

_READINGS = 10
"""How often a table is read anew because others committed something during the reading."""

T = TypeVar("T")


class NetlinkNft:
    """nftables in the network namespace of the calling thread; see Nft. It keeps nothing open."""

    def commit(self, transaction: Transaction) -> None:
        """See Nft.commit."""
        try:
            messages = encode(transaction)
        except (ValueError, OSError) as error:
            raise NftError(NftFailure.REFUSED, f"cannot encode: {error}") from error
        batch.commit(messages, transaction.target)

    def reading(
        self, family: Family, table: str, *, elements: bool = True, portable: bool = False
    ) -> Reading | None:
        """See Nft.reading. Raises NftError also if the ruleset changes faster than it can be read."""
        for _ in range(_READINGS):
            before = self.stamp()
            found = _asked(lambda: dump.reading(family, table, elements=elements, portable=portable))
            if self.stamp() == before:
                return found
        raise NftError(NftFailure.INTERRUPTED, "the ruleset kept changing while it was read")

    def counts(self, family: Family, table: str, name: str) -> Mapping[str, Counts] | None:
        """See Nft.counts."""
        try:
            return _asked(lambda: dump.counts(family, table, name))
        except UndecodableError as error:
            raise NftError(NftFailure.INTERRUPTED, f"cannot read the counters: {error}") from error

    def stamp(self) -> Stamp | None:
        """See Nft.stamp."""
        return stamps.stamp(Family.IPV4, Variant.NFT)


def _asked(question: Callable[[], T]) -> T:
    """What the kernel answers. Raises NftError, and UndecodableError."""
    try:
        return question()
    except OSError as error:
        kind = NftFailure.MISSING if error.errno in {errno.EPERM, errno.EACCES} else NftFailure.INTERRUPTED
        raise NftError(kind, f"cannot read the table: {error.strerror or error}") from error
