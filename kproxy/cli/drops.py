"""`kproxy drops`: the flows that NetworkPolicies refused on this node, and why."""

import click

from kproxy.cli.params import Command


def _seconds(_context: click.Context, _option: click.Parameter, text: str | None) -> float | None:
    """Read a duration. Raises BadParameter."""
    from kproxy.config.durations import parse_duration

    if text is None:
        return None
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} {error}") from error
    if seconds <= 0:
        raise click.BadParameter(f"{text!r} is not longer than 0")
    return seconds


@click.command(cls=Command)
@click.option("-f", "--follow", is_flag=True, help="Go on with each refused flow, until it is interrupted.")
@click.option(
    "--since",
    callback=_seconds,
    metavar="DURATION",
    help="Only flows that were refused within this time, such as 30s or 10m; the kernel keeps 10 minutes.",
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    help="How to print it; json: an object a line.",
)
def drops(since: float | None, output: str, *, follow: bool) -> None:
    """List refused flows: both ends, the policies that isolate the pod, and what the nearest rule lacks.

    The kproxy that runs on this node is asked at a socket that answers root only. It works in its pod too, by
    kubectl exec.
    A flow is a source, a destination, a protocol and a port; its packets are counted together.
    """
    from kproxy import logs
    from kproxy.inspect import drops as known
    from kproxy.inspect.agent_client import AgentRefused, AgentUnavailable

    logs.configure(-1)
    noted: set[str] = set()
    try:
        for found in known.follow(since) if follow else (known.fetch(since),):
            for note in found.notes:
                if note not in noted:
                    click.echo(f"note: {note}", err=True)
                    noted.add(note)
            if found.more:
                click.echo(f"note: {found.more} more were refused", err=True)
            for each in found.flows:
                click.echo(each.flow.json() if output == "json" else each.flow.line())
    except (AgentRefused, AgentUnavailable) as error:
        raise click.ClickException(str(error)) from error
