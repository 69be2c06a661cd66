"""A long churn with restores that fail at random must end in the state of a fresh sync, in flat memory.

The real program runs in its own network namespace against the embedded API server, while services and
endpoints change without a pause. Its iptables-restore fails, is killed half-way or is killed after its
commit, at random. Then the failures stop, and the kernel is compared chain by chain with the result of one
full sync of the same objects in an empty namespace.

    python -m benchmarks.long_churn --minutes 10 --services 10000 --endpoints 5 --rate 100 --failures 0.02
"""

import itertools
import os
import random
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click

from benchmarks import cluster
from kproxy_lab.apiserver import ApiServer
from kproxy_lab.forked import Child
from kproxy_lab.lab import Namespace
from tests.support import reference_sync
from tests.support.faultinjection import BrokenTools, Sandbox, ToolFault

NODE = "node-0"
SAVE = "iptables-nft-save"
TOOL_FAULTS = (ToolFault.FAIL, ToolFault.KILL_HALFWAY, ToolFault.KILL_AFTER)
FAULT_SECONDS = 5.0
SAMPLES = 40
PATIENCE = 600.0
"""Seconds to wait for the first sync, and for the last."""

_EVENT = re.compile(r"\bevent=(\S+) family=IPv4\b")


@dataclass(frozen=True, slots=True)
class Settings:
    """`rate`: changes per second. `failures`: probability that a restore fails."""

    seconds: float
    services: int
    endpoints: int
    rate: float
    failures: float
    seed: int = 1


