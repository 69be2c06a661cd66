"""Where the memory of nftables mode lies, stage by stage, at several sizes.

    python -m benchmarks.memory --sizes 10000 --endpoints 5,50

Each measurement runs in a process of its own, which takes the steps of a first sync without a kernel:
imports, streamed lists into the store, plans, rendered objects, encoded transactions, the end of the sync. A
row has the resident memory after a stage, its peak, the bytes of the new objects that it keeps, and its CPU
time. What a table does not explain is imports, free blocks, and buffers. The API objects are
written to files by another process, so that making them is not measured.
"""

import gc
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import click
import msgspec

NODE = "node-0"
COLUMNS = ("RSS MB", "peak MB", "objects MB", "cpu ms")

Row = dict[str, Any]


class Ruler:
    """Takes a row after each stage; `seen` are the objects that former stages keep."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._seen: dict[int, object] = {}
        self._cpu = time.process_time()

    def stage(self, name: str, *kept: object) -> None:
        """Note the end of a stage; `kept` are roots of what it keeps."""
        row: Row = {"stage": name, "cpu ms": (time.process_time() - self._cpu) * 1000}
        row |= {"RSS MB": _status("VmRSS"), "peak MB": _status("VmHWM")}
        # Sizes are counted in the end: the counting itself takes memory.
        self.rows.append(row | {"kept": kept})
        Path("/proc/self/clear_refs").write_text("5")
        self._cpu = time.process_time()

    def result(self) -> list[Row]:
        """The rows, with the sizes of objects."""
        for row in self.rows:
            row["objects MB"] = sum(map(self._size, row.pop("kept"))) / 1e6
        return self.rows

    def _size(self, root: object) -> int:
        """The bytes of a root and of everything that it refers to, without what was seen before."""
        total, waiting = 0, [root]
        while waiting:
            each = waiting.pop()
            if id(each) in self._seen or isinstance(each, (type, FunctionType, ModuleType)):
                continue
            self._seen[id(each)] = each
            # Objects that the collector tracks have a header of two words.
            total += sys.getsizeof(each)
            waiting += _parts(each)
        return total


def _parts(each: object) -> Iterator[object]:
    if isinstance(each, dict):
        yield from each.keys()
        yield from each.values()
    elif isinstance(each, (list, tuple, set, frozenset)):
        yield from each
    elif isinstance(each, msgspec.Struct):
        for name in each.__struct_fields__:
            yield getattr(each, name)
    elif not isinstance(each, (str, bytes, int, float)):
        yield from gc.get_referents(each)


def _status(field: str) -> float:
    """A size of this process, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(field)


def measure(folder: Path) -> list[Row]:
    """Take the steps of a first sync in this process."""
    ruler = Ruler()
    ruler.stage("interpreter and benchmark")
    import kproxy.agent.main
    import kproxy.cli.run
    import kproxy.logs  # first, as in the program: it keeps structlog from loading rich
    import kproxy.modes.nftables.mode  # noqa: F401
    from kproxy.addresses import Family
    from kproxy.backends.core.base import LocalTraffic
    from kproxy.backends.core.foreign_writes import ForeignWrites
    from kproxy.backends.nftables.backend import NftablesBackend
    from kproxy.backends.nftables.config import NftablesConfig
    from kproxy.kernel.malloc import trim, use_one_arena
    from kproxy.kernel.nft.messages import encode
    from kproxy.plan.model import NodeView
    from kproxy.plan.planner import Planner
    from kproxy.state.kinds import Kind
    from kproxy.state.store import ObjectStore

    use_one_arena()
    ruler.stage("imports")
    store = ObjectStore((Kind.SERVICE, Kind.ENDPOINT_SLICE))
    for kind in (Kind.SERVICE, Kind.ENDPOINT_SLICE):
        _in_thread(_list, folder, kind, store)
        ruler.stage(f"list of {kind.plural}", store.objects(kind))
    ruler.stage("indexes and marks", store)
    inputs = store.take_all([family.value for family in Family])
    ruler.stage("take", inputs)
    nft = _encoder(encode)
    backends, planners = [], []
    for family in Family:
        cidr = "10.128.0.0/9" if family is Family.IPV4 else "fd00::/64"
        config = NftablesConfig(family, local_traffic=LocalTraffic(cidr=cidr))
        backends.append(NftablesBackend(config, nft, ForeignWrites(nft.generation)))
        planners.append(Planner(family))
        plans = planners[-1].update(inputs, NodeView(NODE))
        ruler.stage(f"plan {family}", plans, planners[-1])
        backends[-1].update(plans.values())
        ruler.stage(f"render {family}", backends[-1])
    del plans
    for backend in backends:
        report = backend.sync()
        if report.error is not None:
            raise click.ClickException(report.error)
        store.commit({backend.family.value: ()})
        ruler.stage(f"write {backend.family}", report)
    del inputs
    gc.collect()
    gc.freeze()
    trim()
    ruler.stage("collect and freeze")
    return ruler.result()


