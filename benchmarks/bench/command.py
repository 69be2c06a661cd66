"""Run the scenarios for every contender and size, each in a process and a network namespace of its own."""

import compileall
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import kproxy
from benchmarks.bench.contenders import Contender, contenders
from benchmarks.bench.report import markdown, show
from benchmarks.bench.results import Row, machine
from benchmarks.bench.scenarios import Plan

SCENARIOS = 8


class BenchError(Exception):
    """The benchmark cannot run with these settings."""


@dataclasses.dataclass(frozen=True)
class Order:
    """The requested run; `churn` is the share of all services that changes each second."""

    modes: list[str]
    peers: list[str]
    sizes: list[int]
    endpoints: list[int]
    flags: tuple[str, ...]
    repeats: int
    rest: float
    connects: int
    idle_seconds: float
    churn_seconds: float
    churn: float
    limit: float
    output: Path


def run(order: Order) -> int:
    """Measure, write results.json and the plots, print the tables; 0 if every contender finished.

    Raises BenchError.
    """
    if os.geteuid() != 0:
        raise BenchError("root is needed: every measurement gets a network namespace of its own")
    try:
        who = contenders(order.modes, order.peers, order.flags)
    except ValueError as error:
        raise BenchError(str(error)) from error
    # As an installation leaves them: the environment may forbid Python to do so when it first imports them.
    compileall.compile_dir(Path(kproxy.__file__).parent, quiet=1)
    order.output.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    console = Console(width=None if sys.stdout.isatty() else 160)
    description = machine()
    rows: list[Row] = []
    for row in _measure(order, who, Console(stderr=True)):
        rows.append(row)
        text = json.dumps({"machine": description, "command": sys.argv[1:], "rows": rows}, indent=1)
        (order.output / "results.json").write_text(text)
    (order.output / "table.md").write_text(markdown(rows))
    show(rows, console)
    files = draw_plots(rows, order.output)
    console.print(f"{order.output / 'results.json'}" + "".join(f"\n{file}" for file in files))
    return 1 if any("gave_up" in row for row in rows) else 0


def draw_plots(rows: Sequence[Row], folder: Path) -> list[Path]:
    """The plots, if the library that draws them is installed."""
    try:
        from benchmarks.bench.plots import draw
    except ImportError:
        return []
    return draw(rows, folder)


def _measure(order: Order, who: Sequence[Contender], console: Console) -> Iterator[Row]:
    cases = [(size, per, each) for size in order.sizes for per in order.endpoints for each in who]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, refresh_per_second=1) as progress:
        task = progress.add_task("", total=len(cases) * SCENARIOS)
        for number, (size, per, contender) in enumerate(cases):
            plan = Plan(
                services=size,
                endpoints=per,
                repeats=order.repeats,
                rest=order.rest,
                connects=order.connects,
                idle_seconds=order.idle_seconds,
                churn_seconds=order.churn_seconds,
                churn_rate=max(1.0, size * order.churn),
                limit=order.limit,
            )
            setting = json.dumps(
                {"contender": dataclasses.asdict(contender), "plan": dataclasses.asdict(plan)}
            )
            argv = ["unshare", "--net", sys.executable, "-m", "benchmarks.bench.scenarios", setting]
            title = f"{contender.name} {contender.mode} {size} x {per}"
            said: list[str] = []
            with tempfile.TemporaryFile("w+") as out:
                with subprocess.Popen(argv, stdout=out, stderr=subprocess.PIPE, text=True) as worker:
                    try:
                        for line in worker.stderr or ():
                            said.append(line)
                            done = min(len(said), SCENARIOS) - 1
                            progress.update(task, description=f"{title}: {line.strip()}"[:70])
                            progress.update(task, completed=number * SCENARIOS + done)
                    except BaseException:
                        worker.terminate()
                        raise
                out.seek(0)
                answer = out.read()
            progress.update(task, completed=(number + 1) * SCENARIOS)
            if worker.returncode:
                failed = f"the benchmark itself failed:\n{''.join(said[-15:])}"
                row = {"contender": contender.name, "mode": contender.mode, "plan": dataclasses.asdict(plan)}
                yield {**row, "result": {}, "gave_up": failed}
            else:
                yield json.loads(answer)
