"""The cost of a sync in IPVS mode: messages, CPU time and latency, at several sizes.

Needs a kernel with IPVS; where the running one has none:

    python -m kproxy_lab.uml -- .venv/bin/python -m benchmarks.ipvs_sync

System calls are slow in a user-mode kernel, so only ratios of its figures have a meaning: one change must
cost the same for any number of services. `idle` is the CPU time of a minute without changes: the periodic
drift checks.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import click

from benchmarks import cluster
from benchmarks.syncs import Node, Row, measure_syncs, show
from kproxy.addresses import Family
from kproxy.backends.core.base import LocalTraffic
from kproxy.backends.core.foreign_writes import ForeignWrites
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.ipvs.backend import IpvsBackend
from kproxy.backends.ipvs.config import IpvsConfig
from kproxy.backends.ipvs.handles import KernelHandles
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
from kproxy.modes.ipvs.rules import IpvsRules
from kproxy.plan.schedulers import Scheduler
from tests.kernel.namespace import enter_new

REPEATS = 50
GLANCE = 2.0
MINUTE = 60.0


class _CountingSocket:
    """Counts the messages of every batch that is sent."""

    def __init__(self) -> None:
        self.messages = 0
        original = NetlinkSocket.batch

        def batch(sock: NetlinkSocket, requests: Sequence[tuple[int, int, bytes]]) -> Any:
            self.messages += len(requests)
            return original(sock, requests)

        NetlinkSocket.batch = batch  # type: ignore[method-assign,assignment]

    def since(self, _: object) -> int:
        """How many since this was asked last."""
        messages, self.messages = self.messages, 0
        return messages


def node(variant: Variant, clock: Callable[[], float] = time.monotonic) -> Node:
    """A node of this mode, which knows nothing of the kernel yet, in this thread's network namespace."""
    _lo_up()
    rules = IptablesConfig(Family.IPV4, local_traffic=LocalTraffic(cidr=cluster.CLUSTER_CIDR))
    xtables = SubprocessXtables(Family.IPV4, find_tools(Family.IPV4, variant))
    handles = KernelHandles(NetlinkIpvs(), NetlinkIpset(), DummyDevice(DEVICE))
    writer = IpvsRules(rules, xtables, ForeignWrites(xtables.generation))
    backend = IpvsBackend(IpvsConfig(rules, Scheduler("rr")), handles, writer, clock)
    return Node(backend, "messages", _CountingSocket().since, time.process_time)


def measure(size: int, endpoints: int, variant: Variant) -> Row:
    """All figures of one size, in a network namespace of this thread's own."""
    enter_new()
    now = 0.0
    measured = node(variant, lambda: now)
    row = measure_syncs(measured, size, endpoints, REPEATS)
    cpu = time.process_time()
    while now < MINUTE:
        now += GLANCE
        measured.check()
    row["idle cpu"] = (time.process_time() - cpu) * 1000
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
        rows = [row | {"encode us": cost} for row in rows]
    title = f"IPVS mode, x {endpoints} endpoints: milliseconds; encoding a request {cost:.1f} us"
    show(title, rows, as_json=as_json)


if __name__ == "__main__":
    main()
