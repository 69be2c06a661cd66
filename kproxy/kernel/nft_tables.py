"""Whole nftables tables of others: which there are, and how to take one away, without the program nft.

A node may have been left by a proxy that wrote nftables directly while nothing on it can read them.

Layouts are those of the kernel's include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h.
"""

import errno
import os
import socket
import struct

from kproxy.addresses import Family
from kproxy.kernel.netlink.messages import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    attribute,
    each_message,
    error_code,
    message,
)
from kproxy.kernel.xtables import nfnetlink

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_GET_TABLE, _DELETE_TABLE = 1, 2
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NAME = 1  # NFTA_TABLE_NAME
_NFGENMSG = struct.Struct("!BBH")
_FAMILIES = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6, None: 1}  # NFPROTO_INET is 1
_RECEIVE_BYTES = 1 << 16
_TIMEOUT = 5.0
NO_NFTABLES = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT})
"""What a kernel answers that has no nftables and can load none (nfnetlink_rcv_msg)."""


class NftablesError(Exception):
    """The kernel did not list or delete a table; the message says which and why."""


def tables(family: Family | None) -> frozenset[str]:
    """The names of a family's tables, of nftables' family inet for None; none where there is no nftables.

    Raises NftablesError.
    """
    try:
        answers = nfnetlink.request(_SUBSYSTEM, _GET_TABLE, NLM_F_DUMP, family=_FAMILIES[family])
    except OSError as error:
        if error.errno in NO_NFTABLES:
            return frozenset()
        raise NftablesError(f"cannot list nftables tables: {error.strerror or error}") from error
    return frozenset(answer[_NAME].rstrip(b"\0").decode("utf-8", "replace") for answer in answers)


def delete(family: Family, name: str) -> None:
    """Delete a table with all it holds; one that does not exist is no error. Raises NftablesError."""
    body = _NFGENMSG.pack(_FAMILIES[family], 0, 0) + attribute(_NAME, name.encode() + b"\0")
    bound = _NFGENMSG.pack(socket.AF_UNSPEC, 0, _SUBSYSTEM)
    batch = message(_BATCH_BEGIN, NLM_F_REQUEST, 1, bound)
    batch += message(_SUBSYSTEM << 8 | _DELETE_TABLE, NLM_F_REQUEST | NLM_F_ACK, 2, body)
    batch += message(_BATCH_END, NLM_F_REQUEST, 3, bound)
    try:
        code = _send(batch)
    except OSError as error:
        code = error.errno or errno.EIO
    if code not in (0, errno.ENOENT):
        raise NftablesError(f"cannot delete nftables table {name} of {family}: {os.strerror(code)}")


def _send(batch: bytes) -> int:
    """The errno that ends the batch; 0 once it is committed. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as sock:
        sock.settimeout(_TIMEOUT)
        sock.sendto(batch, (0, 0))
        while True:
            for kind, _, _, content in each_message(sock.recv(_RECEIVE_BYTES)):
                if kind == NLMSG_ERROR:
                    return error_code(content)
