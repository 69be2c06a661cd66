"""Output of the demo where it cannot run: the missing requirements, and the rules that kproxy would write."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import click

from kproxy.addresses import Family
from kproxy.config.model import ProxyConfig
from kproxy.inspect.render import render_manifests
from kproxy.modes.registry import mode_registry
from kproxy_lab.demo.examples import shown

NODE_NAME: Final = "node-a"
CLUSTER_CIDR: Final = ("10.244.0.0/16", "fd00:10:244::/48")
SHOWN_LINES: Final = 12


def missing() -> list[str]:
    """The reasons why the demo cannot run here; empty when it can."""
    from kproxy_lab.lab import Lab

    reasons = Lab.missing()
    if (
        shutil.which("iptables-save") is None
        and shutil.which("iptables-save", path="/usr/sbin:/sbin") is None
    ):
        reasons.append("no iptables programs (Debian package iptables)")
    return reasons


def show_rules(reasons: Iterable[str], directory: Path) -> None:
    """Print the missing requirements and the rules of one service. Raises ConfigError, OSError."""
    reasons = list(reasons)
    if "not root" in reasons:
        click.echo(
            "The demo builds network namespaces and writes iptables rules in them, for which it must be root."
        )
        reasons.remove("not root")
    if reasons:
        click.echo(f"The demo cannot run here: {'; '.join(reasons)}.")
    config = ProxyConfig(node_name=NODE_NAME, manifests=directory, cluster_cidrs=CLUSTER_CIDR)
    text, problems = render_manifests(config, Family.IPV4, mode_registry())
    for problem in problems:
        click.echo(f"warning: {problem}", err=True)
    rules = [line for line in text.splitlines() if line.startswith("-A ")]
    click.echo(
        f"\nInstead, this is what kproxy would write to the kernel of {NODE_NAME} about one service of ",
        nl=False,
    )
    click.echo(f"{shown(directory)}:\n")
    _, excerpt = of_one_service(rules)
    for line in excerpt[:SHOWN_LINES]:
        click.echo(f"  {line}")
    click.echo(
        f"\nThat is {min(len(excerpt), SHOWN_LINES)} of {len(rules)} rules. All of them are printed by\n"
    )
    click.echo(f"  {render_command(directory)}\n")
    click.echo("and for IPv6 with --ip-family 6.")


def render_command(directory: Path) -> str:
    """The command that prints every rule."""
    cidrs = ",".join(CLUSTER_CIDR)
    return f"kproxy render --manifests {shown(directory)} --node {NODE_NAME} --cluster-cidr {cidrs}"


def of_one_service(rules: Iterable[str]) -> tuple[str, list[str]]:
    """Return the service port with the fewest rules from KUBE-SERVICES to its pods, and these rules.

    The comment of a service port's rules begins with `namespace/name:port`.
    """
    by_port: dict[str, list[str]] = {}
    for rule in rules:
        words = rule.partition("--comment ")[2].lstrip('"').split()
        if words and "/" in words[0]:
            by_port.setdefault(words[0].strip('"'), []).append(rule)
    complete = {port: found for port, found in by_port.items() if _is_complete(found)}
    port = min(complete, key=lambda port: (len(complete[port]), port), default="")
    return port, complete.get(port, [])


def _is_complete(rules: Iterable[str]) -> bool:
    text = "\n".join(rules)
    return "-A KUBE-SERVICES " in text and "-j DNAT" in text
