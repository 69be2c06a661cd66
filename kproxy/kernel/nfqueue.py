"""Packets that rules hand to a program, and its verdicts on them (NFQUEUE), over nfnetlink.

A queue belongs to one socket. When the socket closes, the kernel drops the packets that wait, and rules drop
what they would have queued, unless they say `bypass`. More than `limit` waiting packets are dropped
(NFQA_CFG_F_FAIL_OPEN, which is not set here, would accept them).

REPEAT sends a packet through the base chain that queued it, from its first rule, with the rules as they are
then. So a packet is judged by the rules alone, however long it waited. If the rules have not changed it comes
back as another packet, so a caller repeats a packet only after a change that lets it pass the queueing rule.

Layouts are those of include/uapi/linux/netfilter/nfnetlink_queue.h.
"""

import contextlib
import enum
import errno
import os
import select
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from kproxy.kernel.netlink.messages import (
    NLM_F_ACK,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    attribute,
    attributes,
    each_message,
    error_code,
    message,
)

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 3  # NFNL_SUBSYS_QUEUE
_PACKET, _VERDICT, _CONFIG = 0, 1, 2  # NFQNL_MSG_*
_NFGENMSG = struct.Struct("!BBH")
_HEADER = struct.Struct("!IHB")
"""struct nfqnl_msg_packet_hdr: number, protocol of the frame, hook"""
_PACKET_HEADER, _VERDICT_HEADER, _PAYLOAD = 1, 2, 10  # NFQA_*
_COMMAND, _PARAMETERS, _LIMIT, _MASK, _FLAGS = 1, 2, 3, 4, 5  # NFQA_CFG_*
_BIND = 1  # NFQNL_CFG_CMD_BIND
_COPY_PACKET = 2
_WHOLE = 1 << 2
"""NFQA_CFG_F_GSO: packets of segmentation offload stay whole; otherwise each segment costs a message."""
_COPIED = 128
"""Bytes of each packet: an IPv6 header, some extension headers, and ports."""
_RECEIVE_BUFFER = 4 << 20
_RECEIVE_BYTES = 1 << 16
_SO_RCVBUFFORCE = 33
_SOL_NETLINK, _NETLINK_NO_ENOBUFS = 270, 5
_SECONDS = 5.0
_LISTENERS = Path("/proc/thread-self/net/netfilter/nfnetlink_queue")
_AT_ONCE = 512
"""Packets read, and verdicts sent, at once."""


class Verdict(enum.IntEnum):
    """What becomes of a packet (include/uapi/linux/netfilter.h)."""

    DROP = 0
    ACCEPT = 1
    REPEAT = 4


class NfqueueError(Exception):
    """The queue cannot be used here; the message says why."""


class Queued(msgspec.Struct, frozen=True, gc=False):
    """A packet that waits for its verdict.

    `source` and `destination` are packed addresses. `flow` is equal for packets of one connection and
    direction: protocol and ports, as far as the first bytes of the packet show them.
    """

    number: int
    source: bytes
    destination: bytes
    protocol: int
    flow: bytes


