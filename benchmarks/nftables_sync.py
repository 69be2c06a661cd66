"""The cost of a sync in nftables mode: elements written, CPU time and latency, at several sizes.

    python -m benchmarks.nftables_sync

Needs root; works in a network namespace of its own. CPU time includes the kernel's own work. `restart` is the
first sync of a new process that finds the table complete; `idle` is the CPU time of a minute without changes.
"""

import gc
import os
import time

import click

from benchmarks import cluster
from benchmarks.syncs import Node, Row, measure_syncs, objects, show
from kproxy.addresses import Family
from kproxy.backends.core.base import LocalTraffic, SyncReport
from kproxy.backends.core.foreign_writes import ForeignWrites
from kproxy.backends.nftables.backend import NftablesBackend
from kproxy.backends.nftables.config import NftablesConfig
from kproxy.kernel.nft.netlink import NetlinkNft
from tests.kernel.namespace import enter_new

REPEATS = 30
GLANCES_A_MINUTE = 30


def node() -> Node:
    """A node of this mode, which knows nothing of the kernel yet."""
    nft = NetlinkNft()
    config = NftablesConfig(Family.IPV4, local_traffic=LocalTraffic(cidr=cluster.CLUSTER_CIDR))
    return Node(NftablesBackend(config, nft, ForeignWrites(nft.generation)), "elements", _elements, _cpu)


def measure(size: int, endpoints: int) -> Row:
    """All figures of one size, in a network namespace of this thread's own."""
    enter_new()
    measured = node()
    row = measure_syncs(measured, size, endpoints, REPEATS)
    row["idle cpu"] = _idle(measured)
    began = time.perf_counter()
    measured.check(full=True)
    row["check"] = (time.perf_counter() - began) * 1000
    _, row["restart cpu"], row["restart"] = node().push(*objects(0, size, endpoints))
    gc.unfreeze()
    return row


def _idle(measured: Node) -> float:
    """CPU ms of a minute in which nothing changes."""
    measured.check()
    cpu = _cpu()
    for _ in range(GLANCES_A_MINUTE):
        measured.check()
    return (_cpu() - cpu) * 1000


def _elements(report: SyncReport) -> int:
    return report.changes.get("elements", 0) + report.changes.get("elements_deleted", 0)


def _cpu() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@click.command()
@click.option("--sizes", default="10,1000,5000,10000", show_default=True)
@click.option("--endpoints", default=5, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a row.")
def main(sizes: str, endpoints: int, *, as_json: bool) -> None:
    """Measure the nftables mode's syncs in this kernel."""
    rows = [measure(int(size), endpoints) for size in sizes.split(",")]
    show(f"nftables mode, x {endpoints} endpoints: milliseconds", rows, as_json=as_json)


if __name__ == "__main__":
    main()
