"""The cost of the socket table: rendering, the first fill, and one endpoint's change, at several sizes.

    python -m benchmarks.ebpf_sync

Each size once over maps in memory, and, as root where BPF is allowed, once over the kernel's, in a cgroup and
a bpffs of its own. `render`, `fill`, `restart` and `check` are CPU ms, with the kernel's own work; a restart
finds everything in the maps. `p50` and `p99` are us of the apply of one changed endpoint.
"""

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from kproxy.addresses import Family
from kproxy.backends.core.base import SyncReport
from kproxy.backends.ebpf.backend import SocketBackend
from kproxy.backends.ebpf.config import SocketConfig
from kproxy.backends.ebpf.memory import MemorySocketTable
from kproxy.backends.ebpf.shared import FIRST_SIZES, SharedTable
from kproxy.kernel.bpf.socket_table import KernelSocketTable
from kproxy.kernel.bpf.types import SocketTable
from kproxy.plan.model import EndpointPlan, PortPlan, Protocol, ServicePlan
from tests.support.bpf import child_cgroup, private_bpffs

SIZES = ((1_000, 5), (10_000, 5), (10_000, 50))
CHANGES = 2_000

_SERVICES = {Family.IPV4: int(ip_address("10.96.0.1")), Family.IPV6: int(ip_address("fd00:96::1"))}
_PODS = {Family.IPV4: int(ip_address("10.128.0.1")), Family.IPV6: int(ip_address("fd00:128::1"))}

Row = dict[str, float]


def plan(family: Family, number: int, endpoints: int, moved: int = 0) -> ServicePlan:
    """A service whose pods have numbers of their own; `moved`: another pod in place of the first one."""
    make = type(ip_address(_PODS[family]))
    first = _PODS[family] + number * endpoints
    pods = [first + (1 << 22) + moved if moved else first, *range(first + 1, first + endpoints)]
    ready = tuple(sorted((EndpointPlan(str(make(each)), 8080) for each in pods), key=str))
    name, ip = f"bench/svc-{number}", str(make(_SERVICES[family] + number))
    port = PortPlan(name, Protocol.TCP, ip, 80, cluster=ready, reachable=ready, has_endpoints=True)
    return ServicePlan(name, family, ports=(port,))


def measure(table: SocketTable, again: Callable[[], SocketTable], size: int, endpoints: int) -> Row:
    """All figures of one size in one family each; `again` opens the table as another process does."""
    row: Row = {}
    for family in Family:
        plans = [plan(family, number, endpoints) for number in range(size)]
        gc.collect()
        gc.freeze()
        shared = SharedTable(table, [family])
        backend = SocketBackend(family, shared, SocketConfig(family))
        with _cpu(row, f"{family} render"):
            backend.update(plans)
        with _cpu(row, f"{family} fill"):
            _done(backend)
        times = list(_changes(backend, family, size, endpoints))
        row[f"{family} p50"] = statistics.median(times)
        row[f"{family} p99"] = statistics.quantiles(times, n=100)[-1]
        with _cpu(row, f"{family} check"):
            backend.check(full=True)
        backend.update(plans)
        _done(backend)
        table = again()
        other = SocketBackend(family, SharedTable(table, [family]), SocketConfig(family))
        other.update(plans)
        with _cpu(row, f"{family} restart"):
            if _done(other).changes:
                raise click.ClickException("a restart changed the maps")
        gc.unfreeze()
    return row


def _changes(backend: SocketBackend, family: Family, size: int, endpoints: int) -> Iterator[float]:
    for moved, number in zip(range(1, CHANGES + 1), itertools.cycle(range(0, size, 7)), strict=False):
        backend.update([plan(family, number, endpoints, moved)])
        began = time.perf_counter()
        _done(backend)
        yield (time.perf_counter() - began) * 1e6


def _done(backend: SocketBackend) -> SyncReport:
    report = backend.sync()
    if report.error or report.services:
        raise click.ClickException(f"sync failed: {report.error or report.services}")
    return report


@contextmanager
def _cpu(row: Row, name: str) -> Iterator[None]:
    began = time.process_time()
    yield
    row[name] = (time.process_time() - began) * 1000


def _in_memory(size: int, endpoints: int) -> Row:
    opened = [MemorySocketTable(FIRST_SIZES)]

    def again() -> MemorySocketTable:
        other = MemorySocketTable(FIRST_SIZES, fresh=False)
        other.maps = opened[-1].maps
        opened.append(other)
        return other

    return measure(opened[0], again, size, endpoints)


def _in_kernel(size: int, endpoints: int) -> Row:
    with private_bpffs() as bpffs, child_cgroup("kproxy-bench") as cgroup:
        opened = [KernelSocketTable.open(cgroup, bpffs / "kproxy", FIRST_SIZES)]

        def again() -> KernelSocketTable:
            opened.pop().close()
            opened.append(KernelSocketTable.open(cgroup, bpffs / "kproxy", FIRST_SIZES))
            return opened[0]

        try:
            return measure(opened[0], again, size, endpoints)
        finally:
            opened[0].remove()


def _show(rows: dict[str, Row]) -> None:
    names = list(next(iter(rows.values())))
    shown = Table("", *names)
    for name, row in rows.items():
        shown.add_row(name, *(f"{row[each]:.1f}" for each in names))
    Console(width=200).print(shown)


@click.command(help=__doc__)
@click.option("--memory-only", is_flag=True, help="Do not use the kernel.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def main(memory_only: bool, as_json: bool) -> None:
    kinds: dict[str, Callable[[int, int], Row]] = {"memory": _in_memory}
    if not memory_only:
        kinds["kernel"] = _in_kernel
    rows: dict[str, Any] = {
        f"{kind} {size} x {endpoints}": run(size, endpoints)
        for kind, run in kinds.items()
        for size, endpoints in SIZES
    }
    if as_json:
        click.echo(msgspec.json.encode(rows))
    else:
        _show(rows)


if __name__ == "__main__":
    main()
