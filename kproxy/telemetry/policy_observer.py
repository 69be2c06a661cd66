"""Turn the syncs of NetworkPolicies into log lines, /metrics, /status and Kubernetes Events.

As in observer.py, a state that lasts is logged when it begins, when its reason changes, and when it ends.
"""

import json
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime

import msgspec
import structlog

from kproxy.addresses import Family
from kproxy.backends.core.base import Drift, SyncReport
from kproxy.plan.policy.model import Direction, Problems
from kproxy.telemetry import series
from kproxy.telemetry.drift_record import DriftRecord
from kproxy.telemetry.events import Notice, Reason
from kproxy.telemetry.metrics import Metrics
from kproxy.telemetry.observer import LOGGED_DRIFTS
from kproxy.telemetry.status import (
    Failure,
    PolicyFamilyStatus,
    PolicyStatus,
    QuarantinedPolicy,
    RejectedPolicy,
)
from kproxy.text import Joined

log = structlog.stdlib.get_logger(__name__)

LOGGED_REASONS = 10
"""The maximum number of defects of one policy that are logged."""


class Census(msgspec.Struct, frozen=True):
    """What is enforced: the policies of the cluster, and the isolated pods of this node.

    `isolated` counts by direction, `pods` those that are isolated in either.
    """

    policies: int = 0
    pods: int = 0
    isolated: Mapping[Direction, int] = {}


class SyncCost(msgspec.Struct, frozen=True):
    """Seconds of one sync. `waited`: since the arrival of the oldest of its changes; None if it had none."""

    planning: float
    applying: float
    waited: float | None = None


class _FamilyRecord:
    def __init__(self) -> None:
        self.groups = 0
        self.last_success: datetime | None = None
        self.last_failure: Failure | None = None
        self.failing_since: datetime | None = None
        self.comparison_failure: Failure | None = None
        self.quarantined: dict[str, QuarantinedPolicy] = {}
        self.leftovers: dict[str, str] = {}
        self.drift = DriftRecord()


