"""`kproxy status`: show the state of the kproxy on this node."""

import sys
from datetime import UTC, datetime

import click

from kproxy.cli.agent_address import address_option
from kproxy.cli.params import Command

_TIMEOUT = "1m"


def _seconds(context: click.Context, option: click.Parameter, text: str | None) -> float | None:
    from kproxy.config.durations import parse_duration

    if text is None:
        return None
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(f'"{text}" {error}', context, option) from error
    if seconds < 0:
        raise click.BadParameter(f'"{text}" is negative', context, option)
    return seconds


@click.command(
    cls=Command,
    epilog="Exit status: 0 if the agent is healthy; 1 if it is not, or does not answer; 3 if it is healthy, "
    "but something is wrong with objects: a rejected object, an invalid field, a service that the kernel "
    "refuses or that works only in part, a NetworkPolicy that cannot be obeyed.",
)
@address_option()
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    help="Default: tables on a terminal, JSON elsewhere.",
)
@click.option("--wait", is_flag=True, help="Wait until the agent is healthy and has synced.")
@click.option(
    "--timeout",
    callback=_seconds,
    metavar="DURATION",
    help=f"The longest time for --wait, such as 30s; 0: ask once.  [default: {_TIMEOUT}]",
)
@click.pass_context
def status(
    context: click.Context, /, address: str, output: str | None, wait: bool, timeout: float | None
) -> None:
    """Show what runs on this node, since when, and what is wrong."""
    from kproxy import logs
    from kproxy.config.durations import format_duration, parse_duration
    from kproxy.telemetry import status_client
    from kproxy.telemetry.status import UNHEALTHY, encode

    if timeout is not None and not wait:
        raise click.UsageError("--timeout needs --wait", context)
    logs.configure()
    seconds = parse_duration(_TIMEOUT) if timeout is None else timeout
    try:
        found = status_client.wait(address, seconds) if wait else status_client.fetch(address)
    except status_client.StatusUnavailable as error:
        raise click.ClickException(str(error)) from error
    if output == "table" or (output is None and sys.stdout.isatty()):
        from kproxy.telemetry.status_screen import screen

        click.echo(screen(found, datetime.now(UTC)), nl=False)
    else:
        click.echo(encode(found), nl=False)
    if wait and found.exit_code == UNHEALTHY:
        reasons = "; ".join(each.message for each in found.conditions)
        click.echo(f"Error: not healthy after {format_duration(seconds)}: {reasons}", err=True)
    sys.exit(found.exit_code)
