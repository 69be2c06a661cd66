"""Follow real packets through every rule: `meta nftrace` in a table of kproxy's own, read over nfnetlink.

The kernel then reports each rule that a marked packet matches, in every table (nf_tables_trace.c). The
table belongs to the netlink socket that made it (NFT_TABLE_F_OWNER, Linux 5.12): the kernel removes it when
the socket closes, also when the process is killed. An older kernel refuses the flag; there the table is
removed at the end, or by a later start (trace_leftovers.py).
"""

import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Iterator, Sequence

import msgspec

from kproxy.addresses import Family
from kproxy.kernel import nft_tables
from kproxy.kernel.netlink.messages import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    attribute,
    each_message,
    error_code,
    nested,
)
from kproxy.kernel.netlink.messages import message as pack
from kproxy.kernel.netlink.socket import readable
from kproxy.kernel.nft import expressions as x
from kproxy.kernel.nft.commands import AddChain, Command, Transaction
from kproxy.kernel.nft.messages import NFGENMSG, SUBSYSTEM, encode
from kproxy.kernel.nft.trace_events import HOOKS, MESSAGE, TraceEvent, decode
from kproxy.kernel.nft.trace_leftovers import OWNER, PREFIX
from kproxy.kernel.nft.trace_lock import lock

EARLY, LATE = "early-", "late-"
"""The names of their chains begin so, and end with the hook: before all rules, and after all of them."""

_BEFORE, _AFTER = -350, 350
"""Priorities: after the joining of fragments (-400), before raw (-300); after the last translation (300)."""

_NETLINK_NETFILTER = 12
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_GROUP = 9  # NFNLGRP_NFTRACE
_SO_RCVBUFFORCE = 33
_RECEIVE_BUFFER = 4 << 20
_RECEIVE_BYTES = 1 << 18
_SECONDS = 5.0
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11  # NFNL_MSG_BATCH_*
_NEW_TABLE, _NEW_RULE = 0, 6
_TABLE, _TABLE_FLAGS = 1, 2
_RULE_CHAIN, _RULE_EXPRESSIONS = 2, 4
_NFTRACE = 12  # NFT_META_NFTRACE
_PROTOCOL_FIELD = {"TCP": 6, "UDP": 17, "SCTP": 132}
_TCP_FLAGS, _FLAGS_MASK, _SYN = 13, 0x17, 0x02
_SCTP_CHUNK, _INIT = 12, 1
_DESTINATION_PORT = 2
_ADDRESSES = {Family.IPV4: (12, 16, 4), Family.IPV6: (8, 24, 16)}
"""Offsets of the source and destination in the header, and their length."""


class TraceError(Exception):
    """Packets cannot be traced on this node; the message says why."""


class Selection(msgspec.Struct, frozen=True):
    """The packets to follow: the first of connections, from `source` ("": of any address) or of the node.

    Of UDP every packet counts. `rate`: the greatest number a second.
    """

    family: Family
    protocol: str
    source: str
    destination: str
    port: int
    from_node: bool
    rate: int = 10

    @property
    def chain(self) -> str:
        """The chain in which they are marked."""
        return EARLY + ("output" if self.from_node else "prerouting")


