"""`kproxy explain`: where a packet goes, by the objects and by the kernel, and why."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from kproxy.cli.agent_address import address_option
from kproxy.cli.options import setting_options
from kproxy.cli.params import Command, command_line
from kproxy.config.settings import NODE

if TYPE_CHECKING:
    from kproxy.config.loading import CommandLine
    from kproxy.inspect.explain.question import Question
    from kproxy.inspect.explain.report import Report
    from kproxy.plan.outcomes import Routing

_SOURCES = ("kubeconfig", "master", "manifests", "config", "replay")
"""Flags that name objects or settings: with one of them the command works without an agent."""


@click.command(
    cls=Command,
    epilog="Exit status: 0 if it is delivered and the kernel agrees; 2 if the kernel differs; 3 if it is "
    "refused or dropped, in both; 1 if that cannot be told. With --desired-only or --dump the kernel of this "
    "node is not read, and no root is needed.",
)
@click.argument("source", metavar="SRC")
@click.argument("protocol", metavar="PROTO")
@click.argument("destination", metavar="DST[:PORT]")
@address_option()
@click.option("--desired-only", is_flag=True, help="Say what should happen; do not read the kernel.")
@click.option(
    "--dump",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Read the rules from this file, which iptables-save or `nft -j list ruleset` wrote, not the kernel.",
)
@click.option("--rules", is_flag=True, help="Print each rule on the packet's way.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print it.")
@setting_options(NODE)
@click.pass_context
def explain(
    context: click.Context,
    /,
    source: str,
    protocol: str,
    destination: str,
    address: str,
    *,
    desired_only: bool,
    dump: Path | None,
    rules: bool,
    output: str,
    **_: Any,
) -> None:
    """Explain where the first packet of a connection goes, and why.

    SRC is pod/NAMESPACE/NAME, node, outside, or an IP address. PROTO is tcp, udp or sctp. DST is
    NAMESPACE/SERVICE with :PORT or :NAME, an IP address, or IP:PORT.

    The kproxy that runs on this node is asked for the objects, unless --kubeconfig, --master, --manifests,
    --config or --replay is given; then they are read from there.
    """
    from kproxy import logs
    from kproxy.config.model import ConfigError
    from kproxy.inspect.agent_client import AgentUnavailable
    from kproxy.inspect.explain.question import QuestionError, read_question
    from kproxy.inspect.explain.report import CANNOT_TELL
    from kproxy.inspect.explain.screen import screen
    from kproxy.modes.base import ExplainError
    from kproxy.sources.cluster import ClusterAccessError
    from kproxy.sources.errors import ApiError

    logs.configure(-1)
    if desired_only and dump is not None:
        raise click.UsageError("--desired-only excludes --dump", context)
    failure = ""
    try:
        question = read_question(source, protocol, destination)
        work = Work(context, question, address, dump, kernel=not desired_only)
        report = work.desired()
        try:
            report = report if desired_only else work.actual(report)
        except ExplainError as error:
            failure = str(error)
    except ConfigError as error:
        raise click.ClickException("\n".join(error.problems)) from error
    except (QuestionError, AgentUnavailable, ClusterAccessError, ApiError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(report.json() if output == "json" else screen(report, rules=rules), nl=output == "json")
    if failure:
        click.echo(f"Error: {failure}; --desired-only says what should happen", err=True)
    sys.exit(CANNOT_TELL if failure else report.exit_code)


class Work:
    """One question: asks the agent, or reads objects and rules."""

    def __init__(
        self, context: click.Context, question: "Question", address: str, dump: Path | None, *, kernel: bool
    ) -> None:
        from kproxy.modes.registry import mode_registry

        self._question = question
        self._address = address
        self._dump = dump
        self._routing: Routing | None = None
        self._here = kernel and dump is None
        self._modes = mode_registry()
        self._parsed: CommandLine = command_line(context)
        given = (context.get_parameter_source(name) for name in _SOURCES)
        self._offline = any(each is ParameterSource.COMMANDLINE for each in given)

    def desired(self) -> "Report":
        """What should happen."""
        from kproxy.config.loading import log_flags
        from kproxy.inspect.explain import client
        from kproxy.inspect.explain.desired import explain_desired
        from kproxy.inspect.explain.offline import read_cluster

        if not self._offline:
            return client.ask(self._address, self._question)
        log_flags(self._parsed)
        config = self._parsed.resolve(self._parsed.load())
        self._parsed.check_files(config)
        cluster = read_cluster(config, self._modes.spec(config), here=self._here)
        self._routing = cluster.routing
        return explain_desired(self._question, cluster)

    def actual(self, report: "Report") -> "Report":
        """The report with what the kernel or the dump would do."""
        from kproxy.config.model import ProxyConfig
        from kproxy.inspect.explain.actual import with_actual
        from kproxy.modes.packet_walk import KernelRouting

        config = ProxyConfig(node_name=report.node, proxy_mode=report.mode)
        routing = self._routing or KernelRouting()
        return with_actual(report, config, self._modes, routing, self._dump)
