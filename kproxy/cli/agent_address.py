"""The option that names the running kproxy to ask, for every command that asks one."""

import click

from kproxy.cli.params import Decorator


def _with_host(_context: click.Context, _option: click.Parameter, address: str) -> str:
    """Complete an address without a host, which binds to every address of the node: ask this node."""
    return f"127.0.0.1{address}" if address.startswith(":") else address


def address_option() -> Decorator:
    """`--address`."""
    return click.option(
        "--address",
        default="127.0.0.1:10249",
        show_default=True,
        callback=_with_host,
        metavar="ADDRESS",
        help="The --metrics-bind-address of the kproxy to ask; without a host, 127.0.0.1.",
    )