class Nfqueue:
    """The listener of one queue, in the network namespace of the thread that makes it.

    One thread reads and decides; any thread may call `wake`.
    """

    def __init__(self, queue: int, limit: int) -> None:
        """Bind the queue. Raises NfqueueError."""
        self._queue = queue
        self._woken = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._socket: socket.socket | None = None
        self._poll = select.poll()
        self._early: list[Queued] = []
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
            )
            self._begin(self._socket, limit)
        except OSError as error:
            self.close()
            raise NfqueueError(_reason(error, queue)) from error
        self._socket.settimeout(0)
        self._poll.register(self._socket, select.POLLIN)
        self._poll.register(self._woken, select.POLLIN)

    def close(self) -> None:
        """Give up the queue: the kernel drops the packets that wait."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._woken >= 0:
            os.close(self._woken)
            self._woken = -1

    def wake(self) -> None:
        """End a `wait`."""
        with contextlib.suppress(OSError):
            os.eventfd_write(self._woken, 1)

    def wait(self, seconds: float | None) -> Sequence[Queued]:
        """Wait for packets, for a `wake`, or for some seconds; may return nothing. Raises OSError."""
        if self._early:
            found, self._early = self._early, []
            return found
        ready = {number for number, _ in self._poll.poll(None if seconds is None else seconds * 1000)}
        if self._woken in ready:
            os.eventfd_read(self._woken)
        found = []
        if self._socket is None or self._socket.fileno() not in ready:
            return found
        while len(found) < _AT_ONCE:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                break
            found += _decoded(data)
        return found

    def decide(self, numbers: Iterable[int], verdict: Verdict) -> None:
        """Give packets their verdict; one that the kernel dropped already is no error. Raises OSError."""
        if self._socket is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        head = _NFGENMSG.pack(socket.AF_UNSPEC, 0, self._queue)
        messages = [
            message(
                _SUBSYSTEM << 8 | _VERDICT,
                NLM_F_REQUEST,
                0,
                head + attribute(_VERDICT_HEADER, struct.pack("!II", verdict, number)),
            )
            for number in numbers
        ]
        for start in range(0, len(messages), _AT_ONCE):
            self._socket.sendto(b"".join(messages[start : start + _AT_ONCE]), (0, 0))

    def _begin(self, sock: socket.socket, limit: int) -> None:
        sock.settimeout(_SECONDS)
        for option in (socket.SO_RCVBUF, _SO_RCVBUFFORCE):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, option, _RECEIVE_BUFFER)
        # The kernel drops a packet that does not fit the socket; there is nothing to read again.
        with contextlib.suppress(OSError):
            sock.setsockopt(_SOL_NETLINK, _NETLINK_NO_ENOBUFS, 1)
        sock.bind((0, 0))
        number = struct.Struct("!I")
        settings = (
            attribute(_COMMAND, struct.pack("!BxH", _BIND, 0)),
            attribute(_PARAMETERS, struct.pack("!IB", _COPIED, _COPY_PACKET)),
            attribute(_LIMIT, number.pack(limit)),
            attribute(_MASK, number.pack(_WHOLE)),
            attribute(_FLAGS, number.pack(_WHOLE)),
        )
        body = _NFGENMSG.pack(socket.AF_UNSPEC, 0, self._queue) + b"".join(settings)
        sock.sendto(message(_SUBSYSTEM << 8 | _CONFIG, NLM_F_REQUEST | NLM_F_ACK, 1, body), (0, 0))
        while True:
            data = sock.recv(_RECEIVE_BYTES)
            self._early += _decoded(data)
            for kind, _, _, content in each_message(data):
                if kind == NLMSG_ERROR:
                    if code := error_code(content):
                        raise OSError(code, os.strerror(code))
                    return


def _decoded(data: bytes) -> Iterator[Queued]:
    for kind, _, _, content in each_message(data):
        if kind == _SUBSYSTEM << 8 | _PACKET:
            held = attributes(content[_NFGENMSG.size :])
            number = _HEADER.unpack_from(held[_PACKET_HEADER])[0]
            yield queued(number, held.get(_PAYLOAD, b""))


def queued(number: int, payload: bytes) -> Queued:
    """The packet with this number and these first bytes; addresses are empty if it is no IP packet."""
    version = payload[0] >> 4 if payload else 0
    if version == 4 and len(payload) >= 20:
        at = (payload[0] & 15) * 4
        return Queued(number, payload[12:16], payload[16:20], payload[9], payload[at : at + 4])
    if version == 6 and len(payload) >= 40:
        return Queued(number, payload[8:24], payload[24:40], payload[6], payload[40:44])
    return Queued(number, b"", b"", 0, b"")


def _reason(error: OSError, queue: int) -> str:
    listener = _listener(queue)
    if listener is not None and error.errno in {errno.EPERM, errno.EBUSY}:
        return f"another program reads queue {queue} (netlink port {listener})"
    if error.errno in {errno.EPERM, errno.EACCES}:
        return f"queue {queue} needs CAP_NET_ADMIN"
    if error.errno in {errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT}:
        return "the kernel has no NFQUEUE (module nfnetlink_queue)"
    return f"queue {queue}: {error.strerror or error}"


def _listener(queue: int) -> str | None:
    """The netlink port of the listener of a queue, usually the process; None if there is none to be seen."""
    try:
        lines = [line.split() for line in _LISTENERS.read_text(encoding="ascii").splitlines()]
    except OSError:
        return None
    return next((words[1] for words in lines if len(words) > 1 and words[0] == str(queue)), None)
