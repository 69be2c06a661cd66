"""`kproxy bench`: measures the speed of this proxy, or of another one, on this machine."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from kproxy.cli.params import Command
from kproxy.config.durations import parse_duration

_QUICK: Mapping[str, Any] = {
    "sizes": ("100", "1000"),
    "repeats": 3,
    "connects": 300,
    "rest": 0.3,
    "idle": 1.0,
    "churn_time": 2.0,
    "starts": 1,
}
"""The settings of --quick; times in seconds."""


_SETTINGS: Mapping[str, str] = {
    "modes": "modes",
    "peers": "peers",
    "sizes": "sizes",
    "endpoints": "endpoints",
    "flags": "flags",
    "repeats": "repeats",
    "rest": "rest",
    "connects": "connects",
    "idle": "idle_seconds",
    "churn_time": "churn_seconds",
    "churn": "churn",
    "limit": "limit",
    "starts": "starts",
}
"""Parameters that say what is measured -> their names in the file of a run."""


class _List(click.ParamType[tuple[str, ...]]):
    name = "LIST"

    def convert(
        self, value: str | tuple[str, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        del param, ctx
        return value if isinstance(value, tuple) else tuple(part.strip() for part in value.split(","))


class _Duration(click.ParamType[float]):
    name = "DURATION"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return parse_duration(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(f"{value!r} {error}", param, ctx)


@click.command(cls=Command)
@click.option(
    "--modes",
    type=_List(),
    default="nft,legacy",
    show_default=True,
    help="Of nft, legacy, ipvs, nftables and ebpf.",
)
@click.option(
    "--sizes", type=_List(), default="100,1000,5000,10000", show_default=True, help="Numbers of services."
)
@click.option("--endpoints", type=_List(), default="5", show_default=True, help="Endpoints of each.")
@click.option(
    "--peer",
    "peers",
    multiple=True,
    metavar="NAME=COMMAND",
    help="Another proxy to time beside (repeatable).",
)
@click.option("--flag", "flags", multiple=True, help="A further flag of kproxy run (repeatable).")
@click.option("--repeats", default=15, show_default=True, help="How many single changes to time.")
@click.option(
    "--rest",
    type=_Duration(),
    default="1.2s",
    show_default=True,
    help="Pause between single changes; longer than the least time between two syncs of any contender.",
)
@click.option("--connects", default=2000, show_default=True, help="How many handshakes to time.")
@click.option("--idle", type=_Duration(), default="30s", show_default=True, help="How long to do nothing.")
@click.option("--churn-time", type=_Duration(), default="1m", show_default=True, help="How long to churn.")
@click.option(
    "--churn", default=0.01, show_default=True, help="Share of services that get new endpoints each second."
)
@click.option(
    "--limit",
    type=_Duration(),
    default="10m",
    show_default=True,
    help="How long a contender may take to come up; after that, the next one is timed.",
)
@click.option("--starts", default=3, show_default=True, help="How many cold starts and restarts to time.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default="bench-results",
    show_default=True,
    help="Directory of results.json and the plots.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Keep the finished stages of the run in --output, with its settings; start one if there is none.",
)
@click.option(
    "--time-limit",
    type=_Duration(),
    default=None,
    help="Begin no stage that would probably end later than this; exit status 3 if any is left.",
)
@click.option(
    "--stage-limit",
    type=_Duration(),
    default="9m",
    show_default=True,
    help="How long one contender at one size may take; what it has measured by then is kept.",
)
@click.option(
    "--against",
    metavar="FILE|COMMIT",
    help="Measure what that run measured, and compare. Exit status 2 if a figure is 1.3 times worse.",
)
@click.option(
    "--results",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Compare this finished run with --against; measure nothing.",
)
@click.option(
    "--history",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Directory that keeps finished runs.  [default: benchmarks/results of the source tree]",
)
@click.option("--no-history", is_flag=True, help="Do not keep the finished run in the history.")
@click.option(
    "--quick",
    is_flag=True,
    help="Small sizes and few repeats: a minute or two. Flags that are given beside it count.",
)
@click.pass_context
def bench(
    context: click.Context,
    /,
    modes: tuple[str, ...],
    sizes: tuple[str, ...],
    endpoints: tuple[str, ...],
    peers: tuple[str, ...],
    flags: tuple[str, ...],
    repeats: int,
    rest: float,
    connects: int,
    idle: float,
    churn_time: float,
    churn: float,
    limit: float,
    starts: int,
    output: Path,
    time_limit: float | None,
    stage_limit: float,
    against: str | None,
    results: Path | None,
    history: Path | None,
    *,
    resume: bool,
    no_history: bool,
    quick: bool,
) -> None:
    """Time rule syncs and packets from outside, against an embedded API server, on this kernel.

    Every contender gets a network namespace of its own: the node's rules are not touched. The benchmark is
    part of the source tree, and needs root.
    """
    try:
        from benchmarks.bench import command
        from benchmarks.bench.runs import BenchError
    except ImportError as error:
        raise click.ClickException(f"the benchmark runs from kproxy's source tree: {error}") from error

    if results is not None and against is None:
        raise click.UsageError("--results is compared with --against")
    values: dict[str, Any] = {
        "modes": list(modes),
        "peers": list(peers),
        "sizes": sizes,
        "endpoints": endpoints,
        "flags": list(flags),
        "repeats": _positive("--repeats", repeats),
        "rest": rest,
        "connects": connects,
        "idle_seconds": idle,
        "churn_seconds": churn_time,
        "churn": churn,
        "limit": limit,
        "starts": _positive("--starts", starts),
    }
    quickly = {_SETTINGS[name]: value for name, value in _quickly(context).items()} if quick else {}
    try:
        if results is not None and against is not None:
            sys.exit(command.compare(results, against, history))
        stored = command.stored(output, against, history, resume=resume)
        if stored is not None:
            given = {field for name, field in _SETTINGS.items() if _is_given(context, name)}
            values |= {name: getattr(stored, name) for name in values if name not in given}
        values |= quickly
        values["sizes"] = _counts("--sizes", values["sizes"])
        values["endpoints"] = _counts("--endpoints", values["endpoints"])
        order = command.Order(
            **values,
            output=output,
            resume=resume,
            time_limit=time_limit,
            stage_limit=stage_limit,
            against=against,
            history=None if no_history else history or command.HISTORY,
        )
        sys.exit(command.run(order))
    except BenchError as error:
        raise click.ClickException(str(error)) from error


def _quickly(context: click.Context) -> dict[str, Any]:
    """Return the values of --quick for parameters without a flag on the command line."""
    return {name: value for name, value in _QUICK.items() if not _is_given(context, name)}


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is not ParameterSource.DEFAULT


def _positive(flag: str, value: int) -> int:
    if value < 1:
        raise click.UsageError(f"{flag}: a number below 1")
    return value


def _counts(flag: str, texts: Sequence[str | int]) -> list[int]:
    try:
        counts = [int(text) for text in texts]
    except ValueError as error:
        raise click.UsageError(f"{flag}: {error}") from error
    if not counts or min(counts) < 1:
        raise click.UsageError(f"{flag}: a number below 1")
    return counts
