"""The time of each phase of a rule sync: decode, plan, render, apply; cold, and for one change.

Every measurement runs in a process and a network namespace of its own, and times the phases one by one
without the rest of the program; `kproxy bench` times the program from outside.

    python -m benchmarks.sync_phases --sizes 1000,5000,10000 --endpoints 5
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks import cluster
from kproxy.addresses import Family
from kproxy.backends.core.base import Backend, LocalTraffic
from kproxy.backends.core.foreign_writes import ForeignWrites
from kproxy.backends.iptables.backend import IptablesBackend
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.iptables.layout_selection import layouts
from kproxy.backends.iptables.names import LAYOUTS
from kproxy.backends.nftables.backend import NftablesBackend
from kproxy.backends.nftables.config import NftablesConfig
from kproxy.kernel.nft.netlink import NetlinkNft
from kproxy.kernel.xtables.detect import find_tools
from kproxy.kernel.xtables.programs import SubprocessXtables
from kproxy.kernel.xtables.types import Variant
from kproxy.plan.model import NodeView
from kproxy.plan.planner import Planner
from kproxy.state.decode import decode
from kproxy.state.kinds import Kind
from kproxy.state.tables import Tables

NODE = "node-0"
REPEATS = 15

MODES = ("nft", "legacy", "nftables")

Result = dict[str, float]


def new_backend(mode: str, layout: str = "auto") -> Backend:
    """Return the backend of one of MODES, for the network namespace of this process."""
    local_traffic = LocalTraffic(cidr=cluster.CLUSTER_CIDR)
    if mode == "nftables":
        nft = NetlinkNft()
        return NftablesBackend(
            NftablesConfig(Family.IPV4, local_traffic=local_traffic), nft, ForeignWrites(nft.generation)
        )
    xtables = SubprocessXtables(Family.IPV4, find_tools(Family.IPV4, Variant(mode)))
    usual, larger = layouts(IptablesConfig(Family.IPV4, local_traffic=local_traffic), layout)
    return IptablesBackend(usual, xtables, ForeignWrites(xtables.generation), larger=larger)


def measure(size: int, endpoints: int, mode: str, layout: str = "auto", repeats: int = REPEATS) -> Result:
    """Time each phase in this process; milliseconds. Without repeats, only those of a cold start."""
    raw_services = [msgspec.json.encode(cluster.service(i)) for i in range(size)]
    raw_slices = [msgspec.json.encode(cluster.endpoint_slice(i, endpoints)) for i in range(size)]
    clock = time.perf_counter
    marks = [clock()]
    tables = Tables()
    tables.replace(Kind.SERVICE, [decode(Kind.SERVICE, raw) for raw in raw_services])
    tables.replace(Kind.ENDPOINT_SLICE, [decode(Kind.ENDPOINT_SLICE, raw) for raw in raw_slices])
    marks.append(clock())
    planner, view = Planner(Family.IPV4), NodeView(NODE)
    inputs = tables.dirty()
    plans = planner.update(inputs, view)
    marks.append(clock())
    backend = new_backend(mode, layout)
    marks.append(clock())
    backend.update(plans.values())
    marks.append(clock())
    _ok(backend)
    marks.append(clock())
    tables.commit(inputs)
    cold = {
        "decode": (marks[1] - marks[0]) * 1000,
        "plan": (marks[2] - marks[1]) * 1000,
        "render": (marks[4] - marks[3]) * 1000,
        "apply": (marks[5] - marks[4]) * 1000,
    }
    if not repeats:
        return cold

    def push(*raws: tuple[Kind, dict[str, Any]]) -> float:
        encoded = [(kind, msgspec.json.encode(obj)) for kind, obj in raws]
        began = clock()
        for kind, raw in encoded:
            tables.upsert(decode(kind, raw))
        changed = tables.dirty()
        backend.update(planner.update(changed, view).values())
        _ok(backend)
        tables.commit(changed)
        return (clock() - began) * 1000

    change = [
        push((Kind.ENDPOINT_SLICE, cluster.endpoint_slice(i * 7 % size, endpoints, moved=i + 1)))
        for i in range(repeats)
    ]
    added = [
        push((Kind.SERVICE, cluster.service(i)), (Kind.ENDPOINT_SLICE, cluster.endpoint_slice(i, endpoints)))
        for i in range(size, size + repeats)
    ]
    return {
        **cold,
        "endpoint changed": statistics.median(change),
        "service added": statistics.median(added),
    }


def _ok(backend: Backend) -> None:
    report = backend.sync()
    if report.error or report.failed:
        raise click.ClickException(f"sync failed: {report.error or report.failed}")


def _measure(size: int, endpoints: int, mode: str, layout: str) -> Result:
    argv = ["unshare", "--net", sys.executable, "-m", "benchmarks.sync_phases", "--worker"]
    argv += ["--sizes", str(size), "--endpoints", str(endpoints), "--modes", mode, "--layout", layout]
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise click.ClickException(f"{size} {mode} failed")
    return dict(json.loads(done.stdout))


@click.command()
@click.option("--sizes", default="1000,5000,10000", show_default=True, help="Numbers of services.")
@click.option("--endpoints", default=5, show_default=True, help="Endpoints of each service.")
@click.option("--modes", default=",".join(MODES), show_default=True, help="Of nft, legacy and nftables.")
@click.option(
    "--layout", type=click.Choice(LAYOUTS), default="auto", show_default=True, help="Layout of rules."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a row instead of a table.")
@click.option("--worker", is_flag=True, hidden=True)
def main(sizes: str, endpoints: int, modes: str, layout: str, *, as_json: bool, worker: bool) -> None:
    """Measure rule sync phase by phase (needs root)."""
    if worker:
        result = measure(int(sizes), endpoints, modes, layout)
        result["peak MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(result))
        return
    if os.geteuid() != 0:
        raise click.UsageError("needs root: every measurement gets a network namespace of its own")
    columns = ["decode", "plan", "render", "apply", "endpoint changed", "service added", "peak MB"]
    table = Table(title=f"milliseconds, N services x {endpoints} endpoints")
    for name in ("mode", "N", *columns):
        table.add_column(name, justify="right")
    for mode in modes.split(","):
        for size in map(int, sizes.split(",")):
            row = _measure(size, endpoints, mode, layout)
            if as_json:
                print(json.dumps({"mode": mode, "services": size, **row}))
            table.add_row(mode, str(size), *(f"{row[name]:.0f}" for name in columns))
    if not as_json:
        Console(width=140).print(table)


if __name__ == "__main__":
    main()