@dataclass(slots=True)
class Outcome:
    """The result: memory in MB at equal intervals, seconds from the last change to convergence."""

    changes: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    memory: list[float] = field(default_factory=list)
    settled_after: float = 0.0
    chains: int = 0
    differences: list[str] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """Difference in MB between the means of the last and of the second quarter."""
        quarter = max(1, len(self.memory) // 4)
        second, last = self.memory[quarter : 2 * quarter] or self.memory, self.memory[-quarter:]
        return sum(last) / len(last) - sum(second) / len(second)


class Churn:
    """Changes random services, one at a time; the state is in the API server only."""

    def __init__(self, api: ApiServer, settings: Settings) -> None:
        self._api = api
        self._settings = settings
        self._chance = random.Random(settings.seed)
        self._moved = itertools.count(1)
        self._gone: set[int] = set()

    def step(self) -> str:
        """Make one change and return its kind."""
        index = self._chance.randrange(self._settings.services)
        if index in self._gone:
            self._gone.remove(index)
            self._api.apply(cluster.service(index), validate=False)
            self._slice(index)
            return "service added"
        kind = self._chance.choices(
            ("endpoint moved", "endpoint gone", "no endpoints", "service deleted"), (70, 20, 5, 5)
        )[0]
        match kind:
            case "endpoint moved":
                self._slice(index, moved=next(self._moved))
            case "endpoint gone":
                self._slice(index, gone=1)
            case "no endpoints":
                self._slice(index, gone=self._settings.endpoints)
            case _:
                self._gone.add(index)
                self._api.delete("Service", "bench", f"svc-{index}")
        return kind

    def _slice(self, index: int, *, moved: int = 0, gone: int = 0) -> None:
        obj = cluster.endpoint_slice(index, self._settings.endpoints, moved=moved, gone=gone)
        self._api.apply(obj, validate=False)


def run(settings: Settings, progress: Callable[[str], None]) -> Outcome:
    """Run the churn and compare; `progress` receives lines of progress.

    Raises RuntimeError if kproxy ends, or does not sync in PATIENCE seconds.
    """
    outcome = Outcome()
    arguments = ["--hostname-override", NODE, "--cluster-cidr", cluster.CLUSTER_CIDR]
    arguments += ["--iptables-variant", "nft", "--healthz-bind-address", ""]
    with (
        reference_sync.namespace() as place,
        ApiServer(sockets=place.listen) as api,
        tempfile.TemporaryDirectory() as folder,
    ):
        directory = Path(folder)
        place.run(["ip", "link", "set", "lo", "up"])
        api.apply_many([cluster.service(n) for n in range(settings.services)], validate=False)
        slices = (cluster.endpoint_slice(n, settings.endpoints) for n in range(settings.services))
        api.apply_many(list(slices), validate=False)
        tools = BrokenTools(directory / "tools")
        config = api.kubeconfig(directory / "kubeconfig")
        argv = [*Sandbox(tools=tools.directory).command(), sys.executable, "-m", "kproxy", "run"]
        argv += ["--kubeconfig", str(config), *arguments]
        log = directory / "log"
        with log.open("wb") as out:
            program = place.popen(argv, stderr=out)
            _until(lambda: "event=synced family=IPv4" in log.read_text(encoding="utf-8"), program)
            progress(f"first sync of {settings.services} services is done")
            _churn(Churn(api, settings), settings, tools, program, outcome, progress)
            tools.disable()
            began = time.monotonic()
            wanted = _fresh(api, directory / "manifests", arguments)
            outcome.chains = len(wanted)
            _until(lambda: not reference_sync.differences(_rules(place), wanted), program, give_up=False)
            outcome.settled_after = time.monotonic() - began
            outcome.differences = reference_sync.differences(_rules(place), wanted)
            outcome.memory.append(resident_mb(program.pid))
        outcome.failures = tools.injected
        outcome.events = Counter(_EVENT.findall(log.read_text(encoding="utf-8")))
    return outcome


def _churn(
    churn: Churn,
    settings: Settings,
    tools: BrokenTools,
    program: Child,
    outcome: Outcome,
    progress: Callable[[str], None],
) -> None:
    began = time.monotonic()
    pause = threading.Event()
    faults: Iterator[ToolFault] = itertools.cycle(TOOL_FAULTS)
    next_fault = next_sample = 0.0
    for number in range(int(settings.seconds * settings.rate)):
        due = number / settings.rate
        pause.wait(max(0.0, began + due - time.monotonic()))
        if due >= next_fault:
            tools.enable(next(faults), chance=settings.failures)
            next_fault += min(FAULT_SECONDS, settings.seconds / len(TOOL_FAULTS))
        outcome.changes[churn.step()] += 1
        if due >= next_sample:
            outcome.memory.append(resident_mb(program.pid))
            next_sample += settings.seconds / SAMPLES
            progress(f"{due:.0f} s: {outcome.changes.total()} changes, {outcome.memory[-1]:.0f} MB")


def _fresh(api: ApiServer, directory: Path, arguments: list[str]) -> reference_sync.Rules:
    directory.mkdir()
    reference_sync.write_manifests(api, directory)
    with reference_sync.namespace() as place:
        reference_sync.sync_once(place, directory, arguments)
        return _rules(place)


def _rules(place: Namespace) -> reference_sync.Rules:
    return reference_sync.rules_in(place, SAVE)


def _until(done: Callable[[], bool], program: Child, *, give_up: bool = True) -> None:
    deadline = time.monotonic() + PATIENCE
    pause = threading.Event()
    while not done():
        if program.poll() is not None:
            raise RuntimeError(f"kproxy ended with status {program.returncode}")
        if time.monotonic() > deadline:
            if give_up:
                raise RuntimeError(f"not there after {PATIENCE:g} s")
            return
        pause.wait(0.2)


def resident_mb(pid: int) -> float:
    """The resident memory of a process in MB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@click.command()
@click.option("--minutes", default=10.0, show_default=True, help="How long services change.")
@click.option("--services", default=10_000, show_default=True, help="How many there are.")
@click.option("--endpoints", default=5, show_default=True, help="Endpoints of each.")
@click.option("--rate", default=100.0, show_default=True, help="Changes per second.")
@click.option("--failures", default=0.02, show_default=True, help="Chance of each restore to go wrong.")
@click.option("--growth", default=20.0, show_default=True, help="MB that memory may grow by.")
def main(minutes: float, services: int, endpoints: int, rate: float, failures: float, growth: float) -> None:
    """Run a long churn (needs root); exit 1 if the kernel differs from a fresh sync or memory grew."""
    if os.geteuid() != 0:
        raise click.UsageError("needs root: it runs in network namespaces of its own")
    outcome = run(Settings(minutes * 60, services, endpoints, rate, failures), click.echo)
    for name in ("changes", "failures", "events"):
        counted: Counter[str] = getattr(outcome, name)
        parts = ", ".join(f"{what} {count}" for what, count in counted.most_common())
        click.echo(f"{name}: {counted.total()} ({parts})")
    click.echo("memory, MB: " + " ".join(f"{each:.0f}" for each in outcome.memory))
    click.echo(f"memory grew by {outcome.growth:.1f} MB from the second quarter to the last")
    click.echo(f"converged {outcome.settled_after:.1f} s after the last change, including the reference sync")
    click.echo(f"chains: {outcome.chains}, different from a fresh sync: {len(outcome.differences)}")
    for line in outcome.differences[:20]:
        click.echo(f"  {line}")
    sys.exit(1 if outcome.differences or outcome.growth > growth else 0)


if __name__ == "__main__":
    main()
