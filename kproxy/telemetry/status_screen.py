"""Print the status as tables: first the running agent, then problems, those of the agent first.

The output is plain text: structlog imports a library for terminals if one is installed, so every running
kproxy would load it.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from kproxy.state.problems import Problem
from kproxy.telemetry.status import BEING_DELETED, FamilyStatus, PolicyFamilyStatus, PolicyStatus, Status
from kproxy.text import clean

_GAP = "  "
_WIDEST = 8192
"""The maximum length of a line; cells are cut much earlier."""


def screen(status: Status, now: datetime) -> str:
    """The text; ages are relative to `now`."""
    since = age(status.since, now)
    lines = [f"kproxy {status.version} on {status.node}, mode {status.mode}, for {since}: {verdict(status)}"]
    if not status.node_eligible:
        lines.append(f"{status.node_reason or BEING_DELETED}; /healthz answers 503")
    refused = status.refused_mode
    if refused is not None:
        when, why = age(refused.at, now), " ".join(refused.reason.split())
        lines.append(f"mode {refused.mode} was refused {when} ago, {refused.kept} stays: {why}")
    setting = status.refused_setting
    if setting is not None:
        when, why = age(setting.at, now), " ".join(setting.reason.split())
        lines.append(f"{setting.setting} was refused {when} ago, the old value stays: {why}")
    rejected = status.rejected_configuration
    if rejected is not None:
        when = age(rejected.at, now)
        lines.append(f"configuration was rejected {when} ago, the former one stays: {rejected.file}")
        lines += [f"{_GAP}{' '.join(problem.split())}" for problem in rejected.problems]
    pending = status.pending
    if pending.oldest_seconds is not None:
        waiting = f"{pending.services} of services, {pending.endpoints} of endpoints"
        lines.append(f"changes waiting: {waiting}; the oldest for {pending.oldest_seconds:g} s")
    families = [(family.value, *_family(each, now)) for family, each in status.families.items()]
    lines += ["", *_table(("FAMILY", "SERVICES", "LAST SUCCESS", "LAST FAILURE", "REPAIRED"), families)]
    policies = status.network_policy
    if policies is not None:
        lines += ["", *_policies(policies, now)]
    quarantined = [
        (family.value, service.service, age(service.since, now), service.reason)
        for family, each in status.families.items()
        for service in each.quarantined
    ]
    degraded = [
        (family.value, service, reason)
        for family, each in status.families.items()
        for service, reason in each.degraded.items()
    ]
    leftovers = [
        (family.value, name, reason)
        for family, each in status.families.items()
        for name, reason in each.leftovers.items()
    ]
    broken = [
        (
            watch.kind,
            age(watch.down_since, now) if watch.down_since is not None else "-",
            str(watch.consecutive_failures),
            watch.last_error or "",
        )
        for watch in status.watches
        if watch.connected_since is None or watch.down_since is not None
    ]
    conditions = [(each.reason, age(each.since, now), each.message) for each in status.conditions]
    fields = ("OBJECT", "FIELD", "VALUE", "REASON")
    for title, columns, rows in (
        ("reasons", ("REASON", "FOR", "MESSAGE"), conditions),
        ("watches that are down", ("KIND", "FOR", "FAILURES", "LAST ERROR"), broken),
        ("quarantined, tried again", ("FAMILY", "SERVICE", "FOR", "REASON"), quarantined),
        ("degraded", ("FAMILY", "SERVICE", "REASON"), degraded),
        ("leftovers, deletion is tried again", ("FAMILY", "OBJECT", "REASON"), leftovers),
        *(_policy_findings(policies, now) if policies is not None else ()),
        ("invalid fields ignored", fields, _cells(status.problems)),
        ("rejected objects", fields, _cells(status.rejected)),
    ):
        if rows:
            lines += ["", f"{title}: {len(rows)}", *_table(columns, rows)]
    return "\n".join(clean(line, _WIDEST) for line in lines) + "\n"


def verdict(status: Status) -> str:
    """The state in a few words."""
    if not status.live or (not status.healthy and status.state is None):
        return "UNHEALTHY: changes are not applied in time"
    if not status.healthy:
        return str(status.state).upper()
    return f"healthy; findings about objects: {status.findings}" if status.findings else "healthy"


def age(since: datetime, now: datetime) -> str:
    """A time span in its largest unit that is not zero: `5d`, `3h`, `12m`, `40s`."""
    seconds = max(0, int((now - since).total_seconds()))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _policies(status: PolicyStatus, now: datetime) -> list[str]:
    families = [
        (family.value, str(each.groups), *_outcomes(each, now)) for family, each in status.families.items()
    ]
    isolated = ", ".join(f"{count} {direction}" for direction, count in status.isolated.items())
    waits = f"; waits for {status.waits_for}" if status.waits_for else ""
    pods = f"{status.isolated_pods} ({isolated})"
    return [
        f"network policies: {status.policies}; isolated pods here: {pods}{waits}",
        *(f"not judged: {' '.join(gap.split())}" for gap in status.gaps),
        *_table(("FAMILY", "GROUPS", "LAST SUCCESS", "LAST FAILURE", "REPAIRED"), families),
    ]


def _policy_findings(
    status: PolicyStatus, now: datetime
) -> Iterator[tuple[str, tuple[str, ...], Sequence[tuple[str, ...]]]]:
    rejected = [(each.policy, each.reason) for each in status.rejected]
    yield "rejected policies, their pods are closed", ("POLICY", "REASON"), rejected
    quarantined = [
        (each.family.value, each.policy, age(each.since, now), each.reason) for each in status.quarantined
    ]
    columns = ("FAMILY", "POLICY", "FOR", "REASON")
    yield "quarantined policies, their pods are closed", columns, quarantined
    leftovers = [
        (family.value, name, reason)
        for family, each in status.families.items()
        for name, reason in each.leftovers.items()
    ]
    yield "leftovers of policies, deletion is tried again", ("FAMILY", "OBJECT", "REASON"), leftovers


def _family(status: FamilyStatus, now: datetime) -> tuple[str, str, str, str]:
    return (str(status.services), *_outcomes(status, now))


def _outcomes(status: FamilyStatus | PolicyFamilyStatus, now: datetime) -> tuple[str, str, str]:
    succeeded = f"{age(status.last_success, now)} ago" if status.last_success is not None else "never"
    failure = status.last_failure
    failed = f"{age(failure.at, now)} ago: {failure.reason}" if failure is not None else "-"
    drift = status.drift
    repaired = f"{drift.repaired} of {drift.found}" if drift.found else "-"
    return succeeded, failed, repaired


def _cells(problems: Iterable[Problem]) -> list[tuple[str, ...]]:
    return [(each.object, each.field, each.value, each.reason) for each in problems]


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    shown = [tuple(clean(" ".join(cell.split())) for cell in row) for row in (columns, *rows)]
    widths = [max(len(row[n]) for row in shown) for n in range(len(columns))]
    return [_GAP.join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in shown]
