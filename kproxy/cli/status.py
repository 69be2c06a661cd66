"""`kproxy status`: how the kproxy on this node is doing."""

import sys
from datetime import UTC, datetime

import click

from kproxy import logs


@click.command()
@click.option(
    "--address",
    default="127.0.0.1:10249",
    show_default=True,
    metavar="ADDRESS",
    help="The --metrics-bind-address of the kproxy to ask.",
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    help="Default: tables on a terminal, JSON elsewhere.",
)
def status(address: str, output: str | None) -> None:
    """Tell what runs on this node, since when, and what is wrong; exits 0 if nothing is, else 1."""
    from kproxy.agent.status import encode
    from kproxy.agent.status_client import StatusUnavailable, fetch

    logs.configure()
    try:
        found = fetch(address)
    except StatusUnavailable as error:
        raise click.ClickException(str(error)) from error
    if output == "table" or (output is None and sys.stdout.isatty()):
        from kproxy.agent.status_screen import screen

        click.echo(screen(found, datetime.now(UTC)), nl=False)
    else:
        click.echo(encode(found), nl=False)
    sys.exit(0 if found.good else 1)
