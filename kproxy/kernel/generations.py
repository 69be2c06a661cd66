"""Ruleset generations: read from the kernel without a subprocess, to detect foreign writes cheaply.

nft: the kernel numbers every committed transaction of a network namespace (NFT_MSG_GETGEN, about 50 us here
with the socket).  A committed table section that changes something advances it by exactly one; a section
that changes nothing, a refused one, a listing and a save leave it alone (measured with iptables 1.8.9).

legacy: IPT_SO_GET_INFO gives each table's size, entry count and chain offsets
(include/uapi/linux/netfilter_ipv4/ip_tables.h).  A request for a table creates it in the namespace, so only
tables that /proc/net/ip_tables_names lists are requested.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from pathlib import Path

from kproxy.addresses import Family
from kproxy.kernel.netlink import nfnetlink
from kproxy.kernel.netlink.messages import attribute
from kproxy.kernel.nft_tables import NO_NFTABLES
from kproxy.kernel.xtables.types import RulesetGeneration, Variant

_NFT_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_GET_CHAIN = 4
_GET_GENERATION = 16
_GENERATION_ID = 1
_CHAIN_TABLE, _CHAIN_NAME = 1, 3

_SO_GET_INFO = 64  # IPT_SO_GET_INFO and IP6T_SO_GET_INFO
_INFO = struct.Struct("=32s13I")
_LEGACY_TABLES = ("filter", "mangle", "nat")
_NAMES_FILES = {  # /proc/net is the namespace of the process' main thread, not of the calling one
    Family.IPV4: Path("/proc/thread-self/net/ip_tables_names"),
    Family.IPV6: Path("/proc/thread-self/net/ip6_tables_names"),
}
_NAMES_BYTES = 4096  # x_tables knows seven tables
_SOCKETS = {
    Family.IPV4: (socket.AF_INET, socket.IPPROTO_IP),
    Family.IPV6: (socket.AF_INET6, socket.IPPROTO_IPV6),
}


def ruleset_generation(family: Family, variant: Variant) -> RulesetGeneration | None:
    """Return the generation of the network namespace's ruleset, or None if it cannot be read.

    For nft it covers every nftables table of the namespace, of both families and of other programs.
    """
    try:
        if variant is Variant.NFT:
            count = generation()
            return RulesetGeneration(("nft", count), commits=count)
        return RulesetGeneration(("legacy", *_legacy_layout(family)))
    except OSError:
        return None


def generation() -> int:
    """Return the id of the last transaction that changed the nftables ruleset.  Raises OSError."""
    answer = nfnetlink.request(_NFT_SUBSYSTEM, _GET_GENERATION, 0)[0]
    return int.from_bytes(answer[_GENERATION_ID], "big")


def has_nftables() -> bool:
    """Whether the kernel has nftables; True also if it refuses to answer for another reason."""
    try:
        generation()
    except OSError as error:
        return error.errno not in NO_NFTABLES
    return True


def nft_chain_exists(family: Family, table: str, chain: str) -> bool:
    """Whether nftables' ip or ip6 table `table` has the chain.  Raises OSError if the request fails."""
    body = attribute(_CHAIN_TABLE, table.encode() + b"\0")
    body += attribute(_CHAIN_NAME, chain.encode() + b"\0")
    try:
        nfnetlink.request(_NFT_SUBSYSTEM, _GET_CHAIN, 0, body, _SOCKETS[family][0])
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


def legacy_tables(family: Family) -> tuple[str, ...]:
    """The x_tables tables that exist in this network namespace, sorted; empty if the kernel has none."""
    try:
        # Read every other second: three system calls, where open() makes eight.
        names = os.open(_NAMES_FILES[family], os.O_RDONLY | os.O_CLOEXEC)
        try:
            return tuple(sorted(os.read(names, _NAMES_BYTES).decode("ascii").split()))
        finally:
            os.close(names)
    except OSError:
        return ()


def _legacy_layout(family: Family) -> list[tuple[object, ...]]:
    present = legacy_tables(family)
    wanted = [table for table in _LEGACY_TABLES if table in present]
    kind, level = _SOCKETS[family]
    with socket.socket(kind, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        return [(table, *_table_info(sock, level, table)) for table in wanted]


def _table_info(sock: socket.socket, level: int, table: str) -> tuple[int, ...]:
    # The option takes the table's name in the result buffer, which socket.getsockopt cannot pass in.
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(table.encode(), _INFO.size)
    length = ctypes.c_uint32(_INFO.size)
    if libc.getsockopt(sock.fileno(), level, _SO_GET_INFO, buffer, ctypes.byref(length)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return _INFO.unpack(buffer.raw)[1:]
