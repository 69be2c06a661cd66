"""One netlink socket for transactions, kept open as long as its thread stays in a network namespace.

Closing such a socket blocks: the kernel first frees the objects that earlier transactions have deleted, which
takes an RCU grace period (nft_rcv_nl_event in net/netfilter/nf_tables_api.c; 16 ms measured with Linux 6.18,
where a transaction takes 0.03 ms). This holds for every socket of this protocol.
"""

import contextlib
import errno
import os
import socket
import struct
import threading
from collections.abc import Callable

import msgspec

from kproxy.kernel.netlink.messages import NLMSG_OVERRUN, each_message

_NETLINK_NETFILTER = 12
_SOL_NETLINK = 270
_NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 10, 11
_SO_SNDBUFFORCE = 32
_SPARE = 1 << 16
_RECEIVE_BYTES = 1 << 16
_SEND_SECONDS = struct.Struct("@ll").pack(10, 0)
_NAMESPACE = "/proc/thread-self/ns/net"
_LAST_SEQUENCE = 1 << 31

Received = tuple[int, int, int, bytes]
"""(type, flags, sequence, payload) of a message."""


class Connection:
    """The calling thread's socket in its current network namespace.

    A socket belongs to the namespace in which it was opened, so a thread that has changed its namespace gets
    a new one, and so does a forked process.
    """

    def __init__(self) -> None:
        self._kept = _PerThread()

    def exchange(self, count: int, encode: Callable[[int], bytes]) -> list[Received]:
        """Send `count` messages in one datagram and return the kernel's answers that have arrived.

        If answers were lost, one of type NLMSG_OVERRUN is among them.

        `encode` makes the datagram from the first of their sequence numbers. The kernel processes it before
        the send call returns, so there is no waiting. Raises OSError; then the outcome is unknown.
        """
        kept = self._kept.socket
        place = _place()
        if kept is None or place is None or kept.place != place:
            kept = self._kept.socket = _Kept(place)
        try:
            return kept.exchange(count, encode)
        except OSError:
            self._kept.socket = None
            raise


class _PerThread(threading.local):
    socket: "_Kept | None" = None


class _Place(msgspec.Struct, frozen=True):
    """A network namespace and a process. The socket keeps the namespace, and so its number, in use."""

    namespace: tuple[int, int]
    process: int


def _place() -> _Place | None:
    """Return the current namespace and process; None if the namespace cannot be determined."""
    try:
        found = os.stat(_NAMESPACE)  # noqa: PTH116 - at every transaction: a third of the time
    except OSError:
        return None
    return _Place((found.st_dev, found.st_ino), os.getpid())


class _Kept:
    """One open socket, which is closed when the object is deleted."""

    def __init__(self, place: _Place | None) -> None:
        self.place = place
        self._sequence = 0
        self._size = 0
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
        )
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_SECONDS)
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK):  # without them errors have less detail
            self._set(_SOL_NETLINK, option, 1)

    def __del__(self) -> None:
        # The attribute is missing if the socket could not be made.
        if held := getattr(self, "_socket", None):
            held.close()

    def exchange(self, count: int, encode: Callable[[int], bytes]) -> list[Received]:
        """See Connection.exchange."""
        if self._sequence + count > _LAST_SEQUENCE:
            self._sequence = 0
        first = self._sequence + 1
        self._sequence += count
        data = encode(first)
        if len(data) + _SPARE > self._size:
            self._size = len(data) + _SPARE
            # Without the privilege, net.core.wmem_max limits the size.
            self._set(socket.SOL_SOCKET, socket.SO_SNDBUF, self._size)
            self._set(socket.SOL_SOCKET, _SO_SNDBUFFORCE, self._size)
        self._socket.sendto(data, (0, 0))
        return [each for each in self._received(first) if first <= each[2] < first + count]

    def _received(self, first: int) -> list[Received]:
        found: list[Received] = []
        while True:
            try:
                found += each_message(self._socket.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT))
            except BlockingIOError:
                return found
            except OSError as error:
                # Reported once: answers were lost, and others may still be in the queue.
                if error.errno != errno.ENOBUFS:
                    raise
                found.append((NLMSG_OVERRUN, 0, first, b""))

    def _set(self, level: int, option: int, value: int) -> None:
        with contextlib.suppress(OSError):
            self._socket.setsockopt(level, option, value)
