"""The `kproxy` command: a group whose commands are imported when they are used.

`kproxy status` runs in scripts and probes, so it must not pay for the imports of `run`. Each command is a
module of this package that defines it under its own name. `--help` imports all of them; so a module imports
at its top only what its options need, and in its function what its work needs.
"""

from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from kproxy import __version__
from kproxy.cli.descriptors import keep_descriptors
from kproxy.cli.params import read_environment, words
from kproxy.text import clean_lines

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

COMMANDS = (
    "run",
    "check",
    "diff",
    "status",
    "explain",
    "trace",
    "changes",
    "drops",
    "policies",
    "record",
    "render",
    "cleanup",
)
"""The names of the commands, which are also the names of their modules."""

EXTENSIONS = "kproxy.commands"
"""Entry points of this group are additional commands: those of the lab, if it is installed."""

_OF_THE_LAB = ("bench", "demo")
"""The commands of the lab, which is not in the wheel."""


class _BadFlags(click.UsageError):
    """Exits with 1, as kube-proxy does for bad flags; `kproxy diff` uses 2 for a difference."""

    exit_code = 1


class _Commands(MutableMapping[str, click.Command]):
    """Commands by name; the module of a command is imported at its first use."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._loaded: dict[str, click.Command | None] = dict.fromkeys(names)

    def __getitem__(self, name: str) -> click.Command:
        command = self._loaded[name]
        if command is None:
            command = self._loaded[name] = getattr(import_module(f"kproxy.cli.{name}"), name)
        return command

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaded)

    def __len__(self) -> int:
        return len(self._loaded)

    def __contains__(self, name: object) -> bool:
        return name in self._loaded


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

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the arguments name; say where one of the lab is."""
        if args and args[0] in _OF_THE_LAB and self.get_command(ctx, args[0]) is None:
            ctx.fail(
                f"{args[0]} needs kproxy's lab, which is no part of this installation: "
                f"run `make {args[0]}` in a checkout of kproxy, or install the lab from its directory lab/"
            )
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        keep_descriptors()
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


def _extensions() -> "dict[str, EntryPoint]":
    from importlib.metadata import entry_points

    return {each.name: each for each in entry_points(group=EXTENSIONS)}


@click.group(
    cls=_Kproxy,
    commands=_Commands(COMMANDS),
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": words},
)
@click.version_option(__version__, prog_name="kproxy")
def main() -> None:
    """A Kubernetes service proxy that runs on every node in place of kube-proxy."""
