"""`kproxy bench`: measures the speed of this proxy, or of another one, on this machine."""

import sys
from collections.abc import Mapping
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
}
"""The settings of --quick; times in seconds."""


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
    help="Of nft, legacy, ipvs and nftables.",
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
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default="bench-results",
    show_default=True,
    help="Directory of results.json and the plots.",
)
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
    output: Path,
    *,
    quick: bool,
) -> None:
    """Time rule syncs and packets from outside, against an embedded API server, on this kernel.

    Every contender gets a network namespace of its own: the node's rules are not touched. The benchmark is
    part of the source tree, and needs root.
    """
    try:
        from benchmarks.bench.command import BenchError, Order, run
    except ImportError as error:
        raise click.ClickException(f"the benchmark runs from kproxy's source tree: {error}") from error

    quickly = _quickly(context) if quick else {}
    order = Order(
        modes=list(modes),
        peers=list(peers),
        sizes=_counts("--sizes", quickly.get("sizes", sizes)),
        endpoints=_counts("--endpoints", endpoints),
        flags=flags,
        repeats=quickly.get("repeats", repeats),
        rest=quickly.get("rest", rest),
        connects=quickly.get("connects", connects),
        idle_seconds=quickly.get("idle", idle),
        churn_seconds=quickly.get("churn_time", churn_time),
        churn=churn,
        limit=limit,
        output=output,
    )
    try:
        sys.exit(run(order))
    except BenchError as error:
        raise click.ClickException(str(error)) from error


def _quickly(context: click.Context) -> dict[str, Any]:
    """Return the values of --quick for parameters without a flag on the command line."""
    return {
        name: value
        for name, value in _QUICK.items()
        if context.get_parameter_source(name) is ParameterSource.DEFAULT
    }


def _counts(flag: str, texts: tuple[str, ...]) -> list[int]:
    try:
        counts = [int(text) for text in texts]
    except ValueError as error:
        raise click.UsageError(f"{flag}: {error}") from error
    if not counts or min(counts) < 1:
        raise click.UsageError(f"{flag}: a number below 1")
    return counts
