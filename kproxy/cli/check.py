"""`kproxy check`: what this node lacks, with a remedy for each finding; also as an init container."""

import sys
from pathlib import Path
from typing import Any

import click

from kproxy import logs
from kproxy.cli.options import rule_options
from kproxy.cli.params import boolean, node_name


@click.command()
@click.option(
    "--kubeconfig",
    type=click.Path(dir_okay=False, path_type=Path),
    help="How to reach the API server; without it and --manifests, as a pod of the cluster.",
)
@click.option(
    "--manifests",
    type=click.Path(file_okay=False, path_type=Path),
    help="Objects come from this directory: do not ask an API server.",
)
@click.option("--hostname-override", metavar="NAME", help="This node's name, if it is not the host's.")
@rule_options
@click.option(
    "--iptables-variant",
    type=click.Choice(["legacy", "nft"]),
    help="Which iptables to use, instead of the one this node already uses.",
)
@boolean("--ipvs-strict-arp", default=False, help="As for `kproxy run`.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print it.")
def check(hostname_override: str | None, iptables_variant: str | None, output: str, **flags: Any) -> None:
    """Find out what this node lacks for kproxy with these flags, by trying it.

    Exits 0 if kproxy can do its work here, whatever warnings there are, and 1 if something stands in its way.
    What is tried is tried in a network namespace of its own or, where none can be made, in chains and sets
    that nothing uses, and taken away again.
    """
    from kproxy.agent.check.node import check_node
    from kproxy.agent.config import ConfigError, ProxyConfig
    from kproxy.kernel.xtables.types import Variant

    logs.configure(-1)
    config = ProxyConfig(
        node_name=node_name(hostname_override),
        iptables_variant=Variant(iptables_variant) if iptables_variant else None,
        **flags,
    )
    try:
        report = check_node(config)
    except ConfigError as error:
        raise click.UsageError("\n".join(error.problems)) from error
    if output == "json":
        click.echo(report.json())
    else:
        for line in report.lines():
            click.echo(line)
    sys.exit(0 if report.passed else 1)
