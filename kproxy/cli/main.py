"""The `kproxy` command."""

from typing import Any

import click

from kproxy import __version__, logs
from kproxy.cli.bench import bench
from kproxy.cli.check import check
from kproxy.cli.cleanup import cleanup
from kproxy.cli.demo import demo
from kproxy.cli.diff import diff
from kproxy.cli.params import read_environment, words
from kproxy.cli.render import render
from kproxy.cli.run import run
from kproxy.cli.status import status
from kproxy.text import clean_lines


class _BadFlags(click.UsageError):
    """Ends the program with 1, as bad flags end kube-proxy; 2 is what `kproxy diff` says of a difference."""

    exit_code = 1


class _Kproxy(click.Group):
    """The command; it begins with what every program may rely on, and a closed stderr would deny it."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        logs.keep_descriptors()
        return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run what was asked for."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise _BadFlags(clean_lines(error.format_message()), error.ctx) from error
        except click.ClickException as error:
            kind = type("CleanedError", (click.ClickException,), {"exit_code": error.exit_code})
            raise kind(clean_lines(error.format_message())) from error


@click.group(
    cls=_Kproxy,
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": words},
)
@click.version_option(__version__, prog_name="kproxy")
def main() -> None:
    """A Kubernetes service proxy that runs on every node in place of kube-proxy."""


for command in (run, check, diff, status, render, cleanup, demo, bench):
    read_environment(command)
    main.add_command(command)
