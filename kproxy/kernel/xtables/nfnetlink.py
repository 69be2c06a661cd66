"""One request and its answers over a raw nfnetlink socket.

Two things kproxy asks of nfnetlink are so small that a library or a subprocess would cost a thousand
times the question itself: the generation of the nftables ruleset, asked on every drift check, and the
accounting objects of nfacct.  A socket is opened per request, so that the request speaks to the network
namespace the calling thread is in now (a socket belongs for ever to the one it was opened in).

Layouts are those of the kernel's include/uapi/linux/netlink.h and netfilter/nfnetlink.h.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

NLM_F_REQUEST = 0x01
NLM_F_ACK = 0x04
NLM_F_DUMP = 0x300
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400

_NETLINK_NETFILTER = 12
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLA_TYPE_MASK = 0x3FFF
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_NFGENMSG = struct.Struct("!BBH")  # address family, version, resource id
_NLA = struct.Struct("=HH")
_SEQUENCE = 1
_RECEIVE_BYTES = 1 << 16
_TIMEOUT = 5.0


def attribute(kind: int, payload: bytes) -> bytes:
    """One netlink attribute, padded to four bytes."""
    return _NLA.pack(_NLA.size + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def attributes(body: bytes) -> dict[int, bytes]:
    """The attributes of a message body, by type; flags of the type (nested, byte order) are dropped."""
    found: dict[int, bytes] = {}
    offset = 0
    while offset + _NLA.size <= len(body):
        length, kind = _NLA.unpack_from(body, offset)
        if length < _NLA.size or offset + length > len(body):
            break
        found[kind & _NLA_TYPE_MASK] = body[offset + _NLA.size : offset + length]
        offset += (length + 3) & ~3
    return found


def request(
    subsystem: int, message: int, flags: int, body: bytes = b"", family: int = socket.AF_UNSPEC
) -> list[dict[int, bytes]]:
    """Send one request and return the attributes of every message that answers it.

    `flags` must make the kernel finish its answer: NLM_F_ACK (an acknowledgement), NLM_F_DUMP (a done
    message), or neither for a request that is answered by exactly one message.  Raises OSError with the
    errno the kernel replied, or TimeoutError.
    """
    payload = _NFGENMSG.pack(family, 0, 0) + body
    header = _HEADER.pack(
        _HEADER.size + len(payload), subsystem << 8 | message, NLM_F_REQUEST | flags, _SEQUENCE, 0
    )
    single = not flags & (NLM_F_ACK | NLM_F_DUMP)
    answers: list[dict[int, bytes]] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as sock:
        sock.settimeout(_TIMEOUT)
        sock.sendto(header + payload, (0, 0))
        while True:
            for kind, content in _messages(sock.recv(_RECEIVE_BYTES)):
                if kind == _NLMSG_ERROR:
                    code = -struct.unpack_from("=i", content)[0]
                    if code:
                        raise OSError(code, os.strerror(code))
                    return answers
                if kind == _NLMSG_DONE:
                    return answers
                answers.append(attributes(content[_NFGENMSG.size :]))
                if single:
                    return answers


def _messages(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(datagram):
        length, kind, _flags, sequence, _port = _HEADER.unpack_from(datagram, offset)
        if length < _HEADER.size:
            return
        if sequence == _SEQUENCE:
            yield kind, datagram[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3
