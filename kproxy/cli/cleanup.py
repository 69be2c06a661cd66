"""`kproxy cleanup`: take away what kproxy put into the kernel."""

import sys

import click

from kproxy import logs


@click.command()
@click.option("-v", "verbosity", type=int, default=0, help="Log verbosity.")
def cleanup(verbosity: int) -> None:
    """Remove everything that kproxy made from this node's kernel, and nothing else."""
    from kproxy.agent.removal import remove_everything

    logs.configure(verbosity)
    sys.exit(0 if remove_everything() else 1)
