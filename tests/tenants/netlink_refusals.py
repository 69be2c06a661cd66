"""Refuses requests to the kernel that contain given bytes, as a kernel without a feature does.

Copied as `sitecustomize.py` to a directory that becomes PYTHONPATH (tests/support/faultinjection). Without
the file `refuse` nothing changes. That file holds one line of tab-separated fields:

    ERRNO FAMILY WORDS

the error, a number of nfgen_family (linux/nfnetlink.h) or 0 for any, and comma-separated texts of hexadecimal
digits, of which a message must contain one. A transaction of nftables is refused as a whole and names each
such message, as the kernel does; of other netlink protocols, one message is. A further line counts as a
further rule.
"""

import socket
import struct
from pathlib import Path

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_ERROR = 2  # NLMSG_ERROR
_BATCH_BEGIN = 16  # NFNL_MSG_BATCH_BEGIN
_NETFILTER, _GENERIC = 12, 16  # linux/netlink.h
_RULES = Path(__file__).resolve().with_name("refuse")


def _rules() -> list[tuple[int, int, list[bytes]]]:
    try:
        lines = _RULES.read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return []
    fields = [line.split("\t") for line in lines]
    return [
        (int(code), int(family), [bytes.fromhex(word) for word in words.split(",")])
        for code, family, words in fields
    ]


def _refusals(protocol: int, data: bytes) -> bytes:
    """Return an error of the kernel for each message that a rule names."""
    rules = _rules()
    if not rules or (protocol == _NETFILTER and _HEADER.unpack_from(data)[1] != _BATCH_BEGIN):
        return b""
    answers = []
    offset = 0
    while offset + _HEADER.size <= len(data):
        header = data[offset : offset + _HEADER.size]
        length, _, _, sequence, _ = _HEADER.unpack(header)
        message = data[offset : offset + length]
        own = message[_HEADER.size] if protocol == _NETFILTER and len(message) > _HEADER.size else 0
        for code, family, words in rules:
            if family in (0, own) and any(word in message for word in words):
                answers.append(_HEADER.pack(36, _ERROR, 0, sequence, 0) + struct.pack("=i", -code) + header)
        offset += (length + 3) & ~3
    return b"".join(answers)


class Socket(socket.socket):
    """A socket whose requests are refused as the file says, if its family is AF_NETLINK."""

    _answer: bytes = b""

    def sendto(self, data, *where):  # type: ignore[no-untyped-def]
        """See socket.socket.sendto."""
        if self.family == socket.AF_NETLINK and self.proto in (_NETFILTER, _GENERIC):
            self._answer = _refusals(self.proto, bytes(data))
            if self._answer:
                return len(data)
        return super().sendto(data, *where)

    def recv(self, *arguments):  # type: ignore[no-untyped-def]
        """See socket.socket.recv."""
        answer, self._answer = self._answer, b""
        return answer or super().recv(*arguments)


if __name__ == "sitecustomize":
    socket.socket = Socket  # type: ignore[misc]
