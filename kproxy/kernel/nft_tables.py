"""nftables tables of others without the program nft: which there are, where they act, how to take one away.

A node may have been left by a proxy that wrote nftables directly while nothing on it can read them.

Layouts are those of the kernel's include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h.
"""

import errno
import os
import socket
import struct
from collections.abc import Mapping

import msgspec

from kproxy.addresses import Family
from kproxy.kernel.netlink import nfnetlink
from kproxy.kernel.netlink.messages import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    attribute,
    attributes,
    each_message,
    error_code,
    message,
)

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_GET_TABLE, _DELETE_TABLE = 1, 2
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_GET_CHAIN = 4
_NAME = 1  # NFTA_TABLE_NAME
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY = 1, 3, 4, 5  # NFTA_CHAIN_*
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2  # NFTA_HOOK_*
_NUMBER = struct.Struct("!I")
_SIGNED = struct.Struct("!i")
_DROP = 0  # NF_DROP
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


class BaseChain(msgspec.Struct, frozen=True):
    """A chain that the kernel itself leads packets to; `drops`: by policy, those that no rule decides on.

    `hook` is one of NF_INET_* (include/uapi/linux/netfilter.h).
    """

    table: str
    name: str
    hook: int
    priority: int
    drops: bool


def base_chains(family: Family | None) -> tuple[BaseChain, ...]:
    """The base chains of a family, of nftables' family inet for None; none where there is no nftables.

    Raises NftablesError.
    """
    try:
        answers = nfnetlink.request(_SUBSYSTEM, _GET_CHAIN, NLM_F_DUMP, family=_FAMILIES[family])
    except OSError as error:
        if error.errno in NO_NFTABLES:
            return ()
        raise NftablesError(f"cannot list nftables chains: {error.strerror or error}") from error
    return tuple(_base_chain(answer) for answer in answers if _CHAIN_HOOK in answer)


def _base_chain(answer: Mapping[int, bytes]) -> BaseChain:
    hook = attributes(answer[_CHAIN_HOOK])

    def text(kind: int) -> str:
        return answer[kind].rstrip(b"\0").decode("utf-8", "replace")

    return BaseChain(
        text(_CHAIN_TABLE),
        text(_CHAIN_NAME),
        _NUMBER.unpack(hook[_HOOK_NUMBER])[0],
        _SIGNED.unpack(hook[_HOOK_PRIORITY])[0],
        _CHAIN_POLICY in answer and _NUMBER.unpack(answer[_CHAIN_POLICY])[0] == _DROP,
    )


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