class PolicyObserver:
    """Records the reports about policies. `notify` sends a notice for an Event and returns at once."""

    def __init__(self, metrics: Metrics, notify: Callable[[Notice], None] = lambda _: None) -> None:
        self._metrics = metrics
        self._notify = notify
        self._lock = threading.Lock()
        self._families: dict[Family, _FamilyRecord] = {}
        self._problems: Problems = {}
        self._census = Census()

    def begin(self, families: Collection[Family]) -> None:
        """Begin to report on these families."""
        with self._lock:
            self._families = {family: _FamilyRecord() for family in families}
            self._problems = {}
            self._census = Census()

    def synced(self, family: Family, report: SyncReport, cost: SyncCost, groups: int) -> None:
        """Record the outcome of one family's sync; `groups` counts those that are desired."""
        name, now, metrics = family.value, datetime.now(UTC), self._metrics
        metrics.observe(series.POLICY_SYNC, name, value=cost.planning + cost.applying)
        for kind, count in report.changes.items():
            metrics.add(series.POLICY_WRITES, name, kind, amount=count)
        with self._lock:
            record = self._families.setdefault(family, _FamilyRecord())
            known = dict(record.quarantined)
            if report.error is not None:
                record.last_failure = Failure(now, report.error)
                record.failing_since = record.failing_since or now
                metrics.add(series.POLICY_SYNC_FAILURES, name)
            else:
                self._succeeded(record, family, report, now, groups)
                if cost.waited is not None:
                    metrics.observe(series.POLICY_PROGRAMMING, name, value=cost.waited)
        _log(family, report, cost, known)
        if report.error is None:
            for key, reason in report.failed.items():
                if key not in known or known[key].reason != reason:
                    self._notify(Notice(Reason.POLICY_QUARANTINED, key, f"{name}: {reason}"))

    def enforces(self, census: Census) -> None:
        """Record what is enforced now."""
        with self._lock:
            self._census = census
        self._metrics.set(series.POLICIES, value=census.policies)
        for direction in Direction:
            count = census.isolated.get(direction, 0)
            self._metrics.set(series.ISOLATED_PODS, direction.value, value=count)

    def problems(self, found: Problems) -> None:
        """Record what is wrong with each policy that cannot be obeyed."""
        with self._lock:
            known, self._problems = self._problems, {key: tuple(found[key]) for key in found}
        self._metrics.set(series.POLICIES_REJECTED, value=len(found))
        for key, reasons in sorted(found.items()):
            new = [reason for reason in reasons if reason not in known.get(key, ())]
            for text in new[:LOGGED_REASONS]:
                field, value, reason = split_defect(text)
                log.error(
                    "policy_rejected",
                    object=f"NetworkPolicy {key}",
                    field=field,
                    value=value,
                    reason=reason,
                    effect="its pods are closed",
                )
            if new:
                self._notify(Notice(Reason.POLICY_REJECTED, key, "; ".join(reasons)))
        for key in sorted(known.keys() - found.keys()):
            log.info("policy_valid_again", policy=key)

    def drifted(self, family: Family, drifts: Sequence[Drift]) -> None:
        """Record drift, which the next sync repairs."""
        self._metrics.add(series.POLICY_DRIFT_FOUND, family.value, amount=len(drifts))
        first = "; ".join(map(str, drifts[:LOGGED_DRIFTS]))
        log.warning("policy_drift_found", family=family.value, objects=len(drifts), first=first)
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
        """Note that the kernel has the applied state."""
        self._metrics.set(series.POLICY_LAST_SYNC, family.value, value=time.time())

    def held(self, outcome: str, packets: int) -> None:
        """Count packets of unknown pods: `released`, `expired` or `refused`. For any thread."""
        self._metrics.add(series.POLICY_HELD_PACKETS, outcome, amount=packets)

    def ended(self, family: Family, connections: int) -> None:
        """Count established connections that were ended. For any thread."""
        self._metrics.add(series.POLICY_CONNECTIONS_ENDED, family.value, amount=connections)

    def status(
        self, unknown_pods: str, waits_for: str | None = None, gaps: Collection[str] = ()
    ) -> PolicyStatus:
        """The status while policies are enforced; see PolicyStatus for the arguments."""
        with self._lock:
            census = self._census
            return PolicyStatus(
                enabled=True,
                policies=census.policies,
                isolated_pods=census.pods,
                isolated={each.value: census.isolated.get(each, 0) for each in Direction},
                rejected=[
                    RejectedPolicy(key, "; ".join(reasons)) for key, reasons in sorted(self._problems.items())
                ],
                quarantined=sorted(
                    each for record in self._families.values() for each in record.quarantined.values()
                ),
                families={
                    family: PolicyFamilyStatus(
                        groups=record.groups,
                        last_success=record.last_success,
                        last_failure=record.last_failure,
                        drift=record.drift.status(),
                        failing_since=record.failing_since,
                        comparison_failure=record.comparison_failure,
                        leftovers=dict(sorted(record.leftovers.items())),
                    )
                    for family, record in self._families.items()
                },
                unknown_pods=unknown_pods,
                waits_for=waits_for,
                gaps=list(gaps),
            )

    def _succeeded(
        self, record: _FamilyRecord, family: Family, report: SyncReport, now: datetime, groups: int
    ) -> None:
        name, metrics, known, failed = family.value, self._metrics, record.quarantined, report.failed
        record.last_success, record.failing_since, record.groups = now, None, groups
        record.leftovers = dict(report.leftovers)
        new = [key for key, reason in failed.items() if key not in known or known[key].reason != reason]
        record.quarantined = {
            key: QuarantinedPolicy(key, family, reason, now) if key in new else known[key]
            for key, reason in failed.items()
        }
        metrics.set(series.POLICY_LAST_SYNC, name, value=now.timestamp())
        metrics.set(series.POLICY_GROUPS, name, value=groups)
        metrics.set(series.POLICIES_QUARANTINED, name, value=len(failed))
        if repaired := record.drift.synced(new, failed):
            metrics.add(series.POLICY_DRIFT_REPAIRED, name, amount=repaired)


def split_defect(text: str) -> tuple[str, str, str]:
    """Split `FIELD=VALUE: REASON`; the value is JSON, which may contain both separators."""
    field, equals, rest = text.partition("=")
    if not equals:
        return "", "", text
    try:
        end = json.JSONDecoder().raw_decode(rest)[1]
    except ValueError:  # it was cut
        end = max(0, rest.find("...: ")) + 3 if "...: " in rest else rest.find(": ")
    if end < 0 or not rest.startswith(": ", end):
        return "", "", text
    return field, rest[:end], rest[end + 2 :]


def _log(
    family: Family, report: SyncReport, cost: SyncCost, quarantined: Mapping[str, QuarantinedPolicy]
) -> None:
    """Log one sync: a line if it wrote anything, and one for each policy whose state has changed."""
    name = family.value
    spent = {"plan_ms": round(cost.planning * 1000, 1), "apply_ms": round(cost.applying * 1000, 1)}
    if cost.waited is not None:
        spent["waited_ms"] = round(cost.waited * 1000, 1)
    if report.error is not None:
        log.error("policy_sync_failed", family=name, reason=report.error, **spent)
        return
    failed = report.failed
    for key, reason in sorted(failed.items()):
        if key not in quarantined or quarantined[key].reason != reason:
            effect = "its pods are closed; it is tried again"
            log.error("policy_quarantined", family=name, policy=key, reason=reason, effect=effect)
    if recovered := sorted(quarantined.keys() - failed.keys()):
        log.info("policy_recovered", family=name, policies=Joined(recovered))
    if report.changes:
        log.info("policy_synced", family=name, **spent, **report.changes)
    else:
        log.debug("policy_nothing_to_write", family=name, **spent)
