"""`kproxy changes`: what came to this node, and when the kernel had it."""

import click

from kproxy.cli.agent_address import address_option
from kproxy.cli.params import Command


@click.command(cls=Command)
@click.argument("service", required=False, metavar="[NAMESPACE/SERVICE]")
@address_option()
@click.option("-f", "--follow", is_flag=True, help="Go on with each new change, until it is interrupted.")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    help="How to print it; json: an object a line.",
)
def changes(service: str | None, address: str, output: str, *, follow: bool) -> None:
    """List the last changes of Services and their endpoints: when each arrived and was applied.

    The kproxy that runs on this node keeps the last 4,096.
    """
    import msgspec

    from kproxy import logs
    from kproxy.inspect import changes as known
    from kproxy.inspect.agent_client import AgentRefused, AgentUnavailable

    logs.configure(-1)
    if service is not None and service.count("/") != 1:
        raise click.UsageError(f"{service!r} is not NAMESPACE/SERVICE")
    try:
        found = known.follow(address, service) if follow else known.fetch(address, service).changes
        for each in found:
            click.echo(msgspec.json.encode(each) if output == "json" else each.line())
    except (AgentRefused, AgentUnavailable) as error:
        raise click.ClickException(str(error)) from error
