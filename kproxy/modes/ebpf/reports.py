"""One report of a sync of two halves."""

from collections import Counter

import msgspec

from kproxy.backends.core.base import SyncReport


def joined(first: SyncReport, second: SyncReport) -> SyncReport:
    """The report of two syncs of the same half, one after the other: the state is that of the second."""
    return msgspec.structs.replace(
        second,
        changes=dict(Counter(first.changes) + Counter(second.changes)),
        drifts=first.drifts + second.drifts,
    )


def merged(table: SyncReport, sockets: SyncReport | None) -> SyncReport:
    """The report of both halves. Only the nftables `table` decides whether a service is served.

    A service that both report has the status that the table gives it.
    """
    if sockets is None:
        return table
    found = msgspec.structs.replace(
        table,
        changes=dict(Counter(table.changes) + Counter(sockets.changes)),
        drifts=table.drifts + sockets.drifts,
        resynced=table.resynced or sockets.resynced,
    )
    if table.error is not None:
        return found
    waits = [each for each in (table.retry_in, sockets.retry_in) if each is not None]
    return msgspec.structs.replace(
        found,
        services={**sockets.services, **table.services},
        leftovers={**sockets.leftovers, **table.leftovers},
        retry_in=min(waits, default=None),
        unfinished=table.unfinished | sockets.unfinished,
    )
