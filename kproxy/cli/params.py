"""Flag types in the forms that Kubernetes components use, with errors that name what is wrong."""

import re
import socket
from collections.abc import Callable
from typing import Any

import click

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")


class Duration(click.ParamType[float]):
    """A Go duration (`30s`, `1m30s`, `100ms`, `0`), read as seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse; fail with a usage error."""
        if isinstance(value, float):
            return value
        text = str(value)
        if text == "0":
            return 0.0
        parts = _DURATION.findall(text)
        if not parts or "".join(a + b for a, b in parts) != text:
            self.fail(f"{text!r} is not a duration such as 30s, 1m30s or 100ms", param, ctx)
        return float(sum(float(number) * _UNITS[unit] for number, unit in parts))


class CommaList(click.ParamType[tuple[str, ...]]):
    """Values separated by commas; blanks around them do not count."""

    name = "list"

    def convert(self, value: Any, *_: Any) -> tuple[str, ...]:
        """Split."""
        if isinstance(value, tuple):
            return value
        return tuple(part.strip() for part in str(value).split(",") if part.strip())


def node_name(override: str | None) -> str:
    """The node's name: the override or the host's, in lower case without blanks, as kube-proxy has it."""
    return (override or socket.gethostname()).strip().lower()


def boolean(*names: str, default: bool, help: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:  # noqa: A002
    """A flag in Go's manner: `--flag`, `--flag=true` and `--flag=false` all work."""
    return click.option(
        *names,
        type=click.BOOL,
        is_flag=False,
        flag_value="true",
        default=default,
        show_default=True,
        help=help,
    )