class Tracer:
    """The table and its events, in the calling thread's network namespace, until `close`."""

    def __init__(self, selection: Selection, *, owned: bool = True) -> None:
        """Begin to trace. Raises TraceError. Without `owned` the kernel does not remove the table."""
        self.table = f"{PREFIX}{os.getpid()}"
        self.lost = False
        self._family = selection.family
        self._lock: socket.socket | None = None
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
        )
        try:
            self._begin(selection, owned=owned)
        except BaseException:
            self.close()
            raise

    def _begin(self, selection: Selection, *, owned: bool) -> None:
        self._socket.settimeout(_SECONDS)
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        try:
            self._socket.bind((0, 0))
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP)
            code = self._commit(selection, OWNER) if owned else errno.EOPNOTSUPP
            if code in {errno.EOPNOTSUPP, errno.EINVAL}:
                self._lock = lock(self.table)
                code = self._commit(selection, 0)
            if code:
                raise OSError(code, os.strerror(code))
        except OSError as error:
            hint = " (root is needed)" if error.errno in {errno.EPERM, errno.EACCES} else ""
            raise TraceError(
                f"nftables cannot trace packets here: {error.strerror or error}{hint}"
            ) from error

    def close(self) -> None:
        """End: remove the table."""
        self._socket.close()
        if self._lock is not None:
            with contextlib.suppress(nft_tables.NftablesError):
                nft_tables.delete(self._family, self.table)
            self._lock.close()

    def events(self, deadline: float) -> Iterator[TraceEvent | None]:
        """The events as they come, None when there are none for now, until `deadline` (monotonic).

        None comes at least every fifth of a second. `lost` says that the kernel could not keep some.
        """
        while (left := deadline - time.monotonic()) > 0:
            if not readable((self._socket.fileno(),), min(left, 0.2)):
                yield None
                continue
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.lost = True
                continue
            for kind, _, _, content in each_message(data):
                if kind == SUBSYSTEM << 8 | MESSAGE:
                    yield decode(content)

    def _commit(self, selection: Selection, flags: int) -> int:
        """Make the table, its chains and the rule; return the errno."""
        family = x.FAMILY_NUMBERS[self._family]
        head = NFGENMSG.pack(family, 0, 0) + x.string(_TABLE, self.table)
        bound = NFGENMSG.pack(socket.AF_UNSPEC, 0, SUBSYSTEM)
        new, sub = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE, SUBSYSTEM << 8
        chains = encode(Transaction(self._family, self.table, _chains(selection)))
        rule = x.string(_RULE_CHAIN, selection.chain) + nested(_RULE_EXPRESSIONS, _rule(selection))
        parts = [(sub | _NEW_TABLE, new | NLM_F_EXCL, head + x.number(_TABLE_FLAGS, flags))]
        parts += [(sub | each.kind, new, each.body) for each in chains]
        parts.append((sub | _NEW_RULE, new, head + rule))
        data = pack(_BATCH_BEGIN, NLM_F_REQUEST, 1, bound)
        for number, (kind, kind_flags, body) in enumerate(parts, 2):
            data += pack(kind, kind_flags, number, body)
        last = len(parts) + 1
        data += pack(_BATCH_END, NLM_F_REQUEST, last + 1, bound)
        self._socket.sendto(data, (0, 0))
        return self._answer(last)

    def _answer(self, last: int) -> int:
        found = 0
        while True:
            for kind, _, sequence, content in each_message(self._socket.recv(_RECEIVE_BYTES)):
                if kind != NLMSG_ERROR:
                    continue
                found = found or error_code(content)
                if sequence >= last or sequence <= 1:
                    return found


def _chains(selection: Selection) -> Sequence[Command]:
    marking = selection.chain
    hook = marking.removeprefix(EARLY)
    return (
        AddChain(marking, f"type filter hook {hook} priority {_BEFORE};"),
        *(AddChain(LATE + each, f"type filter hook {each} priority {_AFTER};") for each in HOOKS),
    )


def _rule(selection: Selection) -> bytes:
    """The expressions: the tuple, the beginning of a connection, the limit, the mark."""
    at_source, at_destination, length = _ADDRESSES[selection.family]
    number = _PROTOCOL_FIELD[selection.protocol]
    parts = [x.load_meta(x.META_L4PROTO), x.compare(x.EQUAL, bytes([number]))]
    for address, at in ((selection.source, at_source), (selection.destination, at_destination)):
        if address:
            kind = socket.AF_INET6 if ":" in address else socket.AF_INET
            parts += [
                x.payload(x.NETWORK_HEADER, at, length),
                x.compare(x.EQUAL, socket.inet_pton(kind, address)),
            ]
    parts += [
        x.payload(x.TRANSPORT_HEADER, _DESTINATION_PORT, 2),
        x.compare(x.EQUAL, struct.pack("!H", selection.port)),
    ]
    match selection.protocol:
        case "TCP":
            parts += [
                x.payload(x.TRANSPORT_HEADER, _TCP_FLAGS, 1),
                x.bitwise(bytes([_FLAGS_MASK]), bytes(1)),
                x.compare(x.EQUAL, bytes([_SYN])),
            ]
        case "SCTP":
            parts += [x.payload(x.TRANSPORT_HEADER, _SCTP_CHUNK, 1), x.compare(x.EQUAL, bytes([_INIT]))]
    parts += [_limit(selection.rate), x.immediate(b"\1"), x.set_meta(_NFTRACE)]
    return b"".join(parts)


def _limit(rate: int) -> bytes:
    """At most `rate` packets a second (NFTA_LIMIT_*)."""
    data = attribute(1, struct.pack("!Q", rate)) + attribute(2, struct.pack("!Q", 1)) + x.number(3, rate)
    return nested(1, x.string(1, "limit"), nested(2, data))
