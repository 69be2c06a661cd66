"""`kproxy record`: write down what this node sees, for a bug report and for --replay."""

import sys
from pathlib import Path
from typing import Any

import click

from kproxy.cli.agent_address import address_option
from kproxy.cli.interrupts import interrupts
from kproxy.cli.options import setting_options
from kproxy.cli.params import Command, command_line
from kproxy.config.settings import NODE


def _seconds(context: click.Context, option: click.Parameter, text: str) -> float:
    from kproxy.config.durations import parse_duration

    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(f'"{text}" {error}', context, option) from error
    if seconds < 0:
        raise click.BadParameter(f'"{text}" is negative', context, option)
    return seconds


@click.command(cls=Command)
@click.argument("file", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--duration",
    default="1m",
    show_default=True,
    callback=_seconds,
    metavar="DURATION",
    help="How long changes are recorded; 0: only what is there now. Ctrl-C ends it earlier.",
)
@click.option("--anonymize", is_flag=True, help="Replace names and addresses; the rules keep their meaning.")
@address_option()
@setting_options(NODE)
@click.pass_context
def record(
    context: click.Context, /, file: Path, duration: float, address: str, *, anonymize: bool, **_: Any
) -> None:
    """Write objects, events, settings and facts of this node into a file, which only its owner may read.

    The command watches by itself, with the flags of `kproxy run`, and needs no root. If a kproxy runs here,
    its settings are the defaults of the flags, and its status, settings and last changes are added, but not
    with --anonymize. FILE.gz is compressed.

    With --replay, that recording is written again: to anonymize it, or to cut it off with --at.
    """
    from kproxy import logs
    from kproxy.config.durations import format_duration
    from kproxy.config.loading import log_flags
    from kproxy.config.model import ConfigError
    from kproxy.inspect.record import RecordingFailed, settings_of_agent
    from kproxy.inspect.record import record as write
    from kproxy.sources.base import SourceError
    from kproxy.sources.cluster import ClusterAccessError
    from kproxy.sources.errors import ApiError
    from kproxy.sources.recording import RecordingError

    logs.configure(-1)
    parsed = command_line(context)
    log_flags(parsed)
    try:
        settings = parsed.load(settings_of_agent(address))
        config = parsed.resolve(settings)
        parsed.check_files(config)
        with interrupts() as stop:
            if config.replay is None and duration:
                click.echo(f"recording for {format_duration(duration)}; Ctrl-C ends it earlier", err=True)
            done = write(
                config, settings, file, seconds=duration, address=address, anonymous=anonymize, stop=stop
            )
    except ConfigError as error:
        raise click.ClickException("\n".join(error.problems)) from error
    except (
        RecordingFailed,
        RecordingError,
        SourceError,
        ClusterAccessError,
        ApiError,
        OSError,
    ) as error:
        raise click.ClickException(str(error)) from error
    if done.agent:
        click.echo(f"warning: without the reports of an agent: {done.agent}", err=True)
    if done.full:
        click.echo("warning: the recording is full; later events are left out", err=True)
    click.echo(f"{file}: {done.events} events")
    sys.exit(1 if done.full else 0)
