"""The `kproxy` command."""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click

from kproxy import __version__, logs
from kproxy.cli.check import check
from kproxy.cli.cleanup import cleanup
from kproxy.cli.diff import diff
from kproxy.cli.params import read_environment, words
from kproxy.cli.render import render
from kproxy.cli.run import run
from kproxy.cli.status import status
from kproxy.text import clean_lines

EXTENSIONS = "kproxy.commands"
"""Entry points of this group are additional commands: those of the lab, if it is installed."""


class _BadFlags(click.UsageError):
    """Exits with 1, as kube-proxy does for bad flags; `kproxy diff` uses 2 for a difference."""

    exit_code = 1


class _Kproxy(click.Group):
    """The command group; it first opens descriptors 0 to 2 where they are closed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of kproxy's commands and of those of other distributions."""
        return sorted({*super().list_commands(ctx), *_extensions()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by its name; import it if it is from another distribution."""
        own = super().get_command(ctx, cmd_name)
        extension = _extensions().get(cmd_name) if own is None else None
        if extension is None:
            return own
        command: click.Command = extension.load()
        read_environment(command)
        return command

    def main(self, *args: Any, **kwargs: Any) -> Any:
        logs.keep_descriptors()
        return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the requested command."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise _BadFlags(clean_lines(error.format_message()), error.ctx) from error
        except click.ClickException as error:
            kind = type("CleanedError", (click.ClickException,), {"exit_code": error.exit_code})
            raise kind(clean_lines(error.format_message())) from error


def _extensions() -> dict[str, EntryPoint]:
    return {each.name: each for each in entry_points(group=EXTENSIONS)}


@click.group(
    cls=_Kproxy,
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": words},
)
@click.version_option(__version__, prog_name="kproxy")
def main() -> None:
    """A Kubernetes service proxy that runs on every node in place of kube-proxy."""


for command in (run, check, diff, status, render, cleanup):
    read_environment(command)
    main.add_command(command)
