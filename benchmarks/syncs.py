"""Measures the cost of syncs of a mode on the real kernel, with changes as the agent receives them."""

import gc
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks import cluster
from kproxy.addresses import Family
from kproxy.backends.core.base import Backend, SyncReport
from kproxy.plan.model import NodeView
from kproxy.plan.planner import Planner
from kproxy.state.decode import decode
from kproxy.state.kinds import Kind
from kproxy.state.tables import Tables

Row = dict[str, float]
Given = tuple[Kind, dict[str, Any]]


class Node:
    """One node; `cpu` counts seconds, and `written` says how many of `unit` the last sync has sent."""

    def __init__(
        self, backend: Backend, unit: str, written: Callable[[SyncReport], int], cpu: Callable[[], float]
    ) -> None:
        self.unit = unit
        self.cpu = cpu
        self._backend = backend
        self._written = written
        self._planner, self._tables = Planner(Family.IPV4), Tables()

    def push(self, *objects: Given, gone: str = "") -> tuple[int, float, float]:
        """Bring objects into the kernel: (written, CPU ms, elapsed ms)."""
        raws = [(kind, msgspec.json.encode(obj)) for kind, obj in objects]
        cpu, began = self.cpu(), time.perf_counter()
        for kind, raw in raws:
            self._tables.upsert(decode(kind, raw))
        if gone:
            self._tables.delete(Kind.SERVICE, gone)
        changed = self._tables.dirty()
        self._backend.update(self._planner.update(changed, NodeView("bench")).values())
        report = self._backend.sync()
        if report.error or report.failed:
            raise click.ClickException(f"sync failed: {report.error or report.failed}")
        self._tables.commit(changed)
        elapsed = (time.perf_counter() - began) * 1000
        return self._written(report), (self.cpu() - cpu) * 1000, elapsed

    def check(self, *, full: bool = False) -> None:
        """Compare the kernel with the applied state; no other program writes here."""
        if drifts := self._backend.check(full=full):
            raise click.ClickException(f"drift: {drifts[0]}")


def measure_syncs(node: Node, size: int, endpoints: int, repeats: int) -> Row:
    """A cold start of so many services, and single changes after it."""
    cold = node.push(*objects(0, size, endpoints))
    gc.collect()
    gc.freeze()  # as the agent does after its first sync
    changes = [
        node.push((Kind.ENDPOINT_SLICE, cluster.endpoint_slice(i * 7 % size, endpoints, moved=i + 1)))
        for i in range(repeats)
    ]
    added = [node.push(*objects(size + i, size + i + 1, endpoints)) for i in range(repeats)]
    removed = [node.push(gone=f"bench/svc-{size + i}") for i in range(repeats)]
    row: Row = {"services": size, "cold start": cold[2], "cold cpu": cold[1], f"cold {node.unit}": cold[0]}
    for name, samples in (("changed", changes), ("added", added), ("removed", removed)):
        row[f"{name} {node.unit}"] = statistics.median(sample[0] for sample in samples)
        # The clock of CPU time is coarse in some kernels: only the sum of many samples says anything.
        row[f"{name} cpu"] = statistics.fmean(sample[1] for sample in samples)
        row[f"{name} elapsed"] = statistics.median(sample[2] for sample in samples)
    return row


def objects(start: int, end: int, endpoints: int) -> list[Given]:
    """The services from one number to another, and their slices."""
    services = [(Kind.SERVICE, cluster.service(i)) for i in range(start, end)]
    return services + [(Kind.ENDPOINT_SLICE, cluster.endpoint_slice(i, endpoints)) for i in range(start, end)]


def show(title: str, rows: Sequence[Row], *, as_json: bool) -> None:
    """Print a table, or one JSON object a row."""
    if as_json:
        for row in rows:
            print(json.dumps(row))
        return
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(f"{value:,.0f}" if value >= 100 else f"{value:.1f}" for value in row.values()))
    Console(width=200).print(table)
