"""`kproxy cleanup`: remove kproxy's objects from the kernel."""

import sys

import click

from kproxy.cli.params import Command


@click.command(cls=Command)
@click.option("-v", "verbosity", type=int, default=0, help="Log verbosity.")
@click.option(
    "--peer",
    type=click.Choice(["kube-proxy"]),
    help="Remove also what a former kube-proxy left, in any of its modes; stop it first.",
)
@click.option(
    "--stop", is_flag=True, help="Let a kproxy that runs here remove its rules and end; then remove the rest."
)
@click.option(
    "--on-exit",
    is_flag=True,
    help="Remove nothing now: let the kproxy that runs here do so when it is stopped (--cleanup-on-exit).",
)
def cleanup(verbosity: int, peer: str | None, *, stop: bool, on_exit: bool) -> None:
    """Remove everything that kproxy made from this node's kernel, and nothing else.

    The kubelet's chains stay, and so do rules, sets, virtual servers and tables of other programs. While a
    kproxy runs on this node, in a pod or not, it would make everything again: then this command names it,
    changes nothing and exits 1, unless --stop or --on-exit is set.
    """
    from kproxy import logs
    from kproxy.modes.leftovers import LeavingError, clean_up, clean_up_on_exit

    logs.configure(verbosity)
    if on_exit and (stop or peer is not None):
        raise click.UsageError("--on-exit excludes --stop and --peer")
    try:
        if on_exit:
            clean_up_on_exit()
            return
        clean = clean_up(kube_proxy=peer is not None, stop=stop)
    except LeavingError as error:
        raise click.ClickException(str(error)) from error
    sys.exit(0 if clean else 1)
