"""`kproxy run`: the node agent in the foreground."""

import functools
import sys
from pathlib import Path
from typing import Any

import click

from kproxy.cli.options import setting_options
from kproxy.cli.params import Command, command_line
from kproxy.cli.version import version
from kproxy.config.settings import RUN


@click.command(
    cls=Command,
    epilog="Each flag can be set by an environment variable: --cluster-cidr by KPROXY_CLUSTER_CIDR. A flag "
    "overrides its variable. With --config, as with kube-proxy, flags for fields of KubeProxyConfiguration "
    "are ignored, except --hostname-override and the logging flags. kproxy's own flags override the file.",
)
@setting_options(RUN)
@version
@click.pass_context
def run(
    context: click.Context, /, write_config_to: Path | None, cleanup: bool, init_only: bool, **_: Any
) -> None:
    """Keep this node's rules in step with the cluster.

    SIGTERM ends it and leaves the rules in place; with --cleanup-on-exit they are removed first, which takes
    some seconds, and a second SIGTERM cuts that short (exit 1). SIGHUP, or a change of the file, reads the
    configuration again. A second kproxy on the node waits 5 s for the first one to end, then names it and
    exits 1.
    """
    from kproxy import logs
    from kproxy.agent.main import prepare
    from kproxy.agent.main import run as run_service
    from kproxy.agent.once import OnceTimeout
    from kproxy.config.loading import FileError, log_flags, log_settings, write_file
    from kproxy.config.model import ConfigError
    from kproxy.config.reload import Reloader
    from kproxy.modes.base import ModeUnavailable
    from kproxy.modes.leftovers import LeavingError, clean_up
    from kproxy.node.instance import InstanceRunning
    from kproxy.sources.base import SourceError

    parsed = command_line(context)
    try:
        settings = parsed.load()
        config = parsed.resolve(settings)
        logs.configure(config.verbosity, config.logging_format, config.limit_log_lines_per_minute)
        log_flags(parsed)
        log_settings(settings)
        if write_config_to is not None:
            write_file(write_config_to, settings)
            return
        if cleanup:
            sys.exit(0 if clean_up() else 1)
        if init_only:
            prepare(config)
            return
        parsed.check_files(config)
        complete = run_service(config, functools.partial(Reloader, parsed, settings))
    except FileError as error:
        raise click.ClickException("\n".join(error.problems)) from error
    except ConfigError as error:
        raise click.UsageError("\n".join(error.problems)) from error
    except InstanceRunning as error:
        remedy = (
            "two on a node would undo each other's rules. Stop it first; its rules stay, and are taken over"
        )
        raise click.ClickException(f"{error}: {remedy}") from error
    except (LeavingError, ModeUnavailable, OnceTimeout, SourceError, OSError) as error:
        raise click.ClickException(str(error)) from error
    sys.exit(0 if complete else 1)
