"""What a sync costs in IPVS mode: messages, CPU time and latency, at several sizes.

Needs a kernel with IPVS; where the running one has none:

    python -m kproxy.testing.uml -- .venv/bin/python -m benchmarks.ipvs_sync

A user-mode kernel makes system calls slow, so what counts there is how figures compare with each other:
one change must cost the same whatever the number of services. `idle` is the CPU time that a minute without
changes takes: the looks for drift, at their usual pace.
"""

import gc
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks import cluster
from kproxy.addresses import Family
from kproxy.backends.base import LocalTraffic
from kproxy.backends.iptables.backend import IptablesBackend
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.iptables.watch import ChangeWatch
from kproxy.backends.ipvs.backend import IpvsBackend
from kproxy.backends.ipvs.config import IpvsConfig
from kproxy.backends.ipvs.handles import KernelHandles
from kproxy.backends.ipvs.layout import IpvsLayout
from kproxy.backends.ipvs.names import DEVICE
from kproxy.kernel.dummy import DummyDevice
from kproxy.kernel.ipset.netlink import NetlinkIpset
from kproxy.kernel.ipvs import codec
from kproxy.kernel.ipvs.netlink import NetlinkIpvs
from kproxy.kernel.ipvs.types import Command, DestinationId, Request, ServerId
from kproxy.kernel.netlink.socket import NetlinkSocket
from kproxy.kernel.xtables.detect import find_tools
from kproxy.kernel.xtables.programs import SubprocessXtables
from kproxy.kernel.xtables.types import Variant
from kproxy.plan.model import NodeView
from kproxy.plan.planner import Planner
from kproxy.plan.schedulers import Scheduler
from kproxy.state.decode import Kind, decode
from kproxy.state.tables import Tables
from tests.kernel.namespace import enter_new

REPEATS = 50
GLANCE = 2.0
MINUTE = 60.0

Row = dict[str, float]


class _CountingSocket:
    """Counts the messages of every batch that is sent."""

    def __init__(self) -> None:
        self.messages = 0
        original = NetlinkSocket.batch

        def batch(sock: NetlinkSocket, requests: Sequence[tuple[int, int, bytes]]) -> Any:
            self.messages += len(requests)
            return original(sock, requests)

        NetlinkSocket.batch = batch  # type: ignore[method-assign,assignment]


class Node:
    """The mode over the real kernel, fed as the agent feeds it."""

    def __init__(self, variant: Variant) -> None:
        self.counting = _CountingSocket()
        self.now = 0.0
        rules = IptablesConfig(Family.IPV4, local_traffic=LocalTraffic(cidr=cluster.CLUSTER_CIDR))
        config = IpvsConfig(rules, Scheduler("rr"))
        xtables = SubprocessXtables(Family.IPV4, find_tools(Family.IPV4, variant))
        handles = KernelHandles(NetlinkIpvs(), NetlinkIpset(), DummyDevice(DEVICE))
        writer = IptablesBackend(IpvsLayout(rules), xtables, ChangeWatch(xtables.stamp))
        self.backend = IpvsBackend(config, handles, writer, lambda: self.now)
        self.planner, self.tables = Planner(Family.IPV4), Tables()

    def push(self, *objects: tuple[Kind, dict[str, Any]], gone: str = "") -> tuple[int, float, float]:
        """Bring objects into the kernel: (messages, CPU ms, elapsed ms)."""
        raws = [(kind, msgspec.json.encode(obj)) for kind, obj in objects]
        messages, cpu, began = self.counting.messages, time.process_time(), time.perf_counter()
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
        return self.counting.messages - messages, (time.process_time() - cpu) * 1000, elapsed

    def idle(self) -> float:
        """CPU ms of a minute in which nothing changes."""
        cpu, end = time.process_time(), self.now + MINUTE
        while self.now < end:
            self.now += GLANCE
            if drifts := self.backend.check():
                raise click.ClickException(f"drift: {drifts[0]}")
        return (time.process_time() - cpu) * 1000


def measure(size: int, endpoints: int, variant: Variant) -> Row:
    """All figures of one size, in a network namespace of this thread's own."""
    enter_new()
    _lo_up()
    node = Node(variant)
    cold = node.push(*_objects(0, size, endpoints))
    gc.collect()
    gc.freeze()  # as the agent does after its first sync
    changes = [
        node.push((Kind.ENDPOINT_SLICE, cluster.endpoint_slice(i * 7 % size, endpoints, moved=i + 1)))
        for i in range(REPEATS)
    ]
    added = [node.push(*_objects(size + i, size + i + 1, endpoints)) for i in range(REPEATS)]
    removed = [node.push(gone=f"bench/svc-{size + i}") for i in range(REPEATS)]
    row: Row = {"services": size, "cold start": cold[2], "cold messages": cold[0]}
    for name, samples in (("changed", changes), ("added", added), ("removed", removed)):
        row[f"{name} messages"] = statistics.median(sample[0] for sample in samples)
        # The clock of CPU time is coarse in some kernels: only the sum of many samples says anything.
        row[f"{name} cpu"] = statistics.fmean(sample[1] for sample in samples)
        row[f"{name} elapsed"] = statistics.median(sample[2] for sample in samples)
    row["idle cpu"] = node.idle()
    return row


def encoding() -> float:
    """Microseconds that it takes to encode one request."""
    requests = [
        Request(
            Command.NEW_DEST, ServerId("TCP", f"10.96.{n >> 8}.{n & 255}", 80), None, DestinationId(ip, 80), 1
        )
        for n in range(4000)
        for ip in ("10.128.0.1", "10.128.0.2", "10.128.0.3", "10.128.0.4", "10.128.0.5")
    ]
    began = time.perf_counter()
    for request in requests:
        codec.encode(request)
    return (time.perf_counter() - began) / len(requests) * 1e6


def _objects(start: int, end: int, endpoints: int) -> list[tuple[Kind, dict[str, Any]]]:
    services = [(Kind.SERVICE, cluster.service(i)) for i in range(start, end)]
    return services + [(Kind.ENDPOINT_SLICE, cluster.endpoint_slice(i, endpoints)) for i in range(start, end)]


def _lo_up() -> None:
    from pyroute2 import IPRoute

    with IPRoute() as route:
        route.link("set", index=route.link_lookup(ifname="lo")[0], state="up")


@click.command()
@click.option("--sizes", default="10,1000,5000", show_default=True)
@click.option("--endpoints", default=5, show_default=True)
@click.option("--variant", type=click.Choice(["legacy", "nft"]), default="legacy", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a row.")
def main(sizes: str, endpoints: int, variant: str, *, as_json: bool) -> None:
    """Measure the IPVS mode's syncs in this kernel."""
    rows = [measure(int(size), endpoints, Variant(variant)) for size in sizes.split(",")]
    cost = encoding()
    if as_json:
        for row in rows:
            print(json.dumps(row | {"encode us": cost}))
        return
    table = Table(title=f"IPVS mode, x {endpoints} endpoints: milliseconds; encoding a request {cost:.1f} us")
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(f"{value:,.0f}" if value >= 100 else f"{value:.1f}" for value in row.values()))
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
