"""`kproxy policies`: what isolates the pods of this node, and what they may do."""

from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from kproxy.cli.options import setting_options
from kproxy.cli.params import Command, command_line
from kproxy.config.settings import NODE

if TYPE_CHECKING:
    from kproxy.inspect.isolation import PodAnswer, PodList

_SOURCES = ("kubeconfig", "master", "manifests", "config", "replay")
"""Flags that name objects or settings: with one of them the command works without an agent."""


@click.command(cls=Command)
@click.argument("pod", required=False, metavar="[NAMESPACE/POD]")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print it.")
@setting_options(NODE)
@click.pass_context
def policies(context: click.Context, /, pod: str | None, output: str, **_: object) -> None:
    """List the pods of this node and the NetworkPolicies that isolate them, or what one pod may do.

    The kproxy that runs on this node is asked at a socket that answers root only. It works in its pod too, by
    kubectl exec.
    With --kubeconfig, --master, --manifests, --config or --replay the objects are read from there.
    """
    from kproxy import logs
    from kproxy.config.model import ConfigError
    from kproxy.inspect.agent_client import AgentRefused, AgentUnavailable
    from kproxy.inspect.isolation import PodUnknown
    from kproxy.sources.cluster import ClusterAccessError
    from kproxy.sources.errors import ApiError

    logs.configure(-1)
    if pod is not None and (pod.count("/") != 1 or not all(pod.split("/"))):
        raise click.UsageError(f"{pod!r} is not NAMESPACE/POD")
    given = (context.get_parameter_source(name) for name in _SOURCES)
    offline = any(each is ParameterSource.COMMANDLINE for each in given)
    try:
        found = _read(context, pod) if offline else _asked(pod)
    except ConfigError as error:
        raise click.ClickException("\n".join(error.problems)) from error
    except (
        AgentRefused,
        AgentUnavailable,
        PodUnknown,
        ClusterAccessError,
        ApiError,
        OSError,
    ) as error:
        raise click.ClickException(str(error)) from error
    if output == "json":
        click.echo(found.json(), nl=False)
    else:
        click.echo(found.text())


def _asked(pod: str | None) -> "PodAnswer | PodList":
    from kproxy.inspect import isolation as known

    return known.fetch_all() if pod is None else known.fetch_one(pod)


def _read(context: click.Context, pod: str | None) -> "PodAnswer | PodList":
    import msgspec

    from kproxy.config.loading import log_flags
    from kproxy.inspect.isolation import describe_all, describe_one
    from kproxy.inspect.objects import read_objects
    from kproxy.inspect.policies import plan

    parsed = command_line(context)
    log_flags(parsed)
    config = parsed.resolve(parsed.load())
    parsed.check_files(config)
    config = msgspec.structs.replace(config, network_policy=True)
    tables, _, _ = read_objects(config)
    planner = plan(config, tables)
    return describe_all(planner) if pod is None else describe_one(planner, pod)
