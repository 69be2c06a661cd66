"""`kproxy check`: probe this node, with a remedy for each finding; also runs as an init container."""

import sys
from typing import Any

import click

from kproxy.cli.options import setting_options
from kproxy.cli.params import Command, command_line
from kproxy.config.settings import NODE


@click.command(cls=Command)
@setting_options(NODE)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print it.")
@click.pass_context
def check(context: click.Context, /, output: str, **_: Any) -> None:
    """Find out what this node lacks for kproxy with these flags, by trying it.

    Exits 0 if kproxy can work here, even with warnings, and 1 if it cannot. Probes run in a temporary network
    namespace or, if none can be made, in chains and sets that nothing else uses, and are removed afterwards.
    """
    from kproxy import logs
    from kproxy.config.loading import FileError, log_flags
    from kproxy.config.model import ConfigError
    from kproxy.inspect.preflight.report import check_node
    from kproxy.modes.registry import mode_registry

    logs.configure(-1)
    parsed = command_line(context)
    log_flags(parsed)
    try:
        report = check_node(parsed.resolve(parsed.load()), mode_registry())
    except FileError as error:
        raise click.ClickException("\n".join(error.problems)) from error
    except ConfigError as error:
        raise click.UsageError("\n".join(error.problems)) from error
    if output == "json":
        click.echo(report.json())
    else:
        for line in report.lines():
            click.echo(line)
    sys.exit(0 if report.passed else 1)
