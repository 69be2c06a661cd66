"""`kproxy render`: print the rules on stdout, without root and without access to the kernel."""

from pathlib import Path
from typing import Any

import click

from kproxy.cli.options import setting_options
from kproxy.cli.params import Command, command_line
from kproxy.config.settings import RULES


@click.command(cls=Command)
@click.option(
    "--manifests",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Directory of YAML and JSON files; this or --replay is needed.",
)
@click.option("--node", metavar="NAME", help="The node to render for; default: this host's name.")
@click.option(
    "--ip-family", type=click.Choice(["4", "6"]), default="4", show_default=True, help="IPv4 or IPv6 rules."
)
@setting_options(RULES)
@click.pass_context
def render(context: click.Context, /, node: str | None, ip_family: str, **_: Any) -> None:
    """Print everything that a node would get for the services in a directory of manifests or in a recording.

    In iptables mode this is the input of iptables-restore; in IPVS mode also that of ipvsadm-restore, ip and
    ipset; in nftables mode that of nft. With --network-policy, the table of policies follows as input of nft.
    """
    import msgspec

    from kproxy import logs
    from kproxy.addresses import Family
    from kproxy.config.loading import FileError, log_flags
    from kproxy.config.model import ConfigError
    from kproxy.inspect.render import render_manifests
    from kproxy.modes.registry import mode_registry

    logs.configure()
    family = Family.IPV4 if ip_family == "4" else Family.IPV6
    parsed = command_line(context)
    log_flags(parsed)
    try:
        config = parsed.resolve(parsed.load())
        if node:
            config = msgspec.structs.replace(config, node_name=node.strip().lower())
        text, problems = render_manifests(config, family, mode_registry())
    except FileError as error:
        raise click.ClickException("\n".join(error.problems)) from error
    except ConfigError as error:
        raise click.UsageError("\n".join(error.problems)) from error
    for problem in problems:
        click.echo(f"warning: {problem}", err=True)
    click.echo(text, nl=False)
