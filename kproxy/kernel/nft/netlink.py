"""nftables over netlink: encodes transactions and decodes tables, without the program nft.

The program needs a process for each change, reads every table of the namespace before it writes to one, and
crashes on objects of another version that it cannot read (Kubernetes issue 136786).
"""

import errno
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from kproxy.addresses import Family
from kproxy.kernel.netlink.messages import NLM_F_REQUEST, attributes, message
from kproxy.kernel.netlink.socket import GaveWay
from kproxy.kernel.nft import batch, dump
from kproxy.kernel.nft.commands import TABLE_FAMILY, Transaction
from kproxy.kernel.nft.connection import Connection
from kproxy.kernel.nft.decoding import Counts, UndecodableError
from kproxy.kernel.nft.events import table_events
from kproxy.kernel.nft.messages import NFGENMSG, SUBSYSTEM, encode
from kproxy.kernel.nft.types import NftError, NftFailure, Reading
from kproxy.kernel.xtables.types import RulesetGeneration

_NEW_GENERATION, _GET_GENERATION = 15, 16  # enum nf_tables_msg_types
_GENERATION_ID = 1
_READINGS = 4
_READING_SECONDS = 30.0
"""Bounds of the attempts to read a table that others change during the reading: number, and time in which the
next one may begin. The largest tables measured take 3 s."""

T = TypeVar("T")


class NetlinkNft:
    """nftables in the network namespace of the calling thread; see Nft."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._connection = Connection()
        self._clock = clock
        self.gives_way: Callable[[], bool] | None = None

    def commit(self, transaction: Transaction) -> None:
        """See Nft.commit."""
        try:
            messages = encode(transaction)
        except (ValueError, OSError) as error:
            raise NftError(NftFailure.REFUSED, f"cannot encode: {error}") from error
        batch.commit(self._connection, messages, transaction.target)

    def reading(
        self, family: Family, table: str, *, elements: bool = True, portable: bool = False
    ) -> Reading | None:
        """See Nft.reading. Raises NftError also if others change this table faster than it can be read."""
        deadline = self._clock() + _READING_SECONDS
        for _ in range(_READINGS):
            try:
                found, consistent = _call(
                    lambda: _reading(family, table, self.gives_way, elements=elements, portable=portable)
                )
            except GaveWay as error:
                raise NftError(NftFailure.POSTPONED, "a change waits") from error
            if consistent:
                return found
            if self._clock() >= deadline:
                break
        message = f"table {TABLE_FAMILY[family]} {table} kept changing while it was read"
        raise NftError(NftFailure.INTERRUPTED, message)

    def counts(self, family: Family, table: str, name: str) -> Mapping[str, Counts] | None:
        """See Nft.counts."""
        try:
            return _call(lambda: dump.counts(family, table, name))
        except UndecodableError as error:
            raise NftError(NftFailure.INTERRUPTED, f"cannot read the counters: {error}") from error

    def rule_counts(self, family: Family, table: str) -> Mapping[str, Sequence[int]] | None:
        """See CountsRules.rule_counts."""
        return _call(lambda: dump.rule_counts(family, table))

    def sizes(self, family: Family, table: str, wanted: Callable[[str], bool]) -> Mapping[str, int]:
        """See CountsElements.sizes."""
        return _call(lambda: dump.sizes(family, table, wanted))

    def generation(self) -> RulesetGeneration | None:
        """See Nft.generation."""
        try:
            answers = self._connection.exchange(1, _generation_request)
        except OSError:
            return None
        for kind, _, _, content in answers:
            if kind == SUBSYSTEM << 8 | _NEW_GENERATION:
                count = int.from_bytes(attributes(content[NFGENMSG.size :])[_GENERATION_ID], "big")
                return RulesetGeneration(("nft", count), commits=count)
        return None


def _reading(
    family: Family, table: str, gives_way: Callable[[], bool] | None, *, elements: bool, portable: bool
) -> tuple[Reading | None, bool]:
    """Read a table once; return the reading, and whether no transaction changed the table during it."""
    with table_events(family, table) as events:
        read = dump.reading if gives_way is None else partial(dump.reading, gives_way=gives_way)
        found = read(family, table, elements=elements, portable=portable)
        return found, not events.changed()


def _generation_request(sequence: int) -> bytes:
    body = NFGENMSG.pack(socket.AF_UNSPEC, 0, 0)
    return message(SUBSYSTEM << 8 | _GET_GENERATION, NLM_F_REQUEST, sequence, body)


def _call(request: Callable[[], T]) -> T:
    """Call `request` and return its result. Raises NftError for an OSError, and UndecodableError."""
    try:
        return request()
    except OSError as error:
        kind = NftFailure.MISSING if error.errno in {errno.EPERM, errno.EACCES} else NftFailure.INTERRUPTED
        raise NftError(kind, f"cannot read the table: {error.strerror or error}") from error
