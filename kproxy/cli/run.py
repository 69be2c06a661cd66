"""`kproxy run`: the node agent in the foreground."""

import sys
from pathlib import Path
from typing import Any

import click

from kproxy import logs
from kproxy.cli.options import rule_options
from kproxy.cli.params import Duration, boolean, node_name


@click.command()
@click.option(
    "--kubeconfig",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="How to reach the API server; without it and --manifests, as a pod of the cluster.",
)
@click.option(
    "--manifests",
    type=click.Path(file_okay=False, path_type=Path),
    help="Take objects from the YAML and JSON files of this directory instead.",
)
@click.option("--hostname-override", metavar="NAME", help="This node's name, if it is not the host's.")
@rule_options
@click.option(
    "--iptables-sync-period",
    "--ipvs-sync-period",
    "--nftables-sync-period",
    "sync_period",
    type=Duration(),
    default="30s",
    show_default=True,
    help="Longest wait before a failed sync is tried again; in IPVS mode also between looks for drift.",
)
@click.option(
    "--iptables-min-sync-period",
    "--ipvs-min-sync-period",
    "--nftables-min-sync-period",
    "min_sync_period",
    type=Duration(),
    default="100ms",
    show_default=True,
    help="Shortest time between the end of one sync and the next.",
)
@click.option(
    "--iptables-variant",
    type=click.Choice(["legacy", "nft"]),
    help="Which iptables to use, instead of the one this node already uses.",
)
@boolean(
    "--ipvs-strict-arp",
    default=False,
    help="Do not answer ARP for addresses that only kube-ipvs0 holds (for MetalLB and its like).",
)
@click.option(
    "--ipvs-tcp-timeout",
    type=Duration(),
    default="0",
    help="Timeout of idle TCP connections; 0: the kernel's.",
)
@click.option(
    "--ipvs-tcpfin-timeout", type=Duration(), default="0", help="The same after a FIN; 0: the kernel's."
)
@click.option(
    "--ipvs-udp-timeout", type=Duration(), default="0", help="Timeout of UDP flows; 0: the kernel's."
)
@click.option(
    "--ipvs-graceful-period",
    type=Duration(),
    default="1h",
    show_default=True,
    help="How long an endpoint that left is kept for its connections, at most.",
)
@click.option(
    "--healthz-bind-address",
    default="0.0.0.0:10256",
    show_default=True,
    metavar="ADDRESS",
    help='Where /healthz and /livez answer; "" turns them off.',
)
@boolean("--once", default=False, help="Exit as soon as one complete sync is applied: 0 if all of it was.")
@click.option("-v", "verbosity", type=int, default=0, help="Log verbosity; 4 logs every sync.")
def run(verbosity: int, hostname_override: str | None, iptables_variant: str | None, **flags: Any) -> None:
    """Keep this node's rules in step with the cluster. SIGTERM leaves the rules in place."""
    from kproxy.agent.config import ConfigError, ProxyConfig
    from kproxy.agent.mode import ModeUnavailable
    from kproxy.agent.service import run as run_service
    from kproxy.kernel.xtables.types import Variant

    logs.configure(verbosity)
    config = ProxyConfig(
        node_name=node_name(hostname_override),
        iptables_variant=Variant(iptables_variant) if iptables_variant else None,
        **flags,
    )
    try:
        complete = run_service(config)
    except ConfigError as error:
        raise click.UsageError("\n".join(error.problems)) from error
    except (ModeUnavailable, OSError) as error:
        raise click.ClickException(str(error)) from error
    sys.exit(0 if complete else 1)
