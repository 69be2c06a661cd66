"""Run the embedded API server on its own, for clients outside this process.

python -m kproxy_lab.apiserver --port 6443 --manifests DIR --kubeconfig-out FILE
"""

from __future__ import annotations

import signal
from pathlib import Path

import click

from kproxy_lab.apiserver.errors import ApiError
from kproxy_lab.apiserver.manifests import load_manifests
from kproxy_lab.apiserver.server import ApiServer

_STOP = {signal.SIGINT, signal.SIGTERM}


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=0, show_default="a free one", type=click.IntRange(0, 65_535))
@click.option("--manifests", type=click.Path(exists=True, path_type=Path), help="File or directory to load.")
@click.option("--kubeconfig-out", type=click.Path(path_type=Path), help="Write a kubeconfig here.")
@click.option("--token", multiple=True, help="Accept only this bearer token (repeatable).")
@click.option("--watch-list/--no-watch-list", default=True, help="Serve streamed lists.")
@click.option("--bookmark-interval", default=60.0, show_default=True, help="Seconds between bookmarks.")
def main(
    host: str,
    port: int,
    manifests: Path | None,
    kubeconfig_out: Path | None,
    token: tuple[str, ...],
    *,
    watch_list: bool,
    bookmark_interval: float,
) -> None:
    """Serve the Kubernetes API for Services, EndpointSlices and Nodes from memory until SIGINT."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)
    api = ApiServer(
        host=host, port=port, tokens=token or None, watch_list=watch_list, bookmark_interval=bookmark_interval
    )
    try:
        loaded = api.apply_many(load_manifests(manifests)) if manifests is not None else 0
    except (ApiError, KeyError, ValueError) as error:
        raise click.ClickException(f"cannot load {manifests}: {error}") from error
    try:
        api.start()
    except OSError as error:
        raise click.ClickException(f"cannot listen on {host}:{port}: {error}") from error
    if kubeconfig_out is not None:
        api.kubeconfig(kubeconfig_out)
    click.echo(f"serving {api.url}, {loaded} objects loaded")
    signal.sigwait(_STOP)
    api.stop()


if __name__ == "__main__":
    main()
