"""The `kproxy` command."""

import click

from kproxy import __version__
from kproxy.cli.check import check
from kproxy.cli.cleanup import cleanup
from kproxy.cli.demo import demo
from kproxy.cli.diff import diff
from kproxy.cli.render import render
from kproxy.cli.run import run


@click.group(context_settings={"auto_envvar_prefix": "KPROXY", "help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kproxy")
def main() -> None:
    """A Kubernetes service proxy that runs on every node in place of kube-proxy."""


main.add_command(run)
main.add_command(render)
main.add_command(check)
main.add_command(diff)
main.add_command(cleanup)
main.add_command(demo)