def _in_thread(work: Callable[..., None], *arguments: object) -> None:
    thread = threading.Thread(target=work, args=arguments)
    thread.start()
    thread.join()


def _list(folder: Path, kind: Any, store: Any) -> None:
    """Read a streamed list from a file, as a reflector does."""
    from kproxy.sources.config import KubernetesSourceConfig
    from kproxy.sources.listing import EventReader, read_streamed_list, resources
    from kproxy.sources.stream import Stream

    config = KubernetesSourceConfig()
    with (folder / kind.plural).open("rb", buffering=0) as file:
        stream = Stream(_Response(file))
        (resource,) = resources(None, [kind])
        snapshot, _ = read_streamed_list(iter(EventReader(stream, kind, config)), stream, resource, config)
        snapshot.deliver(store)


class _Response:
    """The part of urllib3's response that Stream uses."""

    connection = None

    def __init__(self, file: Any) -> None:
        self.read1 = file.read


def _encoder(encode: Callable[[Any], object]) -> Any:
    """A kernel without tables, which takes every transaction."""

    class Encoder:
        def commit(self, transaction: Any) -> None:
            encode(transaction)

        def reading(self, *_: object, **__: object) -> None:
            return None

        def generation(self) -> None:
            return None

    return Encoder()


def write(folder: Path, size: int, endpoints: int) -> None:
    """Write the objects of a cluster as streamed lists."""
    from benchmarks import cluster

    for plural, make in (
        ("services", cluster.service),
        ("endpointslices", lambda index: cluster.endpoint_slice(index, endpoints)),
    ):
        with (folder / plural).open("wb") as file:
            for index in range(size):
                obj = make(index)
                obj["metadata"]["resourceVersion"] = str(index + 1)
                file.write(msgspec.json.encode({"type": "ADDED", "object": obj}) + b"\n")
            annotations = {"k8s.io/initial-events-end": "true"}
            end = {"metadata": {"resourceVersion": str(size + 1), "annotations": annotations}}
            file.write(msgspec.json.encode({"type": "BOOKMARK", "object": end}) + b"\n")


def _worker(*arguments: str) -> str:
    argv = [sys.executable, "-m", "benchmarks.memory", *arguments]
    return subprocess.run(argv, stdout=subprocess.PIPE, check=True, text=True).stdout


@click.command()
@click.option("--sizes", default="10000", show_default=True, help="Numbers of services.")
@click.option("--endpoints", default="5,50", show_default=True, help="Endpoints of each service.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a row instead of a table.")
@click.option("--folder", type=click.Path(path_type=Path), hidden=True)
@click.option("--write", "writes", is_flag=True, hidden=True)
def main(sizes: str, endpoints: str, folder: Path | None, *, as_json: bool, writes: bool) -> None:
    """Measure the memory of each stage of a first sync; needs no rights."""
    if folder is not None:
        if writes:
            write(folder, int(sizes), int(endpoints))
        else:
            print(json.dumps(measure(folder)))
        return
    for size in sizes.split(","):
        for each in endpoints.split(","):
            with tempfile.TemporaryDirectory() as name:
                _worker("--folder", name, "--write", "--sizes", size, "--endpoints", each)
                rows = json.loads(_worker("--folder", name))
            _show(f"{size} services x {each} endpoints, nftables mode", rows, as_json=as_json)


def _show(title: str, rows: list[Row], *, as_json: bool) -> None:
    if as_json:
        for row in rows:
            print(json.dumps({"of": title} | row))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    table.add_column("stage")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(row["stage"], *(f"{row[name]:,.1f}" for name in COLUMNS))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
