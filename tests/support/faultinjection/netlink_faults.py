"""Injects faults into the netlink sockets of a Python program, as the file `fault` says.

Copied as `sitecustomize.py` to a directory that becomes PYTHONPATH; it replaces `socket.socket` before the
program starts. Without the file `fault` nothing changes. That file holds one line of tab-separated fields:

    FAULT CHANCE PROTOCOLS

a `NetlinkFault`, the probability for each datagram, and comma-separated numbers of netlink protocols. Each
injected fault appends the line `PROTOCOL FAULT` to the file `injected`.
"""

import enum
import errno
import os
import socket
import struct

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_ERROR = 2  # NLMSG_ERROR
_DIRECTORY = os.path.dirname(os.path.abspath(__file__))


class NetlinkFault(enum.StrEnum):
    """What happens to a request."""

    LOSE_REPLY = "lose-reply"
    """The kernel executes it and its reply is lost: the receive buffer was full (ENOBUFS)."""
    BUSY = "busy"
    """It is not sent; each message of the datagram is refused with EBUSY."""
    SEND_FAILS = "send-fails"
    """It is not sent: there is no memory (ENOBUFS)."""


def _pick_fault(protocol: int) -> str:
    try:
        with open(os.path.join(_DIRECTORY, "fault"), encoding="utf-8") as file:
            fault, chance, protocols = file.read().split("\t")
    except FileNotFoundError:
        return ""
    if str(protocol) not in protocols.split(","):
        return ""
    if int.from_bytes(os.urandom(4), "big") >= float(chance) * (1 << 32):
        return ""
    with open(os.path.join(_DIRECTORY, "injected"), "a", encoding="utf-8") as journal:
        journal.write(f"{protocol} {fault}\n")
    return fault


def _refusals(data: bytes) -> bytes:
    """Return an EBUSY acknowledgement for each request of a datagram."""
    answers = []
    offset = 0
    while offset + _HEADER.size <= len(data):
        header = data[offset : offset + _HEADER.size]
        length, _, _, sequence, _ = _HEADER.unpack(header)
        answers.append(_HEADER.pack(36, _ERROR, 0, sequence, 0) + struct.pack("=i", -errno.EBUSY) + header)
        offset += (length + 3) & ~3
    return b"".join(answers)


class Socket(socket.socket):
    """A socket that injects faults if its family is AF_NETLINK."""

    _answer: bytes | None = None
    _lose_reply = False

    def sendto(self, data, *where):  # type: ignore[no-untyped-def]
        """See socket.socket.sendto."""
        if self.family == socket.AF_NETLINK:
            match _pick_fault(self.proto):
                case NetlinkFault.BUSY if self.gettimeout() is not None:
                    # A caller that waits in poll(2) would not see a reply that the kernel did not send.
                    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
                case NetlinkFault.BUSY:
                    self._answer = _refusals(bytes(data))
                    return len(data)
                case NetlinkFault.SEND_FAILS:
                    raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
                case NetlinkFault.LOSE_REPLY:
                    self._lose_reply = True
        return super().sendto(data, *where)

    def recv(self, *arguments):  # type: ignore[no-untyped-def]
        """See socket.socket.recv."""
        answer, self._answer = self._answer, None
        if answer is not None:
            return answer
        received = super().recv(*arguments)
        if self._lose_reply:
            self._lose_reply = False
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        return received


if __name__ == "sitecustomize":
    socket.socket = Socket  # type: ignore[misc]
