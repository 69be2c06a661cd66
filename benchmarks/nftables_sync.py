"""What a sync costs in nftables mode: elements written, CPU time and latency, at several sizes.

    python -m benchmarks.nftables_sync

Needs root; works in a network namespace of its own. CPU time is that of kproxy and of nft together. `restart`
is what a new process does that finds the table as it should be; `idle` is the CPU time of a minute without
changes.
"""

import gc
import json
import os
import statistics
import time
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks import cluster
from kproxy.addresses import Family
from kproxy.backends.base import LocalTraffic
from kproxy.backends.iptables.watch import ChangeWatch
from kproxy.backends.nftables.backend import NftablesBackend
from kproxy.backends.nftables.config import NftablesConfig
from kproxy.kernel.nft.program import find_nft
from kproxy.plan.model import NodeView
from kproxy.plan.planner import Planner
from kproxy.state.decode import Kind, decode
from kproxy.state.tables import Tables
from tests.kernel.namespace import enter_new

REPEATS = 30
GLANCES_A_MINUTE = 30

Row = dict[str, float]


class Node:
    """The mode over the real kernel, fed as the agent feeds it."""

    def __init__(self) -> None:
        nft = find_nft()
        if nft is None:
            raise click.ClickException("nft is not installed")
        config = NftablesConfig(Family.IPV4, local_traffic=LocalTraffic(cidr=cluster.CLUSTER_CIDR))
        self.backend = NftablesBackend(config, nft, ChangeWatch(nft.stamp))
        self.planner, self.tables = Planner(Family.IPV4), Tables()

    def push(self, *objects: tuple[Kind, dict[str, Any]], gone: str = "") -> tuple[int, float, float]:
        """Bring objects into the kernel: (elements, CPU ms, elapsed ms)."""
        raws = [(kind, msgspec.json.encode(obj)) for kind, obj in objects]
        cpu, began = _cpu(), time.perf_counter()
        for kind, raw in raws:
            self.tables.upsert(decode(kind, raw))
        if gone:
            self.tables.delete(Kind.SERVICE, gone)
        changed = self.tables.dirty()
        self.backend.update(self.planner.update(changed, NodeView("bench")).values())
        report = self.backend.sync()
        if report.error or report.failed:
            raise click.ClickException(f"sync failed: {report.error or report.failed}")
        self.tables.commit(changed)
        elapsed = (time.perf_counter() - began) * 1000
        elements = report.changes.get("elements", 0) + report.changes.get("elements_deleted", 0)
        return elements, (_cpu() - cpu) * 1000, elapsed

    def idle(self) -> float:
        """CPU ms of a minute in which nothing changes."""
        self.backend.check()
        cpu = _cpu()
        for _ in range(GLANCES_A_MINUTE):
            if drifts := self.backend.check():
                raise click.ClickException(f"drift: {drifts[0]}")
        return (_cpu() - cpu) * 1000

    def check(self) -> float:
        """Elapsed ms of a comparison of everything."""
        began = time.perf_counter()
        if drifts := self.backend.check(thorough=True):
            raise click.ClickException(f"drift: {drifts[0]}")
        return (time.perf_counter() - began) * 1000


def measure(size: int, endpoints: int) -> Row:
    """All figures of one size, in a network namespace of this thread's own."""
    enter_new()
    node = Node()
    objects = _objects(0, size, endpoints)
    cold = node.push(*objects)
    gc.collect()
    gc.freeze()  # as the agent does after its first sync
    changes = [
        node.push((Kind.ENDPOINT_SLICE, cluster.endpoint_slice(i * 7 % size, endpoints, moved=i + 1)))
        for i in range(REPEATS)
    ]
    added = [node.push(*_objects(size + i, size + i + 1, endpoints)) for i in range(REPEATS)]
    removed = [node.push(gone=f"bench/svc-{size + i}") for i in range(REPEATS)]
    row: Row = {"services": size, "cold start": cold[2], "cold elements": cold[0]}
    for name, samples in (("changed", changes), ("added", added), ("removed", removed)):
        row[f"{name} elements"] = statistics.median(sample[0] for sample in samples)
        row[f"{name} cpu"] = statistics.fmean(sample[1] for sample in samples)
        row[f"{name} elapsed"] = statistics.median(sample[2] for sample in samples)
    row["idle cpu"] = node.idle()
    row["check"] = node.check()
    row["restart"] = Node().push(*objects)[2]
    gc.unfreeze()
    return row


def _cpu() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _objects(start: int, end: int, endpoints: int) -> list[tuple[Kind, dict[str, Any]]]:
    services = [(Kind.SERVICE, cluster.service(i)) for i in range(start, end)]
    return services + [(Kind.ENDPOINT_SLICE, cluster.endpoint_slice(i, endpoints)) for i in range(start, end)]


@click.command()
@click.option("--sizes", default="10,1000,5000,10000", show_default=True)
@click.option("--endpoints", default=5, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a row.")
def main(sizes: str, endpoints: int, *, as_json: bool) -> None:
    """Measure the nftables mode's syncs in this kernel."""
    rows = [measure(int(size), endpoints) for size in sizes.split(",")]
    if as_json:
        for row in rows:
            print(json.dumps(row))
        return
    table = Table(title=f"nftables mode, x {endpoints} endpoints: milliseconds")
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(f"{value:,.0f}" if value >= 100 else f"{value:.1f}" for value in row.values()))
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
