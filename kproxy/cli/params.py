"""Flags with the syntax of Go programs, and the command line that collects them."""

import re
from collections.abc import Callable, Collection, Mapping
from functools import reduce
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from kproxy.config.settings import Group

if TYPE_CHECKING:
    from kproxy.config.loading import CommandLine

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_GIVEN = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)


_REFUSED = f"{__name__}.refused"
_FLAG = re.compile(r"(?<![\w-])--([a-z0-9][a-z0-9-]*)")


class Command(click.Command):
    """A command whose flags have variables; its errors name the variable if a value came from one.

    `own`: flags that share the name of a setting but are none.
    """

    def __init__(self, *args: Any, own: Collection[str] = (), **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.own = frozenset(own)
        read_environment(self)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments. Raises BadParameter."""
        try:
            return super().parse_args(ctx, args)
        except click.BadParameter as error:
            if error.param is not None:
                error.param_hint = given_variables(ctx).get(flag_name(error.param), error.param_hint)
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options, then those of settings under the headings of their groups."""
        headings = ("Options", *(group.value for group in Group))
        sections: dict[str, list[tuple[str, str]]] = {heading: [] for heading in headings}
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx) if isinstance(option, click.Option) else None
            if record is not None:
                group = option.group if isinstance(option, _Flag) else None
                sections["Options" if group is None else group.value].append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            variables = given_variables(ctx)
            message = error.format_message()
            renamed = _FLAG.sub(lambda found: variables.get(found[1], found[0]), message)
            if renamed == message:
                raise
            if isinstance(error, click.UsageError):
                raise click.UsageError(renamed, error.ctx or ctx) from error
            raise click.ClickException(renamed) from error


def given_variables(ctx: click.Context) -> dict[str, str]:
    """The environment variables that were read instead of flags, by the flags' names without dashes."""
    found = {}
    for option in ctx.command.params:
        variable = isinstance(option, click.Option) and option.name and option.envvar
        if variable and ctx.get_parameter_source(option.name or "") is ParameterSource.ENVIRONMENT:
            found[flag_name(option)] = str(option.envvar)
    return found


class _Flag(click.Option):
    """An option that keeps a bad value until all others are read, so that all are reported at once."""

    def __init__(
        self, *names: Any, group: Group | None = None, has_variable: bool = True, **settings: Any
    ) -> None:
        super().__init__(*names, **settings)
        self.group = group
        self.has_variable = has_variable

    def handle_parse_result(
        self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        """Read the value, or keep its defect for `command_line`."""
        try:
            return super().handle_parse_result(ctx, opts, args)
        except click.BadParameter as error:
            refused: dict[str, str] = ctx.meta.setdefault(_REFUSED, {})
            refused[flag_name(self)] = error.message.partition(". ")[0].rstrip(".")
            if self.name is not None and self.expose_value:
                ctx.params[self.name] = None
            return None, args


def flag(*names: str, **settings: Any) -> Decorator:
    """An option without a default: its value is None if it is not set.

    `group` is its heading in `--help`. `has_variable` is False if no environment variable sets it.
    """
    return click.option(*names, default=None, cls=_Flag, **settings)


def boolean(*names: str, **settings: Any) -> Decorator:
    """A boolean flag as Go reads it: `--flag`, `--flag=true` and `--flag=false` all work."""
    return flag(*names, type=click.BOOL, is_flag=False, flag_value="true", **settings)


def several(*names: str, **settings: Any) -> Decorator:
    """A flag with several values, separated by commas or by repeating the flag."""
    return flag(*names, multiple=True, callback=_joined, **settings)


def _joined(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> str:
    del context, option
    return ",".join(values)


def shorthand_number(text: str) -> int:
    """The number of a one-letter flag, which Go's programs accept as `-v=2` too. Raises ValueError."""
    digits = text.removeprefix("=")
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError(f'"{digits}" is not a whole number')
    return int(digits)


class OneOf(click.Choice[str]):
    """One of these words, or empty text for the default."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read it. Raises BadParameter."""
        return super().convert(value, param, ctx) if value else value


class OptionalPath(click.Path):
    """A path, or empty text from a template; Path("") would be the current directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read it. Raises BadParameter."""
        return super().convert(value, param, ctx) if value else None


def words(name: str) -> str:
    """Normalize a flag's name: Kubernetes programs accept `--cluster_cidr` too."""
    return name.replace("_", "-")


def together(*options: Decorator) -> Decorator:
    """Combine decorators into one; `--help` lists the options in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        return reduce(lambda wrapped, option: option(wrapped), reversed(options), command)

    return decorate


def flag_name(option: click.Parameter) -> str:
    """The first long name of an option without dashes: `proxy-mode`, `v`."""
    return next((name for name in option.opts if name.startswith("--")), option.opts[0]).lstrip("-")


def read_environment(command: click.Command) -> None:
    """Read each flag of a command from a variable: `--cluster-cidr` as KPROXY_CLUSTER_CIDR.

    --healthz-port and --metrics-port have no variable: kubelet sets KPROXY_METRICS_PORT=tcp://... in the pods
    of a namespace that has a Service kproxy-metrics.
    """
    for option in command.params:
        name = flag_name(option)
        if isinstance(option, _Flag) and not option.has_variable:
            continue
        if isinstance(option, click.Option) and name not in {"help", "version"}:
            option.envvar = "KPROXY_" + name.upper().replace("-", "_")


def command_line(context: click.Context) -> "CommandLine":
    """Collect the flags of the command line and the environment."""
    from kproxy.config.codec import Defect
    from kproxy.config.loading import CommandLine

    flags: dict[str, object] = {}
    refused: dict[str, str] = context.meta.get(_REFUSED, {})
    own = context.command.own if isinstance(context.command, Command) else frozenset[str]()
    for option in context.command.params:
        if option.name not in context.params or flag_name(option) in own | refused.keys():
            continue
        if context.get_parameter_source(option.name) in _GIVEN:
            value = context.params[option.name]
            if value is not None:
                flags[flag_name(option)] = str(value) if isinstance(value, PurePath) else value
    flags.pop("config", None)
    defects = tuple(Defect(f"--{name}", why) for name, why in refused.items())
    return CommandLine(context.params.get("config"), flags, defects, given_variables(context))
