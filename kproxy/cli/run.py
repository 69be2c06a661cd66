"""`kproxy run`: the node agent in the foreground."""

import functools
import sys
from pathlib import Path
from typing import Any

import click

from kproxy import logs
from kproxy.cli.options import rule_options
from kproxy.cli.params import Command, command_line
from kproxy.cli.run_options import node_options, run_options
from kproxy.cli.version import version


@click.command(
    cls=Command,
    epilog="Each flag can be given as a variable too: --cluster-cidr as KPROXY_CLUSTER_CIDR. A flag beats "
    "its variable. Next to --config, as with kube-proxy, only --hostname-override, --master and the logging "
    "flags count, and kproxy's own (--manifests, --iptables-variant, --ipvs-graceful-period)."
)
@rule_options
@node_options
@run_options
@version
@click.pass_context
def run(
    context: click.Context, /, write_config_to: Path | None, cleanup: bool, init_only: bool, **_: Any
) -> None:
    """Keep this node's rules in step with the cluster. SIGTERM leaves the rules in place.

    SIGHUP, or a change of the file, reads the configuration again.
    """
    from kproxy.agent.config import ConfigError
    from kproxy.agent.mode import ModeUnavailable
    from kproxy.agent.removal import remove_everything
    from kproxy.agent.service import prepare
    from kproxy.agent.service import run as run_service
    from kproxy.agent.settings.loading import FileError, tell_flags, tell_settings, write_file
    from kproxy.agent.settings.reload import Reloader
    from kproxy.sources.base import SourceError

    given = command_line(context)
    try:
        settings = given.load()
        config = given.resolve(settings)
        logs.configure(config.verbosity)
        tell_flags(given)
        tell_settings(settings)
        if write_config_to is not None:
            write_file(write_config_to, settings)
            return
        if cleanup:
            sys.exit(0 if remove_everything() else 1)
        if init_only:
            prepare(config)
            return
        given.check_files(config)
        complete = run_service(config, functools.partial(Reloader, given, settings))
    except FileError as error:
        raise click.ClickException("\n".join(error.problems)) from error
    except ConfigError as error:
        raise click.UsageError("\n".join(error.problems)) from error
    except (ModeUnavailable, SourceError, OSError) as error:
        raise click.ClickException(str(error)) from error
    sys.exit(0 if complete else 1)
