"""What NetworkPolicies cost in the kernel: the first table, a restart, and each kind of change, in CPU.

    python -m benchmarks.network_policy_kernel
    python -m benchmarks.network_policy_kernel --pods 10000 --policies 1000 --local 110

The cluster and its changes are those of benchmarks.network_policy; planning is not in the figures. The tables
of both families are written in a network namespace that ends with the run. CPU is that of the thread, of user
and kernel together.
"""

import gc
from collections.abc import Callable
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks.network_policy import NODE, RandomCluster, changes, cpu_ms, decoded, memory_mb
from kproxy.addresses import Family
from kproxy.backends.core.base import SyncReport
from kproxy.backends.core.foreign_writes import ForeignWrites
from kproxy.backends.policy.backend import PolicyBackend
from kproxy.backends.policy.config import PolicyConfig
from kproxy.backends.policy.text import everything
from kproxy.kernel.nft.netlink import NetlinkNft
from kproxy.kernel.scratch import in_scratch_network
from kproxy.plan.policy.planner import PolicyPlanner


class Node:
    """The planner and both families' tables."""

    def __init__(self, planner: PolicyPlanner) -> None:
        self.planner = planner
        self.backends = self.start()

    @staticmethod
    def start() -> dict[Family, PolicyBackend]:
        """Backends that know nothing of the kernel yet."""
        nft = NetlinkNft()
        watch = ForeignWrites(nft.generation)
        return {family: PolicyBackend(PolicyConfig(family), nft, watch) for family in Family}

    def load(self) -> list[SyncReport]:
        """Write the whole tables."""
        for family, backend in self.backends.items():
            table = self.planner.tables[family]
            backend.update(table, everything(table))
        return self.sync()

    def sync(self) -> list[SyncReport]:
        """Write what was touched."""
        reports = [backend.sync() for backend in self.backends.values()]
        failed = [report.error or report.failed for report in reports if report.error or report.failed]
        if failed:
            raise SystemExit(f"not written: {failed}")
        return reports


def _written(reports: list[SyncReport], what: str) -> int:
    return sum(report.changes.get(what, 0) for report in reports)


def _timed(work: Callable[[], list[SyncReport]]) -> tuple[float, list[SyncReport]]:
    found: list[SyncReport] = []
    return cpu_ms(lambda: found.extend(work())), found


def _figures(node: Node, updates: list[dict[str, Any]]) -> tuple[list[float], list[SyncReport]]:
    costs: list[float] = []
    reports: list[SyncReport] = []
    for each in updates:
        whole = {kind: each.get(kind, {}) for kind in ("pods", "namespaces", "policies")}
        touched = node.planner.update(**whole)

        def work(touched: Any = touched) -> list[SyncReport]:
            for family, backend in node.backends.items():
                backend.update(node.planner.tables[family], touched[family])
            return node.sync()

        cost, found = _timed(work)
        costs.append(cost)
        reports += found
    return costs, reports


def run(pods: int, policies: int, local: int, repeats: int, seed: int) -> Table:
    """Measure in the calling thread's network namespace."""
    cluster = RandomCluster(seed, pods, policies, local)
    planner = PolicyPlanner(NODE, tuple(Family))
    planner.update(
        pods=decoded("pods", *cluster.pods),
        namespaces=decoded("namespaces", *map(cluster.namespace, cluster.namespaces)),
        policies=decoded("policies", *cluster.policies),
    )
    gc.collect()
    gc.freeze()
    before = memory_mb()
    node = Node(planner)
    figures = Table("step", "CPU ms", "largest", "transactions", "chains", "elements")

    def add(name: str, costs: list[float], reports: list[SyncReport]) -> None:
        written = [_written(reports, what) for what in ("transactions", "chains", "elements")]
        mean = sum(costs) / len(costs)
        figures.add_row(name, f"{mean:.2f}", f"{max(costs):.2f}", *map(str, written))

    cost, reports = _timed(node.load)
    add("first tables, both families", [cost], reports)
    memory = memory_mb() - before
    node.backends = node.start()
    cost, reports = _timed(node.load)
    add("restart: read, recognised", [cost], reports)
    add("nothing changed", [_timed(node.sync)[0]], [])
    for name, updates in changes(cluster, repeats).items():
        if updates:
            add(f"{name} ({len(updates)} times)", *_figures(node, updates))
    cost = cpu_ms(lambda: [backend.check(full=True) for backend in node.backends.values()])
    add("compared with the kernel", [cost], [])
    cost = cpu_ms(lambda: [backend.counts() for backend in node.backends.values()])
    add("counters", [cost], [])
    figures.caption = f"record and desired objects: {memory:.1f} MB"
    return figures


@click.command(help=__doc__)
@click.option("--pods", default=5000, show_default=True)
@click.option("--policies", default=500, show_default=True)
@click.option("--local", default=110, show_default=True, help="Pods of the node.")
@click.option("--repeats", default=20, show_default=True, help="Changes of each kind.")
@click.option("--seed", default=1, show_default=True)
def main(pods: int, policies: int, local: int, repeats: int, seed: int) -> None:
    """Print a table."""
    Console().print(in_scratch_network(lambda: run(pods, policies, local, repeats, seed)))


if __name__ == "__main__":
    main()
