"""`kproxy cleanup`: take away what kproxy put into the kernel."""

import sys

import click

from kproxy import logs
from kproxy.cli.params import Command


@click.command(cls=Command)
@click.option("-v", "verbosity", type=int, default=0, help="Log verbosity.")
@click.option(
    "--peer",
    type=click.Choice(["kube-proxy"]),
    help="Remove also what a former kube-proxy left, in any of its modes; stop it first.",
)
def cleanup(verbosity: int, peer: str | None) -> None:
    """Remove everything that kproxy made from this node's kernel, and nothing else.

    The kubelet's chains stay, and so do rules, sets, virtual servers and tables of other programs.
    """
    from kproxy.agent.removal import remove_everything

    logs.configure(verbosity)
    sys.exit(0 if remove_everything(peer=peer is not None) else 1)
