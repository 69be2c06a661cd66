"""`kproxy diff`: what the next sync would change on this node, without changing it."""

import sys
from pathlib import Path
from typing import Any

import click

from kproxy import logs
from kproxy.cli.options import rule_options
from kproxy.cli.params import Duration, boolean, node_name


class _ErrorsAreOne(click.Command):
    """A command whose status 2 has a meaning of its own, so that bad flags end it with 1."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the arguments."""
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            raise click.ClickException(error.format_message()) from error


@click.command(cls=_ErrorsAreOne)
@click.option(
    "--kubeconfig",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="How to reach the API server; without it and --manifests, as a pod of the cluster.",
)
@click.option(
    "--manifests",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Take objects from the YAML and JSON files of this directory instead.",
)
@click.option("--hostname-override", metavar="NAME", help="This node's name, if it is not the host's.")
@rule_options
@click.option(
    "--iptables-variant",
    type=click.Choice(["legacy", "nft"]),
    help="Which iptables to use, instead of the one this node already uses.",
)
@boolean("--ipvs-strict-arp", default=False, help="As for `kproxy run`.")
@click.option(
    "--ipvs-graceful-period", type=Duration(), default="1h", show_default=True, help="As for `kproxy run`."
)
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
def diff(
    hostname_override: str | None,
    iptables_variant: str | None,
    against: Path | None,
    ip_family: str,
    output: str,
    **flags: Any,
) -> None:
    """Show what the next sync would change in this kernel, an object a line, without changing it.

    Exits 0 if nothing would change, 2 if something would, 1 if it cannot be told.
    """
    from kproxy.addresses import Family
    from kproxy.agent import difference
    from kproxy.agent.config import ConfigError, ProxyConfig
    from kproxy.kernel.xtables.types import Variant
    from kproxy.sources.cluster import ClusterAccessError
    from kproxy.sources.transport import ApiError

    logs.configure(-1)
    config = ProxyConfig(
        node_name=node_name(hostname_override),
        iptables_variant=Variant(iptables_variant) if iptables_variant else None,
        **flags,
    )
    family = Family.IPV4 if ip_family == "4" else Family.IPV6
    try:
        if against is not None:
            found = difference.of_dump(config, against, family)
        else:
            found = difference.of_this_node(config)
    except ConfigError as error:
        raise click.ClickException("\n".join(error.problems)) from error
    except (difference.DifferenceError, ClusterAccessError, ApiError, OSError) as error:
        raise click.ClickException(str(error)) from error
    if output == "json":
        click.echo(found.json())
    else:
        for line in found.lines():
            click.echo(line)
        for problem in (*found.problems, *(f"{key}: {why}" for key, why in found.failed.items())):
            click.echo(f"warning: {problem}", err=True)
    sys.exit(0 if found.empty else 2)
