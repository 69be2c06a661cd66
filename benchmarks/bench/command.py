"""One run: stage by stage, each kept when it is done; then tables, plots, history and comparison."""

import compileall
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import kproxy
from benchmarks.bench import comparison, measuring
from benchmarks.bench.machine import ROOT, machine, source
from benchmarks.bench.report import markdown, show
from benchmarks.bench.results import Row
from benchmarks.bench.runs import SETTINGS, BenchError, Run, Settings, find, now

HISTORY = ROOT / "benchmarks" / "results"
"""Where finished runs are kept by default."""

STAGE_LIMIT = 540.0
"""Seconds that a stage may take by default: with its start and end it fits ten minutes."""

FINISHED, GAVE_UP, SLOWER, UNFINISHED = range(4)
"""Exit statuses."""


@dataclass(frozen=True)
class Order(Settings):
    """The requested run; times in seconds.

    With `resume`, stages that the file in `output` already has are kept. No stage begins that would
    probably not end within `time_limit`, if there is one. `against` is a file or a commit to compare with.
    `history` is the directory that keeps the finished run, if any.
    """

    output: Path
    resume: bool = False
    time_limit: float | None = None
    stage_limit: float = STAGE_LIMIT
    against: str | None = None
    history: Path | None = None

    def settings(self) -> Settings:
        """Return what is measured."""
        return Settings(**{name: getattr(self, name) for name in SETTINGS})


def run(order: Order) -> int:
    """Measure, write results.json and the plots, print the tables; returns an exit status.

    FINISHED if every contender did what was asked, GAVE_UP if one did not, SLOWER if a comparison found a
    regression, UNFINISHED if the time limit came first. Raises BenchError.
    """
    old = Run.load(_against(order.against, order.history)) if order.against is not None else None
    if os.geteuid() != 0:
        raise BenchError("root is needed: every measurement gets a network namespace of its own")
    stages = order.stages()
    # As an installation leaves them: the environment may forbid Python to do so when it first imports them.
    compileall.compile_dir(Path(kproxy.__file__).parent, quiet=1)
    order.output.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    console = Console(width=None if sys.stdout.isatty() else 160)
    path = order.output / "results.json"
    measured = _started(order, path)
    fresh = _measure(order, measured, path, Console(stderr=True))
    rows = measured.rows
    if len(rows) < len(stages):
        how = f"kproxy bench --resume --output={order.output}"
        console.print(f"{len(rows)} of {len(stages)} stages are done; {how}", soft_wrap=True)
        return UNFINISHED
    (order.output / "table.md").write_text(markdown(rows))
    show(rows, console)
    files = [path, *draw_plots(rows, order.output)]
    if fresh and order.history is not None and not any("failed" in row for row in rows):
        files += _kept(measured, order.history, console)
    console.print("\n".join(map(str, files)), soft_wrap=True)
    if old is not None and comparison.show(old, measured, console):
        return SLOWER
    return GAVE_UP if any("gave_up" in row for row in rows) else FINISHED


def compare(results: Path, against: str, history: Path | None) -> int:
    """Compare a finished run with another and measure nothing; FINISHED or SLOWER. Raises BenchError."""
    old, new = Run.load(_against(against, history)), Run.load(results)
    console = Console(width=None if sys.stdout.isatty() else 160)
    return SLOWER if comparison.show(old, new, console) else FINISHED


def stored(output: Path, against: str | None, history: Path | None, *, resume: bool) -> Settings | None:
    """Return the settings of the run to continue, or else of the run to compare with. Raises BenchError."""
    path = output / "results.json"
    if resume and path.exists():
        return Settings(**Run.load(path).settings)
    if against is not None:
        old = Settings(**Run.load(_against(against, history)).settings)
        return dataclasses.replace(old, peers=[peer for peer in old.peers if not peer.endswith("=...")])
    return None


def draw_plots(rows: Sequence[Row], folder: Path) -> list[Path]:
    """The plots, if the library that draws them is installed."""
    try:
        from benchmarks.bench.plots import draw
    except ImportError:
        return []
    return draw(rows, folder)


def _against(name: str, history: Path | None) -> Path:
    return find(name, HISTORY if history is None else history)


def _started(order: Order, path: Path) -> Run:
    settings = dataclasses.asdict(order.settings())
    fresh = Run(settings, source(), machine(), sys.argv[1:], now())
    if not order.resume or not path.exists():
        return fresh
    found = Run.load(path)
    if differing := [name for name in SETTINGS if found.settings[name] != settings[name]]:
        name = differing[0]
        raise BenchError(f"{path} is of a run with other settings: {name} {found.settings[name]}")
    if reason := found.cannot_continue(fresh.source, fresh.machine):
        raise BenchError(f"{path} cannot be continued: {reason}")
    return found


def _measure(order: Order, measured: Run, path: Path, console: Console) -> int:
    """Measure the stages that have no row yet, while the time lasts, but at least one; return how many."""
    stages = order.stages()
    began, fresh = time.monotonic(), 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, refresh_per_second=1) as progress:
        task = progress.add_task("", total=sum(measuring.steps(plan) for _, plan in stages))
        passed = 0
        for contender, plan in stages:
            title = f"{contender.name} {contender.mode} {plan.services} x {plan.endpoints}"
            if measured.row_of(contender, plan) is None:
                left = None if order.time_limit is None else began + order.time_limit - time.monotonic()
                if fresh and left is not None and measuring.expected(contender, plan, measured.rows) > left:
                    break

                def say(what: str, title: str = title) -> None:
                    progress.update(task, description=f"{title}: {what}"[:70], advance=1)

                row = measuring.measure(contender, plan, order.stage_limit, say)
                measured.add(row)
                measured.save(path)
                fresh += 1
            passed += measuring.steps(plan)
            progress.update(task, completed=passed)
    return fresh


def _kept(measured: Run, history: Path, console: Console) -> list[Path]:
    try:
        return [measured.keep(history)]
    except OSError as error:
        console.print(f"not kept in the history: {error}", soft_wrap=True)
        return []
