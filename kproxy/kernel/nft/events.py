"""Whether a transaction changed a table while it was read.

A reading takes many requests. The kernel marks an answer as interrupted after a transaction on any table of
the namespace, and its generation counts all of them. Where another program writes each second, a reading of
some seconds would never count as consistent. The kernel's notifications name the table.
"""

import contextlib
import errno
import socket
from collections.abc import Iterator

from kproxy.addresses import Family
from kproxy.kernel.netlink.messages import attributes, each_message
from kproxy.kernel.nft.decoding import text
from kproxy.kernel.nft.expressions import FAMILY_NUMBERS
from kproxy.kernel.nft.messages import NFGENMSG, SUBSYSTEM

_NETLINK_NETFILTER = 12
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_GROUP = 7  # NFNLGRP_NFTABLES
_SO_RCVBUFFORCE = 33
_RECEIVE_BUFFER = 16 << 20
_RECEIVE_BYTES = 1 << 18
_NEW_GENERATION = 15  # enum nf_tables_msg_types; it names no table
_TABLE = 1  # of tables, chains, rules, sets, elements, objects and flowtables


class TableEvents:
    """Notifications about one table since this object was made, in the calling thread's network namespace."""

    def __init__(self, family: Family, table: str) -> None:
        self._family = FAMILY_NUMBERS[family]
        self._table = table
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
            _NETLINK_NETFILTER,
        )
        try:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
            self._socket.bind((0, 0))
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP)
        except OSError:
            self._socket.close()
            raise

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def changed(self) -> bool:
        """Whether the table was changed; True also if notifications were lost. Raises OSError."""
        found = False
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                found = True
                continue
            found = found or any(map(self._is_about_it, each_message(data)))

    def _is_about_it(self, received: tuple[int, int, int, bytes]) -> bool:
        kind, _, _, content = received
        if kind >> 8 != SUBSYSTEM or kind & 0xFF == _NEW_GENERATION or content[0] != self._family:
            return False
        return text(attributes(content[NFGENMSG.size :]).get(_TABLE, b"")) == self._table


@contextlib.contextmanager
def table_events(family: Family, table: str) -> Iterator[TableEvents]:
    """Watch a table for as long as the block lasts. Raises OSError."""
    events = TableEvents(family, table)
    try:
        yield events
    finally:
        events.close()
