"""Read the traces of legacy tables over nfnetlink_log: each rule that a traced packet matches, by its number.

Layouts are those of include/uapi/linux/netfilter/nfnetlink_log.h. Traces come to group 0, with the prefix of
trace_packet in net/ipv4/netfilter/ip_tables.c: "TRACE: nat:PREROUTING:rule:1 ".
"""

import contextlib
import errno
import re
import socket
import struct
from collections.abc import Iterator
from typing import Self

import msgspec

from kproxy.addresses import Family
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
from kproxy.kernel.nft.decoding import text
from kproxy.kernel.nft.trace_events import HOOKS, Headers, headers_of
from kproxy.kernel.nft.trace_logger import LoggerError, Redirection

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 4  # NFNL_SUBSYS_ULOG
_PACKET, _CONFIGURE = 0, 1
_GROUP = 0
_HEADER, _PAYLOAD, _PREFIX = 1, 9, 10  # NFULA_*
_COMMAND, _MODE, _AT_ONCE = 1, 2, 5  # NFULA_CFG_*
_BIND = 1
_COPY_PACKET, _COPIED = 2, 128
_NFGENMSG = struct.Struct("!BBH")
_RECEIVE_BUFFER, _RECEIVE_BYTES = 4 << 20, 1 << 18
_SO_RCVBUFFORCE = 33
_SECONDS = 5.0
_TRACE = re.compile(r"TRACE: ([^:]+):(.+):(rule|return|policy):(\d+) ?")
_V6_HEADER, _V4_TRANSPORT = 40, 0x0F


class LoggedStep(msgspec.Struct, frozen=True):
    """One rule that a packet matched: `kind` is rule, return or policy, as of TraceEvent."""

    hook: str
    table: str
    chain: str
    kind: str
    number: int
    headers: Headers


class TraceLog:
    """The traces of a family's legacy tables, in the calling thread's network namespace, until `close`."""

    def __init__(self, family: Family) -> None:
        """Begin. Raises LoggerError."""
        self.lost = False
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
        )
        self._redirection: Redirection | None = None
        try:
            self._bind()
            self._redirection = Redirection(family)
        except OSError as error:
            self.close()
            taken = error.errno in {errno.EBUSY, errno.EPERM}
            why = "another program reads group 0 of nfnetlink_log" if taken else error.strerror
            raise LoggerError(str(why or error)) from error
        except LoggerError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End: the kernel does with traces what it did before."""
        if self._redirection is not None:
            self._redirection.close()
        self._socket.close()

    def steps(self) -> Iterator[LoggedStep]:
        """The steps that have come; it does not wait."""
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.lost = True
                continue
            for kind, _, _, content in each_message(data):
                if kind == _SUBSYSTEM << 8 | _PACKET and (step := decode(content)) is not None:
                    yield step

    def _bind(self) -> None:
        self._socket.settimeout(_SECONDS)
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        self._socket.bind((0, 0))
        self._configure(attribute(_COMMAND, bytes([_BIND])))
        mode = attribute(_MODE, struct.pack("!IBx", _COPIED, _COPY_PACKET))
        self._configure(mode + attribute(_AT_ONCE, struct.pack("!I", 1)))
        self._socket.settimeout(0)

    def _configure(self, body: bytes) -> None:
        kind, flags = _SUBSYSTEM << 8 | _CONFIGURE, NLM_F_REQUEST | NLM_F_ACK
        packed = _NFGENMSG.pack(socket.AF_UNSPEC, 0, _GROUP) + body
        self._socket.sendto(message(kind, flags, 1, packed), (0, 0))
        while True:
            for answer, _, _, content in each_message(self._socket.recv(_RECEIVE_BYTES)):
                if answer == NLMSG_ERROR:
                    if code := error_code(content):
                        raise OSError(code, errno.errorcode.get(code, str(code)))
                    return


def decode(content: bytes) -> LoggedStep | None:
    """Decode the content of a message; None if it is no trace."""
    held = attributes(content[_NFGENMSG.size :])
    found = _TRACE.match(text(held.get(_PREFIX, b"")))
    payload = held.get(_PAYLOAD, b"")
    if found is None or _HEADER not in held or not payload:
        return None
    hook = held[_HEADER][2]
    length = (payload[0] & _V4_TRANSPORT) * 4 if payload[0] >> 4 == 4 else _V6_HEADER
    headers = headers_of(payload, payload[length:])
    if headers is None or hook >= len(HOOKS):
        return None
    return LoggedStep(HOOKS[hook], found[1], found[2], found[3], int(found[4]), headers)
