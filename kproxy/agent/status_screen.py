"""The status as tables on a terminal: first what runs, then only what is wrong."""

from collections.abc import Iterable
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kproxy.agent.status import Status
from kproxy.state.problems import Problem


def show(status: Status, console: Console | None = None) -> None:
    """Print a status."""
    out = console or Console()
    now = datetime.now(UTC)
    verdict = Text("healthy", "green") if status.healthy else Text("behind with its changes", "bold red")
    head = Text(
        f"kproxy {status.version} on {status.node}, mode {status.mode}, for {age(status.since, now)}: "
    )
    out.print(head + verdict)
    if not status.node_eligible:
        out.print(Text("this node is going: load balancers are told so", "yellow"))
    pending = status.pending
    if pending.oldest_seconds is not None:
        waiting = f"{pending.services} of services, {pending.endpoints} of endpoints"
        out.print(Text(f"changes waiting: {waiting}; the oldest for {pending.oldest_seconds:g} s", "yellow"))
    out.print(_families(status, now))
    troubles = [
        (family.value, trouble.service, trouble.reason, age(trouble.since, now))
        for family, each in status.families.items()
        for trouble in each.quarantined
    ]
    _table(out, "refused by the kernel, tried again", ("family", "service", "reason", "for"), troubles)
    degraded = [
        (family.value, service, reason)
        for family, each in status.families.items()
        for service, reason in each.degraded.items()
    ]
    _table(out, "served, but not as asked for", ("family", "service", "reason"), degraded)
    _table(out, "not obeyed", ("object", "field", "value", "reason"), map(_cells, status.problems))
    _table(out, "not readable", ("object", "field", "value", "reason"), map(_cells, status.rejected))
    broken = [
        (watch.kind, str(watch.consecutive_failures), watch.last_error or "")
        for watch in status.watches
        if watch.connected_since is None
    ]
    _table(out, "watches that are down", ("kind", "failures", "last error"), broken)


def age(since: datetime, now: datetime) -> str:
    """A time span in its largest unit that is not zero: `5d`, `3h`, `12m`, `40s`."""
    seconds = max(0, int((now - since).total_seconds()))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _families(status: Status, now: datetime) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("family", "services", "last success", "last failure", "repaired"):
        table.add_column(name)
    for family, each in status.families.items():
        succeeded = f"{age(each.last_success, now)} ago" if each.last_success is not None else "never"
        failure = each.last_failure
        failed = f"{age(failure.at, now)} ago: {failure.reason}" if failure is not None else ""
        repaired = f"{each.drift.repaired} of {each.drift.found}" if each.drift.found else ""
        table.add_row(*map(Text, (family.value, str(each.services), succeeded, failed, repaired)))
    return table


def _cells(problem: Problem) -> tuple[str, str, str, str]:
    return problem.object, problem.field, problem.value, problem.reason


def _table(out: Console, title: str, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    found = list(rows)
    if not found:
        return
    table = Table(title=f"{title}: {len(found)}", title_justify="left", box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in found:
        table.add_row(*map(Text, row))
    out.print()
    out.print(table)
