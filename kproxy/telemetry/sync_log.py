"""The log lines of one sync: one for the sync, and one for each object whose state has changed."""

from collections.abc import Mapping

import msgspec
import structlog

from kproxy.addresses import Family
from kproxy.backends.core.base import SyncReport

log = structlog.stdlib.get_logger(__name__)


class SyncLog(msgspec.Struct, frozen=True):
    """The states that earlier syncs of a family have logged, with reasons."""

    quarantined: Mapping[str, str]
    degraded: Mapping[str, str]
    leftovers: Mapping[str, str]

    def log(
        self, family: Family, report: SyncReport, services: int, planning: float, applying: float
    ) -> None:
        """Log a sync in which this many services were planned; times in seconds."""
        name = family.value
        cost = {"plan_ms": round(planning * 1000, 1), "apply_ms": round(applying * 1000, 1)}
        if report.resynced is not None:
            log.info("resync_after_refusal", family=name, reason=report.resynced)
        if report.error is not None:
            log.error("sync_failed", family=name, reason=report.error, **cost)
            return
        failed = report.failed
        for key, reason in _new(failed, self.quarantined):
            log.error("service_quarantined", family=name, service=key, reason=reason)
        for key in sorted(self.quarantined.keys() - failed.keys()):
            log.info("service_recovered", family=name, service=key)
        for key, reason in _new(report.degraded, self.degraded):
            log.warning("service_degraded", family=name, service=key, reason=reason)
        for leftover, reason in _new(report.leftovers, self.leftovers):
            kind, _, of_kind = leftover.partition(" ")
            event, field = _LEFTOVER_EVENTS.get((kind, "/" in of_kind), ("removal_refused", "object"))
            what = of_kind.rpartition("/")[2] if field == "chain" else leftover
            log.warning(event, family=name, reason=reason, **{field: what})
        if report.changes:
            extra = {"failed": len(failed)} if failed else {}
            log.info("synced", family=name, services=services, **cost, **report.changes, **extra)
        else:
            log.debug("nothing_to_write", family=name, services=services, **cost)


_LEFTOVER_EVENTS = {
    ("chain", True): ("stale_chain_delete_failed", "chain"),
    ("chain", False): ("chain_delete_failed", "chain"),
}
"""Events of leftovers by kind and by whether the name has a table: chains of iptables, and of nftables."""


def _new(now: Mapping[str, str], before: Mapping[str, str]) -> list[tuple[str, str]]:
    return sorted((key, reason) for key, reason in now.items() if before.get(key) != reason)
