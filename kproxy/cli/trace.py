"""`kproxy trace`: the way of real packets through the kernel's rules, beside what explain says."""

import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from kproxy.cli.agent_address import address_option
from kproxy.cli.options import setting_options
from kproxy.cli.params import Command
from kproxy.config.settings import NODE

if TYPE_CHECKING:
    from kproxy.inspect.explain.question import Question
    from kproxy.inspect.explain.report import Report
    from kproxy.inspect.explain.trace import TraceReport

_MOST = 1000
_LONGEST = 3600.0


def _seconds(_context: click.Context, _option: click.Parameter, text: str) -> float:
    from kproxy.config.durations import parse_duration

    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} {error}") from error
    if not 0 < seconds <= _LONGEST:
        raise click.BadParameter(f"{text!r}: more than 0s, at most 1h")
    return seconds


@click.command(
    cls=Command,
    own=("timeout",),
    epilog="Exit status: 0 if every packet is delivered as explained; 2 if one goes another way, or the "
    "kernel differs from what is desired; 3 if all are refused or dropped as explained; 1 if no packet came, "
    "or it cannot be told. Needs root.",
)
@click.argument("source", metavar="SRC")
@click.argument("protocol", metavar="PROTO")
@click.argument("destination", metavar="DST[:PORT]")
@click.option(
    "--count",
    type=click.IntRange(1, _MOST),
    default=3,
    show_default=True,
    help="End after so many packets.",
)
@click.option(
    "--timeout",
    default="30s",
    show_default=True,
    callback=_seconds,
    metavar="DURATION",
    help="End after this time.",
)
@address_option()
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print it.")
@setting_options(NODE)
@click.pass_context
def trace(
    context: click.Context,
    /,
    source: str,
    protocol: str,
    destination: str,
    address: str,
    *,
    count: int,
    timeout: float,
    output: str,
    **_: Any,
) -> None:
    """Follow real packets through the rules of this node: each rule that one matches, and where it goes.

    SRC, PROTO and DST are those of kproxy explain; outside and node stand for any address there. Of TCP and
    SCTP the first packet of each connection counts, of UDP every one; at most ten a second are followed.

    The kernel reports the rules of nftables and of both variants of iptables. Of IPVS only the result is
    seen: the addresses after its translation.
    """
    from kproxy import logs
    from kproxy.cli.explain import Work
    from kproxy.config.model import ConfigError
    from kproxy.inspect.agent_client import AgentUnavailable
    from kproxy.inspect.explain.question import QuestionError, read_question
    from kproxy.inspect.explain.screen import screen
    from kproxy.kernel.nft.trace import TraceError
    from kproxy.modes.base import ExplainError
    from kproxy.sources.cluster import ClusterAccessError
    from kproxy.sources.errors import ApiError

    logs.configure(-1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    shown = output == "text"
    try:
        question = read_question(source, protocol, destination)
        work = Work(context, question, address, None, kernel=True)
        explained = work.actual(work.desired())
        if shown:
            click.echo(screen(explained), nl=False)
        report = _follow(question, explained, count, timeout, shown=shown)
    except ConfigError as error:
        raise click.ClickException("\n".join(error.problems)) from error
    except (
        QuestionError,
        AgentUnavailable,
        ClusterAccessError,
        ApiError,
        ExplainError,
        TraceError,
        OSError,
    ) as error:
        raise click.ClickException(str(error)) from error
    if not shown:
        click.echo(report.json())
    if report.lost:
        click.echo("Warning: the kernel could not report every rule", err=True)
    if not report.packets:
        what = "packet" if question.protocol == "UDP" else "packet that opens a connection"
        click.echo(f"Error: no such {what} came within {timeout:g} s", err=True)
    sys.exit(report.exit_code)


def _follow(
    question: "Question", explained: "Report", count: int, seconds: float, *, shown: bool
) -> "TraceReport":
    """Follow packets, print each if they are `shown`, and return all. Raises TraceError, OSError."""
    from kproxy.inspect.explain.trace import TraceReport, compared, selection
    from kproxy.modes.packet_trace import PacketTrace

    walks = []
    tracer = PacketTrace(selection(question, explained))
    try:
        if shown:
            click.echo(f"  trace     until {count} came, at most {seconds:g} s")
        if tracer.unread:
            click.echo(f"Warning: the rules of legacy tables are not shown: {tracer.unread}", err=True)
        for packet in tracer.packets(count, seconds):
            walks.append(compared(packet, explained, question))
            if shown:
                click.echo(walks[-1].text(len(walks)), nl=False)
    finally:
        tracer.close()
    return TraceReport(explained, tuple(walks), tracer.lost)
