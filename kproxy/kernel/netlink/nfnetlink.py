"""One request and its answers over a raw nfnetlink socket.

Two requests of kproxy are so small that a library or a subprocess would cost a thousand times as much: the
generation of the nftables ruleset, read by every drift check, and the accounting objects of nfacct.  A socket
is opened per request, so that it is in the current network namespace of the calling thread (a socket stays in
the namespace in which it was opened).

Layouts are those of the kernel's include/uapi/linux/netlink.h and netfilter/nfnetlink.h.
"""

from __future__ import annotations

import os
import socket
import struct

from kproxy.kernel.netlink.messages import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    attributes,
    each_message,
    error_code,
)
from kproxy.kernel.netlink.messages import message as pack

_NETLINK_NETFILTER = 12
_NFGENMSG = struct.Struct("!BBH")  # address family, version, resource id
_SEQUENCE = 1
_RECEIVE_BYTES = 1 << 16
_TIMEOUT = 5.0


def request(
    subsystem: int, message: int, flags: int, body: bytes = b"", family: int = socket.AF_UNSPEC
) -> list[dict[int, bytes]]:
    """Send one request and return the attributes of every message that answers it.

    `flags` must make the kernel finish its answer: NLM_F_ACK (an acknowledgement), NLM_F_DUMP (a done
    message), or neither for a request that is answered by exactly one message.  Raises OSError with the
    errno the kernel replied, or TimeoutError.
    """
    payload = _NFGENMSG.pack(family, 0, 0) + body
    whole = pack(subsystem << 8 | message, NLM_F_REQUEST | flags, _SEQUENCE, payload)
    single = not flags & (NLM_F_ACK | NLM_F_DUMP)
    answers: list[dict[int, bytes]] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as sock:
        sock.settimeout(_TIMEOUT)
        sock.sendto(whole, (0, 0))
        while True:
            for kind, _, sequence, content in each_message(sock.recv(_RECEIVE_BYTES)):
                if sequence != _SEQUENCE:
                    continue
                if kind == NLMSG_ERROR:
                    code = error_code(content)
                    if code:
                        raise OSError(code, os.strerror(code))
                    return answers
                if kind == NLMSG_DONE:
                    return answers
                answers.append(attributes(content[_NFGENMSG.size :]))
                if single:
                    return answers
