"""Turn the run loop's reports into log lines, /metrics, /status and Kubernetes Events, in all modes alike.

The run loop calls this after each step. It never blocks the loop: it only computes in memory. A state that
lasts, such as a quarantined service, is logged when it begins, when its reason changes, and when it ends.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime

import structlog

from kproxy.addresses import Family
from kproxy.backends.core.base import Drift, SyncReport
from kproxy.plan.model import ServicePlan, Verdict
from kproxy.state.problems import Problem
from kproxy.state.slice_index import Trigger
from kproxy.telemetry import series
from kproxy.telemetry.drift_record import DriftRecord
from kproxy.telemetry.events import Notice, Reason
from kproxy.telemetry.metrics import Metrics
from kproxy.telemetry.status import Failure, FamilyStatus, QuarantinedService
from kproxy.telemetry.sync_log import SyncLog

log = structlog.stdlib.get_logger(__name__)

LOGGED_DRIFTS = 10
"""The maximum number of drifted objects that a log line names."""


class _FamilyRecord:
    def __init__(self) -> None:
        self.serving: set[str] = set()
        self.last_success: datetime | None = None
        self.last_failure: Failure | None = None
        self.failing_since: datetime | None = None
        self.comparison_failure: Failure | None = None
        self.quarantined: dict[str, QuarantinedService] = {}
        self.degraded: dict[str, str] = {}
        self.leftovers: dict[str, str] = {}
        self.drift = DriftRecord()
        self.no_local: dict[str, tuple[int, int]] = {}


class SyncObserver:
    """Records the run loop's reports. `notify` sends a notice for an Event and returns at once."""

    def __init__(self, metrics: Metrics, notify: Callable[[Notice], None] = lambda _: None) -> None:
        self._metrics = metrics
        self._notify = notify
        self._started = time.time()
        self._lock = threading.Lock()
        self._families: dict[Family, _FamilyRecord] = {}
        self._problems: dict[str, tuple[Problem, ...]] = {}

    def begin(self, families: Iterable[Family]) -> None:
        """Begin to report on families."""
        chosen = tuple(families)
        self._metrics.begin(chosen)
        for outcome in ("done", "failed"):
            self._metrics.add(series.MODE_SWITCHES, outcome, amount=0)
        with self._lock:
            for family in chosen:
                self._families.setdefault(family, _FamilyRecord())

    def synced(
        self,
        family: Family,
        report: SyncReport,
        plans: Mapping[str, ServicePlan],
        planning: float,
        applying: float,
    ) -> None:
        """Record the outcome of one family's sync and its plans; times in seconds."""
        now = datetime.now(UTC)
        name = family.value
        metrics = self._metrics
        seconds = planning + applying
        metrics.observe(series.SYNC, name, value=seconds)
        metrics.observe(series.SYNC_FULL if report.full else series.SYNC_PARTIAL, name, value=seconds)
        for kind, count in report.changes.items():
            metrics.add(series.WRITES, name, kind, amount=count)
        for table in ("nat", "filter"):
            metrics.set(series.RULES_LAST, table, name, value=report.rules.get(table, 0))
        if report.kept:
            metrics.add(series.NFTABLES_CLEANUP_FAILURES, name)
        failed = report.failed
        with self._lock:
            record = self._families.setdefault(family, _FamilyRecord())
            before = SyncLog(
                {key: service.reason for key, service in record.quarantined.items()},
                record.degraded,
                record.leftovers,
            )
            new = [key for key, reason in failed.items() if self._is_new(record, key, reason)]
            if report.error is not None:
                record.last_failure = Failure(now, report.error)
                record.failing_since = record.failing_since or now
                metrics.add(series.SYNC_FAILURES, name)
            else:
                self._succeeded(record, family, report, plans, now, new)
        before.log(family, report, len(plans), planning, applying)
        if report.error is not None or new or report.refusals:
            metrics.add(series.RESTORE_FAILURES, name)
            metrics.add(series.NFTABLES_SYNC_FAILURES, name)
            if not report.full:
                metrics.add(series.PARTIAL_RESTORE_FAILURES, name)
        for key in new if report.error is None else ():
            self._notify(Notice(Reason.QUARANTINED, key, f"{name}: {failed[key]}"))

    def applied(self, triggers: Iterable[Trigger]) -> None:
        """Record the triggers of changes that are now applied for every family."""
        now = time.time()
        for trigger in triggers:
            if trigger.address_type not in self._families:
                continue
            try:
                began = datetime.fromisoformat(trigger.text).timestamp()
            except ValueError as error:
                log.warning(
                    "trigger_time_unreadable",
                    object=f"EndpointSlice {trigger.slice}",
                    value=trigger.text[:60],
                    reason=str(error),
                )
                continue
            # Changes before the start of this process do not measure its latency.
            if began > self._started:
                value = max(0.0, now - began)
                self._metrics.observe(series.PROGRAMMING, trigger.address_type, value=value)

    def problems(self, found: Mapping[str, tuple[Problem, ...]]) -> None:
        """Record the current problems of these services; an empty tuple: none."""
        notices: list[Notice] = []
        with self._lock:
            for key, problems in found.items():
                known = self._problems.pop(key, ())
                if problems:
                    self._problems[key] = problems
                notices += [
                    Notice(
                        Reason.CONFLICT if each.conflict else Reason.REFUSED,
                        key,
                        f"{each.field} {each.value}: {each.reason}",
                    )
                    for each in problems
                    if (each.conflict or each.refused) and each not in known
                ]
        for notice in notices:
            self._notify(notice)

    def drifted(self, family: Family, drifts: Sequence[Drift]) -> None:
        """Record drift, which the next sync repairs."""
        self._metrics.add(series.DRIFT_FOUND, family.value, amount=len(drifts))
        first = "; ".join(map(str, drifts[:LOGGED_DRIFTS]))
        log.warning("drift_found", family=family.value, objects=len(drifts), first=first)
        with self._lock:
            self._families.setdefault(family, _FamilyRecord()).drift.found(drifts)

    def compared(self, family: Family, *, clean: bool) -> None:
        """Note a comparison of the kernel with the applied state; `clean`: there was no drift."""
        with self._lock:
            record = self._families.setdefault(family, _FamilyRecord())
            record.comparison_failure = None
            if clean:
                record.drift.clean()

    def not_compared(self, family: Family, reason: str) -> None:
        """Note that the kernel could not be compared with the applied state."""
        with self._lock:
            record = self._families.setdefault(family, _FamilyRecord())
            since = record.comparison_failure
            record.comparison_failure = Failure(datetime.now(UTC) if since is None else since.at, reason)

    def confirmed(self, family: Family) -> None:
        """Note that the kernel has the applied state, which counts as a sync that wrote nothing."""
        self._metrics.set(series.LAST_SYNC, family.value, value=time.time())

    def switched(self) -> None:
        """Note that the switch to another mode succeeded."""
        self._metrics.add(series.MODE_SWITCHES, "done")

    def switch_failed(self, wanted: str, kept: str, reason: str) -> None:
        """Note that the switch to mode `wanted` failed; `kept` stays in use."""
        self._metrics.add(series.MODE_SWITCHES, "failed")
        self._notify(Notice(Reason.MODE, "", f"mode {wanted}: {reason}; {kept} stays"))

    def port_refused(self, service: str, port: int, reason: str) -> None:
        """Note that a service's health-check port cannot be opened."""
        self._notify(Notice(Reason.HEALTH_PORT, service, f"port {port}: {reason}"))

    def family_status(self) -> dict[Family, FamilyStatus]:
        """The status of each family."""
        with self._lock:
            return {
                family: FamilyStatus(
                    services=len(record.serving),
                    last_success=record.last_success,
                    last_failure=record.last_failure,
                    quarantined=sorted(record.quarantined.values()),
                    degraded=dict(sorted(record.degraded.items())),
                    drift=record.drift.status(),
                    failing_since=record.failing_since,
                    comparison_failure=record.comparison_failure,
                    leftovers=dict(sorted(record.leftovers.items())),
                )
                for family, record in self._families.items()
            }

    def known_problems(self) -> list[Problem]:
        """The problems of all services."""
        with self._lock:
            return sorted(dict.fromkeys(each for problems in self._problems.values() for each in problems))

    @staticmethod
    def _is_new(record: _FamilyRecord, key: str, reason: str) -> bool:
        known = record.quarantined.get(key)
        return known is None or known.reason != reason

    def _succeeded(
        self,
        record: _FamilyRecord,
        family: Family,
        report: SyncReport,
        plans: Mapping[str, ServicePlan],
        now: datetime,
        new: Sequence[str],
    ) -> None:
        name = family.value
        metrics = self._metrics
        record.last_success = now
        record.failing_since = None
        metrics.set(series.LAST_SYNC, name, value=now.timestamp())
        known = record.quarantined
        record.quarantined = {
            key: known[key] if not self._is_new(record, key, reason) else QuarantinedService(key, reason, now)
            for key, reason in report.failed.items()
        }
        record.degraded = report.degraded
        record.leftovers = dict(report.leftovers)
        metrics.set(series.QUARANTINED, name, value=len(record.quarantined))
        metrics.set(series.DEGRADED, name, value=len(record.degraded))
        metrics.set(series.LEFTOVERS, name, value=len(record.leftovers))
        if repaired := record.drift.synced(new, record.quarantined.keys()):
            metrics.add(series.DRIFT_REPAIRED, name, amount=repaired)
        changed = not metrics.has(series.NO_LOCAL_ENDPOINTS, "internal", name)
        for key, plan in plans.items():
            (record.serving.add if plan.ports else record.serving.discard)(key)
            internal = sum(port.internal is Verdict.DROP for port in plan.ports)
            external = sum(port.external is Verdict.DROP for port in plan.ports)
            before = record.no_local.pop(key, (0, 0))
            if internal or external:
                record.no_local[key] = internal, external
            changed = changed or before != (internal, external)
        if changed:
            for index, policy in enumerate(("internal", "external")):
                total = sum(counts[index] for counts in record.no_local.values())
                metrics.set(series.NO_LOCAL_ENDPOINTS, policy, name, value=total)
