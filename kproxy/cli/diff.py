"""`kproxy diff`: show the changes of the next sync on this node, without making them."""

import sys
from pathlib import Path
from typing import Any

import click

from kproxy.cli.options import setting_options
from kproxy.cli.params import Command, command_line
from kproxy.config.settings import NODE


@click.command(cls=Command)
@setting_options(NODE)
@click.option(
    "--against",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Compare with what iptables-save printed into this file instead of the kernel; needs no root.",
)
@click.option(
    "--ip-family",
    type=click.Choice(["4", "6"]),
    default="4",
    show_default=True,
    help="The family of the file given by --against.",
)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print it.")
@click.pass_context
def diff(context: click.Context, /, against: Path | None, ip_family: str, output: str, **_: Any) -> None:
    """Show what the next sync would change in this kernel, an object a line, without changing it.

    Exits 0 if nothing would change, 2 if something would, 1 on an error.
    """
    from kproxy import logs
    from kproxy.addresses import Family
    from kproxy.config.loading import log_flags
    from kproxy.config.model import ConfigError
    from kproxy.inspect import diff
    from kproxy.modes.base import PreviewError
    from kproxy.modes.registry import mode_registry
    from kproxy.sources.cluster import ClusterAccessError
    from kproxy.sources.errors import ApiError

    logs.configure(-1)
    parsed = command_line(context)
    log_flags(parsed)
    family = Family.IPV4 if ip_family == "4" else Family.IPV6
    try:
        config = parsed.resolve(parsed.load())
        parsed.check_files(config)
        found = (
            diff.of_this_node(config, mode_registry())
            if against is None
            else diff.of_dump(config, against, family, mode_registry())
        )
    except ConfigError as error:
        raise click.ClickException("\n".join(error.problems)) from error
    except (PreviewError, ClusterAccessError, ApiError, OSError) as error:
        raise click.ClickException(str(error)) from error
    if output == "json":
        click.echo(found.json())
    else:
        for line in found.lines():
            click.echo(line)
        for problem in (*found.problems, *(f"{key}: {why}" for key, why in found.failed.items())):
            click.echo(f"warning: {problem}", err=True)
    sys.exit(0 if found.empty else 2)
