"""Foreign nftables tables, without the program nft: list them and their base chains, wake or delete one.

A former proxy may have left nftables on a node that has no program to read them.

Layouts are those of the kernel's include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h.
"""

import errno
import os
import socket
import struct
from collections.abc import Collection, Iterable, Mapping

import msgspec

from kproxy.addresses import Family
from kproxy.kernel.netlink import nfnetlink
from kproxy.kernel.netlink.messages import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    attribute,
    attributes,
    each_message,
    error_code,
    message,
)
from kproxy.kernel.nft.types import NftError, NftFailure

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_NEW_TABLE, _GET_TABLE, _DELETE_TABLE = 0, 1, 2
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_GET_CHAIN = 4
_NAME, _FLAGS = 1, 2  # NFTA_TABLE_*
_DORMANT = 1  # NFT_TABLE_F_DORMANT
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
"""Errors of a kernel that has no nftables and cannot load it (nfnetlink_rcv_msg)."""


class NftablesError(Exception):
    """Listing or deleting a table failed; the message names the table and the reason."""


class WakeError(Exception):
    """A dormant table cannot be found or switched on; the message names the reason."""


def tables(family: Family | None) -> frozenset[str]:
    """Return the names of a family's tables (None: of family inet); empty if there is no nftables.

    Raises NftablesError.
    """
    return frozenset(map(_name, _listed(family)))


def _listed(family: Family | None) -> list[dict[int, bytes]]:
    try:
        return list(nfnetlink.request(_SUBSYSTEM, _GET_TABLE, NLM_F_DUMP, family=_FAMILIES[family]))
    except OSError as error:
        if error.errno in NO_NFTABLES:
            return []
        raise NftablesError(f"cannot list nftables tables: {error.strerror or error}") from error


def _name(table: Mapping[int, bytes]) -> str:
    return table[_NAME].rstrip(b"\0").decode("utf-8", "replace")


def wake(family: Family, names: Collection[str]) -> tuple[str, ...]:
    """Switch on those tables of these names that are dormant, and return their names.

    No packet passes the chains of a dormant table, and iptables-save prints it like any other. Their other
    flags stay. Raises WakeError.
    """
    woken = []
    try:
        listed = _listed(family)
    except NftablesError as error:
        raise WakeError(str(error)) from error
    for table in listed:
        name, flags = _name(table), _NUMBER.unpack(table.get(_FLAGS, bytes(_NUMBER.size)))[0]
        if name in names and flags & _DORMANT:
            kept = attribute(_FLAGS, _NUMBER.pack(flags & ~_DORMANT))
            if code := _change(family, _NEW_TABLE, name, kept):
                raise WakeError(f"nftables table {name} of {family} stays dormant: {os.strerror(code)}")
            woken.append(name)
    return tuple(woken)


class BaseChain(msgspec.Struct, frozen=True):
    """A chain with a hook; `drops`: its policy drops packets on which no rule decides.

    `hook` is one of NF_INET_* (include/uapi/linux/netfilter.h).
    """

    table: str
    name: str
    hook: int
    priority: int
    drops: bool


def base_chains(family: Family | None) -> tuple[BaseChain, ...]:
    """Return the base chains of a family (None: of family inet); empty if there is no nftables.

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


def create(family: Family, name: str) -> None:
    """Create a table without chains; an existing one is no error. Raises NftablesError."""
    if code := _change(family, _NEW_TABLE, name, flags=NLM_F_CREATE):
        raise NftablesError(f"cannot create nftables table {name} of {family}: {os.strerror(code)}")


def delete(family: Family, name: str) -> None:
    """Delete a table with its contents; a missing one is no error. Raises NftablesError."""
    code = _change(family, _DELETE_TABLE, name)
    if code not in (0, errno.ENOENT):
        raise NftablesError(f"cannot delete nftables table {name} of {family}: {os.strerror(code)}")


def standing(name: str, families: Iterable[Family] = tuple(Family)) -> tuple[Family, ...]:
    """Those of the families that have a table of that name. Raises NftError."""
    try:
        return tuple(family for family in families if name in tables(family))
    except NftablesError as error:
        raise NftError(NftFailure.INTERRUPTED, str(error)) from error


def remove(name: str, families: Iterable[Family] = tuple(Family)) -> dict[Family, str]:
    """Delete the tables of that name; by family that had one, "" or the reason why it may still be there."""
    results: dict[Family, str] = {}
    for family in families:
        try:
            if name in tables(family):
                delete(family, name)
                results[family] = ""
        except NftablesError as error:
            results[family] = str(error)
    return results


def _change(family: Family, kind: int, name: str, rest: bytes = b"", flags: int = 0) -> int:
    """Send one message about a table as a transaction; return its errno, 0 if it was committed."""
    body = _NFGENMSG.pack(_FAMILIES[family], 0, 0) + attribute(_NAME, name.encode() + b"\0") + rest
    bound = _NFGENMSG.pack(socket.AF_UNSPEC, 0, _SUBSYSTEM)
    batch = message(_BATCH_BEGIN, NLM_F_REQUEST, 1, bound)
    batch += message(_SUBSYSTEM << 8 | kind, NLM_F_REQUEST | NLM_F_ACK | flags, 2, body)
    batch += message(_BATCH_END, NLM_F_REQUEST, 3, bound)
    try:
        return _send(batch)
    except OSError as error:
        return error.errno or errno.EIO


def _send(batch: bytes) -> int:
    """Send a batch; return its errno, 0 if it was committed. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as sock:
        sock.settimeout(_TIMEOUT)
        sock.sendto(batch, (0, 0))
        while True:
            for kind, _, _, content in each_message(sock.recv(_RECEIVE_BYTES)):
                if kind == NLMSG_ERROR:
                    return error_code(content)
