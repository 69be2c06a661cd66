"""Find and remove what a killed `kproxy trace` left: its tables, and the logger of legacy tables' traces.

The kernel itself removes a table that has an owner. Where it knows none (before Linux 5.12), a lock says
whether the process lives (trace_lock.py).
"""

import socket
from collections.abc import Collection

from kproxy.addresses import Family
from kproxy.kernel import nft_tables
from kproxy.kernel.netlink import nfnetlink
from kproxy.kernel.netlink.messages import NLM_F_DUMP
from kproxy.kernel.nft import trace_logger
from kproxy.kernel.nft.trace_lock import lock
from kproxy.kernel.sysctl import SysctlError

PREFIX = "kproxy-trace-"
"""The names of the tables begin so; the rest is the number of the process."""

OWNER = 2
"""NFT_TABLE_F_OWNER: the table ends with the socket that made it."""

_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_GET_TABLE = 1
_NAME, _FLAGS = 1, 2  # NFTA_TABLE_*
_FAMILIES = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}


class StaleTraceError(Exception):
    """What a killed trace left cannot be removed."""


def remove_leftovers() -> tuple[str, ...]:
    """Remove the tables of traces whose processes are gone; return their names. Raises StaleTraceError."""
    try:
        return _removed()
    except (nft_tables.NftablesError, SysctlError, OSError) as error:
        raise StaleTraceError(str(error)) from error


def _removed() -> tuple[str, ...]:
    removed = []
    for family in Family:
        for name in _leftovers(family):
            try:
                held = lock(name)
            except OSError:
                continue
            with held:
                nft_tables.delete(family, name)
            removed.append(name)
        removed += trace_logger.restore_leftovers(family)
    return tuple(removed)


def _leftovers(family: Family) -> Collection[str]:
    """The tables of traces that have no owner; one with an owner is in use, and goes with it."""
    try:
        listed = nfnetlink.request(_SUBSYSTEM, _GET_TABLE, NLM_F_DUMP, family=_FAMILIES[family])
    except OSError as error:
        if error.errno in nft_tables.NO_NFTABLES:
            return ()
        raise nft_tables.NftablesError(f"cannot list nftables tables: {error.strerror or error}") from error
    names = [
        held[_NAME].rstrip(b"\0").decode("utf-8", "replace")
        for held in listed
        if not int.from_bytes(held.get(_FLAGS, b""), "big") & OWNER
    ]
    return [name for name in names if name.startswith(PREFIX)]
