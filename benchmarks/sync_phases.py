"""Where the time of a rule sync goes: decode, plan, render, apply; cold, and for one change.

Every measurement runs in a process and a network namespace of its own. `inside` times the rooms one by one in
one process; `outside` runs the real program against the embedded API server over HTTP and watches the
kernel's own change counter, so it does not take kproxy's word for anything.

    python -m benchmarks.sync_phases --sizes 1000,5000,10000 --endpoints 5
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
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
from kproxy.backends.iptables.layout import StandardLayout
from kproxy.backends.iptables.watch import ChangeWatch
from kproxy.kernel.xtables.detect import find_tools
from kproxy.kernel.xtables.programs import SubprocessXtables
from kproxy.kernel.xtables.types import Variant
from kproxy.plan.model import NodeView
from kproxy.plan.planner import Planner
from kproxy.state.decode import Kind, decode
from kproxy.state.tables import Tables
from kproxy.testing.apiserver import ApiServer

NODE = "node-0"
REPEATS = 15

QUIET = {Variant.NFT: 0.5, Variant.LEGACY: 3.0}
"""Seconds without a write before a change is made, so that the rest after the last sync is not measured."""

Result = dict[str, float]


def inside(size: int, endpoints: int, variant: Variant) -> Result:
    """Time each room in this process; milliseconds, and MB for memory."""
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
    xtables = SubprocessXtables(Family.IPV4, find_tools(Family.IPV4, variant))
    config = IptablesConfig(Family.IPV4, local_traffic=LocalTraffic(cidr=cluster.CLUSTER_CIDR))
    backend = IptablesBackend(StandardLayout(config), xtables, ChangeWatch(xtables.stamp))
    marks.append(clock())
    backend.update(plans.values())
    marks.append(clock())
    _ok(backend)
    marks.append(clock())
    tables.commit(inputs)

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
        for i in range(REPEATS)
    ]
    added = [
        push((Kind.SERVICE, cluster.service(i)), (Kind.ENDPOINT_SLICE, cluster.endpoint_slice(i, endpoints)))
        for i in range(size, size + REPEATS)
    ]
    return {
        "decode": (marks[1] - marks[0]) * 1000,
        "plan": (marks[2] - marks[1]) * 1000,
        "render": (marks[4] - marks[3]) * 1000,
        "apply": (marks[5] - marks[4]) * 1000,
        "endpoint changed": statistics.median(change),
        "service added": statistics.median(added),
    }


def _ok(backend: IptablesBackend) -> None:
    report = backend.sync()
    if report.error or report.failed:
        raise click.ClickException(f"sync failed: {report.error or report.failed}")


def outside(size: int, endpoints: int, variant: Variant) -> Result:
    """Run the program against the API server; milliseconds from the API write to the kernel's change."""
    from pyroute2 import IPRoute

    with IPRoute() as route:
        route.link("set", index=route.link_lookup(ifname="lo")[0], state="up")
    xtables = SubprocessXtables(Family.IPV4, find_tools(Family.IPV4, variant))
    with ApiServer() as api, tempfile.TemporaryDirectory() as folder:
        kubeconfig = Path(folder) / "kubeconfig"
        api.kubeconfig(kubeconfig)
        api.apply_many([cluster.service(i) for i in range(size)], validate=False)
        api.apply_many([cluster.endpoint_slice(i, endpoints) for i in range(size)], validate=False)
        log = Path(folder) / "log"
        argv = [sys.executable, "-m", "kproxy", "run", "--kubeconfig", str(kubeconfig)]
        argv += ["--hostname-override", NODE, "--cluster-cidr", cluster.CLUSTER_CIDR]
        argv += ["--iptables-variant", variant.value, "--healthz-bind-address", ""]
        began = time.perf_counter()
        with log.open("wb") as out, subprocess.Popen(argv, stderr=out) as program:
            try:
                last = f"KUBE-SERVICES -d {cluster.service(size - 1)['spec']['clusterIP']}/32".encode()
                _until(lambda: b"event=synced family=IPv4" in log.read_bytes(), program)
                cold = (time.perf_counter() - began) * 1000
                if last not in xtables.save("nat"):
                    raise click.ClickException("the last service is not in the kernel")
                change = [
                    _watched(
                        xtables,
                        program,
                        lambda n=n: api.apply(  # type: ignore[misc]
                            cluster.endpoint_slice(n * 7 % size, endpoints, gone=1), validate=False
                        ),
                    )
                    for n in range(REPEATS)
                ]
                memory = _peak(program.pid)
            finally:
                program.terminate()
    return {"cold start": cold, "API to kernel": statistics.median(change), "peak MB": memory}


def _watched(xtables: SubprocessXtables, program: subprocess.Popen[bytes], write: Callable[[], Any]) -> float:
    quiet_since, stamp = time.perf_counter(), xtables.stamp()
    while time.perf_counter() - quiet_since < QUIET[xtables.variant]:
        if (now := xtables.stamp()) != stamp:
            quiet_since, stamp = time.perf_counter(), now
    began = time.perf_counter()
    write()
    _until(lambda: xtables.stamp() != stamp, program)
    return (time.perf_counter() - began) * 1000


def _until(done: Callable[[], bool], program: subprocess.Popen[bytes]) -> None:
    deadline = time.perf_counter() + 300
    pause = threading.Event()
    while not done():
        pause.wait(0.0005)
        if program.poll() is not None or time.perf_counter() > deadline:
            raise click.ClickException("the program ended or did not get there in 5 minutes")


def _peak(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _measure(part: str, size: int, endpoints: int, variant: str) -> Result:
    argv = ["unshare", "--net", sys.executable, "-m", "benchmarks.sync_phases", "--worker", part]
    argv += ["--sizes", str(size), "--endpoints", str(endpoints), "--variants", variant]
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise click.ClickException(f"{part} {size} {variant} failed")
    return dict(json.loads(done.stdout))


@click.command()
@click.option("--sizes", default="1000,5000,10000", show_default=True, help="Numbers of services.")
@click.option("--endpoints", default=5, show_default=True, help="Endpoints of each service.")
@click.option("--variants", default="nft,legacy", show_default=True, help="Variants of iptables.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a row instead of a table.")
@click.option("--worker", type=click.Choice(["inside", "outside"]), hidden=True)
def main(sizes: str, endpoints: int, variants: str, as_json: bool, worker: str | None) -> None:
    """Measure rule sync phase by phase (needs root)."""
    if worker is not None:
        measure = inside if worker == "inside" else outside
        result = measure(int(sizes), endpoints, Variant(variants))
        result |= {f"{worker} peak RSS MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
        print(json.dumps(result))
        return
    if os.geteuid() != 0:
        raise click.UsageError("needs root: every measurement gets a network namespace of its own")
    columns = ["decode", "plan", "render", "apply", "endpoint changed", "service added"]
    columns += ["cold start", "API to kernel", "peak MB"]
    table = Table(title=f"milliseconds, N services x {endpoints} endpoints")
    for name in ("variant", "N", *columns):
        table.add_column(name, justify="right")
    for variant in variants.split(","):
        for size in map(int, sizes.split(",")):
            row = _measure("inside", size, endpoints, variant) | _measure("outside", size, endpoints, variant)
            if as_json:
                print(json.dumps({"variant": variant, "services": size, **row}))
            table.add_row(variant, str(size), *(f"{row[name]:.0f}" for name in columns))
    if not as_json:
        Console(width=140).print(table)


if __name__ == "__main__":
    main()
