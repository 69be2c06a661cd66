"""`--version` as in Go: Kubernetes' programs accept `=raw` too (component-base/version/verflag)."""

import click

from kproxy import __version__
from kproxy.cli.params import flag


def _print_version(context: click.Context, option: click.Parameter, value: str | None) -> None:
    del option
    if value is None or context.resilient_parsing:
        return
    match value.lower():
        case "true" | "t" | "1":
            click.echo(f"kproxy, version {__version__}")
        case "raw":
            import platform

            interpreter = f"{platform.python_implementation()} {platform.python_version()}"
            system = f"{platform.system().lower()}/{platform.machine()}"
            click.echo(f'version="{__version__}" compiler="{interpreter}" platform="{system}"')
        case "false" | "f" | "0":
            return
        case _:
            raise click.BadParameter(f'"{value}" is not true, false or raw')
    context.exit()


version = flag(
    "--version",
    is_flag=False,
    flag_value="true",
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    metavar="[raw]",
    help="Show the version and exit; raw: also what it runs on.",
)
"""The flag for `kproxy run`, which has kube-proxy's flags."""
