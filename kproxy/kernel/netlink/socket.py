"""A netlink socket that sends requests in batches and returns the outcome of each.

A round trip per request costs more than most requests, so requests are sent in chunks and their
acknowledgements are matched by sequence number. If any acknowledgement is lost, the outcome is unknown and is
reported as NetlinkLost: the caller has to read the kernel again.
"""

import contextlib
import errno
import math
import os
import select
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from kproxy.kernel.netlink.messages import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    each_message,
    error_code,
    message,
)

CHUNK_MESSAGES = 128
CHUNK_BYTES = 1 << 16
"""A chunk's acknowledgements must fit the receive buffer, in which each counts as a kilobyte."""

_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_GET_STRICT_CHK = 12
_SO_RCVBUFFORCE = 33
_RECEIVE_BUFFER = 4 << 20
_RECEIVE_BYTES = 1 << 18
_TIMEOUT = 10
_TIMEVAL = struct.Struct("@ll")
_DUMP_ATTEMPTS = 5
_LAST_SEQUENCE = (1 << 32) - 1


def readable(descriptors: Iterable[int], seconds: float | None = None) -> frozenset[int]:
    """Wait until one can be read or the time is over; return those that can be read.

    select(2) knows no descriptor above 1,023, and a process with many health-check node ports has more.
    """
    poller = select.poll()
    for each in descriptors:
        poller.register(each, select.POLLIN)
    wait = None if seconds is None else math.ceil(seconds * 1000)
    return frozenset(descriptor for descriptor, _ in poller.poll(wait))


class NetlinkLost(OSError):
    """Acknowledgements or answers did not arrive: the outcome is unknown."""


class GaveWay(Exception):
    """A dump was given up because something more urgent waits."""


class NetlinkSocket:
    """One socket of a netlink protocol, in the network namespace of the thread that makes it.

    Used by one thread. Raises OSError when it cannot be made. `gives_way` is asked between the parts of a
    dump; if it says True, GaveWay is raised, and the socket is of no use any more.
    """

    def __init__(
        self,
        protocol: int,
        *,
        receive_buffer: int = _RECEIVE_BUFFER,
        gives_way: Callable[[], bool] = lambda: False,
    ) -> None:
        self._gives_way = gives_way
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._sequence = 0
        # The kernel's own timeouts: Python's would ask poll(2) before each call.
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(_TIMEOUT, 0))
        # Failures are harmless: the buffer is smaller, or acknowledgements and dumps are larger.
        for level, option, value in (
            (socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer),
            (socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive_buffer),
            (_SOL_NETLINK, _NETLINK_CAP_ACK, 1),
            (_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1),
        ):
            with contextlib.suppress(OSError):
                self._socket.setsockopt(level, option, value)
        self._socket.bind((0, 0))

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def batch(self, requests: Sequence[tuple[int, int, bytes]]) -> Mapping[int, int]:
        """Send (type, flags, payload) of each request; return the errno of the refused ones by index.

        Raises NetlinkLost if the outcome of any is unknown, OSError if they cannot be sent.
        """
        failures: dict[int, int] = {}
        for start, end in _chunks(requests):
            failures |= self._chunk(requests, start, end)
        return failures

    def dump(
        self,
        kind: int,
        payload: bytes,
        *,
        repeat: bool = True,
        wanted: Callable[[bytes], object] | None = None,
    ) -> list[bytes]:
        """Return the payloads of a dump request's answers; repeat it if the objects changed meantime.

        Without `repeat`, the answers count although the kernel says that objects changed. Of many answers,
        only the `wanted` ones are kept. Raises OSError with the errno of a refusal, NetlinkLost.
        """
        for _ in range(_DUMP_ATTEMPTS):
            try:
                return self._dump(kind, payload, wanted, accept_interrupted=not repeat)
            except InterruptedError:
                continue
        raise NetlinkLost(errno.EINTR, "the kernel's objects kept changing while they were read")

    def ask(self, kind: int, flags: int, payload: bytes) -> list[bytes]:
        """Send one request that is answered and acknowledged; return the answers.

        Raises OSError with the errno of a refusal, NetlinkLost.
        """
        self._reserve(1)
        self._send(message(kind, NLM_F_REQUEST | NLM_F_ACK | flags, self._sequence, payload))
        answers: list[bytes] = []
        while True:
            for answer, _, sequence, content in self._receive():
                if sequence != self._sequence:
                    continue
                if answer == NLMSG_ERROR:
                    _raise(error_code(content))
                    return answers
                answers.append(content)

    def give_way(self) -> None:
        """Raise GaveWay if something more urgent waits."""
        if self._gives_way():
            raise GaveWay

    def _chunk(self, requests: Sequence[tuple[int, int, bytes]], start: int, end: int) -> dict[int, int]:
        first = self._reserve(end - start)
        self._send(
            b"".join(
                message(kind, flags | NLM_F_REQUEST | NLM_F_ACK, first + number, payload)
                for number, (kind, flags, payload) in enumerate(requests[start:end])
            )
        )
        failures: dict[int, int] = {}
        waiting = set(range(first, first + end - start))
        while waiting:
            for kind, _, sequence, content in self._receive():
                if kind != NLMSG_ERROR or sequence not in waiting:
                    continue
                waiting.remove(sequence)
                if code := error_code(content):
                    failures[start + sequence - first] = code
        return failures

    def _dump(
        self,
        kind: int,
        payload: bytes,
        wanted: Callable[[bytes], object] | None,
        *,
        accept_interrupted: bool,
    ) -> list[bytes]:
        self._reserve(1)
        self._send(message(kind, NLM_F_REQUEST | NLM_F_DUMP, self._sequence, payload))
        found: list[bytes] = []
        interrupted = False
        while True:
            for answer, flags, sequence, content in self._receive():
                if sequence != self._sequence:
                    continue
                interrupted |= bool(flags & NLM_F_DUMP_INTR)
                if answer in {NLMSG_ERROR, NLMSG_DONE}:
                    _raise(error_code(content))
                    if interrupted and not accept_interrupted:
                        raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
                    return found
                if wanted is None or wanted(content):
                    found.append(content)
            self.give_way()

    def _reserve(self, count: int) -> int:
        """Reserve `count` sequence numbers and return the first; they have 32 bits and wrap around."""
        if self._sequence + count > _LAST_SEQUENCE:
            self._sequence = 0
        self._sequence += count
        return self._sequence - count + 1

    def _send(self, data: bytes) -> None:
        self._socket.sendto(data, (0, 0))

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        try:
            return each_message(self._socket.recv(_RECEIVE_BYTES))
        except BlockingIOError as error:  # SO_RCVTIMEO has passed, see socket(7)
            raise NetlinkLost(errno.ETIMEDOUT, "the kernel did not answer") from error
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                raise NetlinkLost(
                    errno.ENOBUFS, "the kernel's answers were lost: receive buffer full"
                ) from error
            raise


def _chunks(requests: Sequence[tuple[int, int, bytes]]) -> Iterator[tuple[int, int]]:
    start = size = 0
    for index, (_, _, payload) in enumerate(requests):
        size += len(payload) + 16
        if index > start and (size > CHUNK_BYTES or index - start >= CHUNK_MESSAGES):
            yield start, index
            start, size = index, len(payload) + 16
    if start < len(requests):
        yield start, len(requests)


def _raise(code: int) -> None:
    if code == errno.EINTR:
        raise InterruptedError(code, os.strerror(code))
    if code:
        raise OSError(code, os.strerror(code))
