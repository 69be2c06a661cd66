"""`kproxy demo`: the main job on a small cluster in namespaces, with real packets."""

import sys
from pathlib import Path

import click

from kproxy.cli.params import Command


@click.command(cls=Command)
@click.option(
    "--manifests",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Services and EndpointSlices to show instead of manifests/examples, with addresses of the lab.",
)
@click.option(
    "--iptables-variant",
    type=click.Choice(["legacy", "nft"]),
    help="Which iptables to use, instead of the one this machine uses.",
)
@click.option("--keep", is_flag=True, help="Keep the lab running at the end, until Ctrl-C.")
def demo(manifests: Path | None, iptables_variant: str | None, *, keep: bool) -> None:
    """Show kproxy at work: an API server, a node with pods, a client, and the pod that answers each request.

    Needs root, and touches nothing outside network namespaces of its own, which it removes at the end.
    Without root it shows some of the rules that `kproxy render` prints. Exits 0 if all went as Kubernetes
    says it should.
    """
    from kproxy import logs
    from kproxy_lab.demo.examples import UnusableExamplesError
    from kproxy_lab.demo.story import run

    logs.configure()
    try:
        status = run(manifests, iptables_variant, keep=keep)
    except UnusableExamplesError as error:
        raise click.ClickException(str(error)) from error
    sys.exit(status)
