"""Values that are read at scrape time: pending changes, rules in the kernel, packets per service.

Series per service are bounded: the busiest service ports are exported, the rest are counted. The cost of
reading them is bounded too: without virtual servers it needs a dump of all rules, and the longer a dump
takes, the less often it is read.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from heapq import nlargest

from kproxy.addresses import Family
from kproxy.backends.core.base import MeasureError, PortAffinity, PortTraffic
from kproxy.backends.iptables.names import INVALID_COUNTER, LOCALHOST_COUNTER
from kproxy.kernel import nfacct
from kproxy.modes.base import HasSocketTable, Mode, SocketTableState
from kproxy.state.kinds import Kind
from kproxy.state.store import ObjectStore
from kproxy.telemetry import series
from kproxy.telemetry.exposition import CollectionError, Reader
from kproxy.telemetry.metrics import Sample
from kproxy.telemetry.observer import SyncObserver
from kproxy.telemetry.series import Series
from kproxy.telemetry.verdict import Cause, State, Verdict

TRAFFIC_SHARE = 100
"""Traffic that took t seconds to read is read again after this many times t: at most 1 % of the time."""

Nfacct = Callable[[], dict[str, tuple[int, int]]]


def readers(
    mode: Callable[[], Mode],
    verdict: Callable[[], Verdict],
    store: ObjectStore,
    observer: SyncObserver,
    service_limit: int,
    accounts: Nfacct = nfacct.read,
    clock: Callable[[], float] = time.monotonic,
) -> Sequence[tuple[str, Reader]]:
    """All readers. `verdict` returns the agent's health.

    `service_limit` bounds the number of service ports with series of their own; 0: none.
    """
    return (
        ("health", lambda: _health(verdict())),
        ("process", lambda: [Sample(series.THREADS, (), threading.active_count())]),
        ("changes", partial(_changes, mode, store, clock)),
        ("objects", partial(_objects, store, observer)),
        ("kernel", _Kernel(mode, service_limit, clock).read),
        ("nfacct", partial(_accounts, accounts)),
    )


def _health(verdict: Verdict) -> Iterator[Sample]:
    holding = verdict.causes
    yield Sample(series.HEALTHY, (), float(verdict.state is State.HEALTHY))
    for state in State:
        yield Sample(series.STATE, (state.value,), float(verdict.state is state))
    for cause in Cause:
        yield Sample(series.CONDITION, (cause.value,), float(cause in holding))
    yield Sample(series.MODE_REFUSED, (), float(Cause.MODE_REFUSED in holding))
    yield Sample(series.CONFIGURATION_REJECTED, (), float(Cause.CONFIGURATION_REJECTED in holding))


def _changes(mode: Callable[[], Mode], store: ObjectStore, clock: Callable[[], float]) -> Iterator[Sample]:
    changes = store.changes()
    for kind, total, pending in (
        (Kind.SERVICE, series.SERVICE_CHANGES, series.SERVICE_PENDING),
        (Kind.ENDPOINT_SLICE, series.ENDPOINT_CHANGES, series.ENDPOINT_PENDING),
    ):
        yield Sample(total, (), changes[kind].total)
        yield Sample(pending, (), changes[kind].pending)
    since = store.pending_since
    yield Sample(series.OLDEST_PENDING, (), 0.0 if since is None else clock() - since)
    if store.changed_at is not None:
        for family in mode().families:
            yield Sample(series.LAST_QUEUED, (family.value,), store.changed_at)


def _objects(store: ObjectStore, observer: SyncObserver) -> Iterator[Sample]:
    objects = {problem.object for problem in observer.known_problems()}
    yield Sample(series.PROBLEMS, (), len(objects))
    yield Sample(series.REJECTED, (), len(store.rejected()))


class _Kernel:
    """Reads rules, objects and traffic; traffic that took t s to read is kept for TRAFFIC_SHARE * t s."""

    def __init__(self, mode: Callable[[], Mode], service_limit: int, clock: Callable[[], float]) -> None:
        self._mode = mode
        self._limit = service_limit
        self._clock = clock
        self._traffic: dict[Family, list[Sample]] = {}
        self._next = 0.0

    def read(self) -> list[Sample]:
        """All samples. Raises CollectionError."""
        found: list[Sample] = []
        mode = self._mode()
        began = self._clock()
        due = self._limit > 0 and began >= self._next
        if isinstance(mode, HasSocketTable):
            found += _socket_table(mode.socket_table)
        for family in mode.families:
            try:
                measured = mode.measure(family, traffic=due)
            except MeasureError as error:
                raise CollectionError(f"{family.value}: {error}") from error
            if due:
                self._traffic[family] = [
                    *_traffic(family, measured.traffic, self._limit),
                    *_affinity(family, measured.affinity, self._limit),
                ]
            found += [
                Sample(series.RULES, (table, family.value), measured.rules.get(table, 0))
                for table in ("nat", "filter")
            ]
            found += [
                Sample(series.NFTABLES_OBJECTS, (kind, family.value), count)
                for kind, count in measured.objects.items()
            ]
            if measured.frontends is not None:
                found.append(Sample(series.FRONTENDS, (family.value,), measured.frontends))
            found += self._traffic.get(family, ())
        if due:
            ended = self._clock()
            self._next = ended + TRAFFIC_SHARE * (ended - began)
        return found


def _socket_table(table: SocketTableState) -> Iterator[Sample]:
    now = "serving" if table.serving else "degraded" if table.reason else "starting"
    for state in ("serving", "starting", "degraded"):
        yield Sample(series.SOCKET_TABLE, (state,), float(state == now))


def _traffic(family: Family, ports: Sequence[PortTraffic], limit: int) -> Iterator[Sample]:
    """The busiest ports; among equals the first by name, so that the choice is stable."""
    chosen = ports
    if len(ports) > limit:
        by_name = sorted(ports, key=lambda port: (port.name, port.protocol))
        chosen = nlargest(limit, by_name, key=lambda port: port.connections)
    for port in chosen:
        labels = _labels(family, port.name, port.protocol)
        yield Sample(series.CONNECTIONS, labels, port.connections)
        for direction, counted in (("in", port.sent), ("out", port.answered)):
            if counted is not None:
                yield Sample(series.PACKETS, (*labels, direction), counted[0])
                yield Sample(series.BYTES, (*labels, direction), counted[1])
    yield Sample(series.OMITTED, (family.value,), len(ports) - len(chosen))


def _affinity(family: Family, ports: Sequence[PortAffinity], limit: int) -> Iterator[Sample]:
    """The ports with the most clients; among equals the first by name."""
    by_name = sorted(ports, key=lambda port: (port.name, port.protocol))
    for port in nlargest(limit, by_name, key=lambda port: port.clients):
        yield Sample(series.AFFINITY_CLIENTS, _labels(family, port.name, port.protocol), port.clients)
    if ports:
        yield Sample(series.AFFINITY_LIMIT, (family.value,), max(port.limit for port in ports))


def _labels(family: Family, port: str, protocol: str) -> tuple[str, ...]:
    """The labels of a service port, whose name is `namespace/service:port`."""
    service, _, name = port.partition(":")
    namespace, _, service = service.partition("/")
    return family.value, namespace, service, name, protocol


def _accounts(accounts: Nfacct) -> Iterable[Sample]:
    try:
        found = accounts()
    except nfacct.NfacctUnsupportedError:
        return []
    except nfacct.NfacctError as error:
        raise CollectionError(str(error)) from error
    known: tuple[tuple[str, Series], ...] = (
        (INVALID_COUNTER, series.INVALID_DROPPED),
        (LOCALHOST_COUNTER, series.LOCALHOST_ACCEPTED),
    )
    return [Sample(each, (), found[name][0]) for name, each in known if name in found]
