"""What one more endpoint, port, address or range of a Service costs: processor time and memory, in each mode.

    python -m benchmarks.object_costs
    python -m kproxy_lab.uml -- .venv/bin/python -m benchmarks.object_costs --modes ipvs

Needs root. Every measurement is a process of its own in a network namespace of its own: a Service is decoded,
planned, rendered and written with few items of a kind, and in another process with many; the difference is
divided by the number of items. Processor time includes the kernel's and that of the programs that are run,
and memory is that of the process. Deletion is not measured: it costs as much or less.
"""

import gc
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks import cluster, ipvs_sync, nftables_sync
from benchmarks.syncs import Given, Node
from kproxy.addresses import Family
from kproxy.backends.core.base import LocalTraffic
from kproxy.backends.core.foreign_writes import ForeignWrites
from kproxy.backends.iptables.backend import IptablesBackend
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.iptables.layout_selection import layouts
from kproxy.kernel.xtables.detect import find_tools
from kproxy.kernel.xtables.programs import SubprocessXtables
from kproxy.kernel.xtables.types import Variant
from kproxy.state.kinds import Kind
from tests.kernel.namespace import enter_new

Build = Callable[[int], list[Given]]
"""Makes a Service with so many items, and its slices."""

PODS_IN_SLICE: Final = 1000

_WARM: Final = 50
"""The number of the small Services that are written first, so that everything shared exists."""


def _service(ports: int = 1, **spec: Any) -> dict[str, Any]:
    made = cluster.service(0)
    made["spec"] |= spec
    made["spec"]["ports"] = [{"name": f"p{n}", "port": 1000 + n, "protocol": "TCP"} for n in range(ports)]
    return made


def _slices(endpoints: int, ports: int = 1) -> list[Given]:
    pods = cluster.pods(0, endpoints)
    made = []
    for at in range(0, endpoints, PODS_IN_SLICE):
        piece = cluster.endpoint_slice(0, 1)
        piece["metadata"]["name"] = f"svc-0-{at}"
        piece["ports"] = [{"name": f"p{n}", "port": 2000 + n, "protocol": "TCP"} for n in range(ports)]
        piece["endpoints"] = [
            {"addresses": [ip], "nodeName": f"node-{n % 3}", "conditions": {"ready": True}}
            for n, ip in enumerate(pods[at : at + PODS_IN_SLICE])
        ]
        made.append((Kind.ENDPOINT_SLICE, piece))
    return made


def _endpoints(count: int, **spec: Any) -> list[Given]:
    return [(Kind.SERVICE, _service(**spec)), *_slices(count)]


def _ports(count: int) -> list[Given]:
    return [(Kind.SERVICE, _service(count)), *_slices(1, count)]


def _addresses(count: int) -> list[Given]:
    outside = [f"198.18.{n // 250}.{n % 250 + 1}" for n in range(count)]
    return [(Kind.SERVICE, _service(externalIPs=outside)), *_slices(1)]


def _ranges(count: int) -> list[Given]:
    made = _service(
        type="LoadBalancer",
        loadBalancerSourceRanges=[f"{20 + n // 65536}.{n // 256 % 256}.{n % 256}.0/25" for n in range(count)],
    )
    made["status"] = {"loadBalancer": {"ingress": [{"ip": "198.19.0.1"}]}}
    return [(Kind.SERVICE, made), *_slices(1)]


def _weighted(count: int) -> list[Given]:
    made = _service()
    made["metadata"]["annotations"] = {"kproxy.io/weights": json.dumps({"node:node-0": 3, "*": 1})}
    return [(Kind.SERVICE, made), *_slices(count)]


AXES: Final[Mapping[str, tuple[int, int, Build]]] = {
    "endpoint": (100, 5000, _endpoints),
    "endpoint with affinity": (10, 500, lambda n: _endpoints(n, sessionAffinity="ClientIP")),
    "endpoint with weight": (10, 200, _weighted),
    "port": (10, 1000, _ports),
    "outside address": (10, 1000, _addresses),
    "source range": (10, 2000, _ranges),
}
"""Few, many, and how they are made."""


def node(mode: str) -> Node:
    """A node of a mode, which knows nothing of the kernel yet."""
    if mode == "nftables":
        return nftables_sync.node()
    if mode == "ipvs":
        return ipvs_sync.node(Variant.LEGACY)
    xtables = SubprocessXtables(Family.IPV4, find_tools(Family.IPV4, Variant(mode)))
    config = IptablesConfig(Family.IPV4, local_traffic=LocalTraffic(cidr=cluster.CLUSTER_CIDR))
    usual, larger = layouts(config, "auto")
    backend = IptablesBackend(usual, xtables, ForeignWrites(xtables.generation), larger=larger)
    return Node(backend, "rules", lambda report: sum(report.rules.values()), _cpu)


def measure(mode: str, axis: str, count: int) -> dict[str, float]:
    """Processor time in µs and memory in bytes of one Service, in this process."""
    enter_new()
    measured = node(mode)
    measured.cpu = _cpu
    for n in range(1, _WARM + 1):
        measured.push((Kind.SERVICE, cluster.service(n)), (Kind.ENDPOINT_SLICE, cluster.endpoint_slice(n, 2)))
    given = AXES[axis][2](count)
    gc.collect()
    before = _resident()
    _, milliseconds, _ = measured.push(*given)
    gc.collect()
    return {"us": milliseconds * 1000, "bytes": _resident() - before}


def _resident() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _in_process(mode: str, axis: str, count: int) -> dict[str, float]:
    argv = [sys.executable, "-m", "benchmarks.object_costs", "--worker", json.dumps([mode, axis, count])]
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise click.ClickException(f"{mode}, {count} x {axis}: failed")
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=dict[str, float])


def _rows(modes: Sequence[str]) -> list[list[str]]:
    rows = []
    for axis, (few, many, _) in AXES.items():
        row = [axis]
        for mode in modes:
            small, large = _in_process(mode, axis, few), _in_process(mode, axis, many)
            each = {name: (large[name] - small[name]) / (many - few) for name in large}
            row += [f"{each['us']:.0f}", f"{each['bytes']:.0f}"]
        rows.append(row)
    return rows


@click.command()
@click.option("--modes", default="nftables,nft,legacy", show_default=True)
@click.option("--worker", hidden=True)
def main(modes: str, worker: str | None) -> None:
    """Measure what an object's items cost, in these modes."""
    if worker is not None:
        print(json.dumps(measure(*json.loads(worker))))
        return
    if os.geteuid() != 0:
        raise click.UsageError("needs root: every measurement gets a network namespace of its own")
    chosen = modes.split(",")
    table = Table(title="one more item of a Service")
    table.add_column("")
    for mode in chosen:
        table.add_column(f"{mode} µs", justify="right")
        table.add_column("bytes", justify="right")
    for row in _rows(chosen):
        table.add_row(*row)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
