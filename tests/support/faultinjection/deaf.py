"""What makes netlink sockets of a program fail, as the order in the file beside it says.

It is copied as `sitecustomize.py` to a directory that becomes PYTHONPATH, and puts its own class in the
place of `socket.socket` before the program begins; all else is the program's own. Without an order nothing is
different. The file `order` holds one line of fields with tabs between,

    LOSS CHANCE PROTOCOLS

which are a `Loss`, a probability for each datagram, and numbers of netlink protocols with commas between.
Every order that is carried out appends a line, `PROTOCOL LOSS`, to the file `done`.
"""

import enum
import errno
import os
import socket
import struct

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_ERROR = 2  # NLMSG_ERROR
_DIRECTORY = os.path.dirname(os.path.abspath(__file__))


class Loss(enum.StrEnum):
    """What to do to a request."""

    DEAF = "deaf"
    """The kernel carries it out, and what it answers is lost: the receive buffer was full (ENOBUFS)."""
    BUSY = "busy"
    """The kernel is not asked, and everything in the datagram is refused with EBUSY."""
    FULL = "full"
    """The kernel is not asked, for there is no memory to send anything (ENOBUFS)."""


def _order(protocol: int) -> str:
    try:
        with open(os.path.join(_DIRECTORY, "order"), encoding="utf-8") as file:
            loss, chance, protocols = file.read().split("\t")
    except FileNotFoundError:
        return ""
    if str(protocol) not in protocols.split(","):
        return ""
    if int.from_bytes(os.urandom(4), "big") >= float(chance) * (1 << 32):
        return ""
    with open(os.path.join(_DIRECTORY, "done"), "a", encoding="utf-8") as journal:
        journal.write(f"{protocol} {loss}\n")
    return loss


def _refusals(data: bytes) -> bytes:
    """An acknowledgement with EBUSY of each request in a datagram."""
    answers = []
    offset = 0
    while offset + _HEADER.size <= len(data):
        header = data[offset : offset + _HEADER.size]
        length, _, _, sequence, _ = _HEADER.unpack(header)
        answers.append(_HEADER.pack(36, _ERROR, 0, sequence, 0) + struct.pack("=i", -errno.EBUSY) + header)
        offset += (length + 3) & ~3
    return b"".join(answers)


class Socket(socket.socket):
    """A socket that fails if it is one of netlink and told to."""

    _answer: bytes | None = None
    _deaf = False

    def sendto(self, data, *where):  # type: ignore[no-untyped-def]
        """See socket.socket.sendto."""
        if self.family == socket.AF_NETLINK:
            match _order(self.proto):
                case Loss.BUSY if self.gettimeout() is not None:
                    # Who waits in poll(2) would not hear of an answer that is not the kernel's.
                    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
                case Loss.BUSY:
                    self._answer = _refusals(bytes(data))
                    return len(data)
                case Loss.FULL:
                    raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
                case Loss.DEAF:
                    self._deaf = True
        return super().sendto(data, *where)

    def recv(self, *arguments):  # type: ignore[no-untyped-def]
        """See socket.socket.recv."""
        answer, self._answer = self._answer, None
        if answer is not None:
            return answer
        received = super().recv(*arguments)
        if self._deaf:
            self._deaf = False
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        return received


if __name__ == "sitecustomize":
    socket.socket = Socket  # type: ignore[misc]
