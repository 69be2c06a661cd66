"""Have the kernel send the traces of legacy tables over netlink for a while, and restore what it did before.

A packet with `meta nftrace` is traced by legacy tables, too: ip_tables passes each rule that it matches to
the logger of its family (nf_log_trace in net/netfilter/nf_log.c). That logger is a parameter of the network
namespace, and is usually the kernel log. The former one is noted in the name of an empty table of nftables,
which lives as long as the parameter, so that a killed process' change is undone by the next one.
"""

import os
import socket
from typing import Self

from kproxy.addresses import Family
from kproxy.kernel import nft_tables, sysctl
from kproxy.kernel.nft.trace_lock import lock

PREFIX = "kproxy-log-"
"""The name of a note: it is followed by the number of the process, `-` and the former logger."""

_LOGGER = "nfnetlink_log"
_PARAMETERS = {
    Family.IPV4: f"net/netfilter/nf_log/{int(socket.AF_INET)}",
    Family.IPV6: f"net/netfilter/nf_log/{int(socket.AF_INET6)}",
}


class LoggerError(Exception):
    """Traces of legacy tables cannot be read here; the message says why."""


class Redirection:
    """The traces of a family's legacy tables go to nfnetlink_log until `close`."""

    def __init__(self, family: Family) -> None:
        """Begin. Raises LoggerError; then nothing was changed."""
        self._family = family
        self._note = ""
        self._lock: socket.socket | None = None
        try:
            former = sysctl.read(_PARAMETERS[family])
            if former == _LOGGER:
                notes = sorted(_notes(family))
                if not notes:
                    return  # it is so on this node
                former = _former(notes[0])
            self._begin(former)
        except (OSError, nft_tables.NftablesError, sysctl.SysctlError) as error:
            self.close()
            raise LoggerError(str(error)) from error

    def _begin(self, former: str) -> None:
        note = f"{PREFIX}{os.getpid()}-{former}"
        self._lock = lock(f"{note}-{self._family.value}")
        nft_tables.create(self._family, note)
        self._note = note
        sysctl.ensure(_PARAMETERS[self._family], _LOGGER)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Restore the former logger, unless another trace needs this one. Raises LoggerError."""
        try:
            if self._note:
                _restore(self._family, self._note)
        except (nft_tables.NftablesError, sysctl.SysctlError) as error:
            raise LoggerError(f"the former logger is not restored: {error}") from error
        finally:
            if self._lock is not None:
                self._lock.close()
            self._note, self._lock = "", None


def restore_leftovers(family: Family) -> list[str]:
    """Undo what killed processes changed; return the names of their notes.

    Raises SysctlError, NftablesError.
    """
    undone = []
    for note in _notes(family):
        try:
            held = lock(f"{note}-{family.value}")
        except OSError:
            continue
        with held:
            _restore(family, note)
        undone.append(note)
    return undone


def _restore(family: Family, note: str) -> None:
    others = _notes(family) - {note}
    if not others and sysctl.read(_PARAMETERS[family]) == _LOGGER:
        sysctl.ensure(_PARAMETERS[family], _former(note))
    nft_tables.delete(family, note)


def _notes(family: Family) -> frozenset[str]:
    names = nft_tables.tables(family)
    return frozenset(name for name in names if name.startswith(PREFIX) and name.count("-") >= 3)


def _former(note: str) -> str:
    return note.removeprefix(PREFIX).partition("-")[2]
