"""Create the source of objects that the settings name, and the services of that place, such as Events."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from kproxy.config.model import ProxyConfig
from kproxy.modes.kinds import kinds_of_files, wanted_kinds
from kproxy.sources.base import Source
from kproxy.state.kinds import POLICY_KINDS
from kproxy.telemetry.events import EventRecorder
from kproxy.telemetry.metrics import Metrics
from kproxy.telemetry.series import REQUEST_SECONDS, REQUESTS
from kproxy.telemetry.status import Watch

MANIFESTS = "manifests"
"""The name of the directory watch in the status."""

REPLAY = "replay"
"""The name of a replayed recording in the status."""


class ObjectSource(msgspec.Struct, frozen=True):
    """A source, its recorder of Events if there is an API server, and the state of its watches.

    `follow` takes new settings, which may need another kind of object. `api_servers` returns the
    (address, port) of each API server. `addresses` returns the addresses of interfaces if they come from a
    recording and not from this node.
    """

    source: Source
    events: EventRecorder | None
    watches: Callable[[], Sequence[Watch]]
    follow: Callable[[ProxyConfig], None]
    api_servers: Callable[[], frozenset[tuple[str, int]]] = frozenset
    addresses: Callable[[], Sequence[str]] | None = None


def make_source(config: ProxyConfig, metrics: Metrics, wake: Callable[[], None]) -> ObjectSource:
    """Make the source for `config` without opening it. `wake` is called when `api_servers` changes.

    A recording is read here. Raises SourceError if it cannot be.
    """
    if config.replay is not None:
        return _replay(config.replay, config.replay_until)
    if config.manifests is not None:
        from kproxy.sources.manifests import ManifestSource

        manifests = ManifestSource(config.manifests, config.node_name, kinds=kinds_of_files(config))

        def directory() -> list[Watch]:
            missing = manifests.missing
            return [
                Watch(
                    kind=MANIFESTS,
                    synced=manifests.listed,
                    connected_since=_time(manifests.found_at),
                    consecutive_failures=0,
                    last_error=missing.reason if missing is not None else None,
                    down_since=_time(missing.since if missing is not None else None),
                )
            ]

        def follow_files(config: ProxyConfig) -> None:
            manifests.read_kinds(kinds_of_files(config))

        return ObjectSource(manifests, None, directory, follow_files)
    from kproxy.sources.cluster import ClusterAccess, ClusterAccessError
    from kproxy.sources.errors import ApiError
    from kproxy.sources.kubernetes import KubernetesSource

    def observe(host: str, method: str, code: str, seconds: float) -> None:
        metrics.add(REQUESTS, code, host, method)
        metrics.observe(REQUEST_SECONDS, host, method, value=seconds)

    access = ClusterAccess(kubeconfig=config.kubeconfig, master=config.master or None)
    source = KubernetesSource(access, config.node_name, observe=observe, moved=wake)

    def watches() -> list[Watch]:
        return [
            Watch(
                kind=each.kind.name,
                synced=each.synced,
                connected_since=_time(each.connected_since),
                consecutive_failures=each.consecutive_failures,
                last_error=each.last_error,
                down_since=_time(each.down_since),
            )
            for each in source.status()
        ]

    def follow(config: ProxyConfig) -> None:
        wanted = wanted_kinds(config)
        source.watch(wanted)
        source.unwatch(kind for kind in POLICY_KINDS if kind not in wanted)

    follow(config)
    # ValueError: text that cannot be sent; OSError: no free descriptor
    errors = (ApiError, ClusterAccessError, ValueError, OSError)
    events = EventRecorder(source.objects(), config.node_name, metrics, errors)
    return ObjectSource(source, events, watches, follow, lambda: source.servers)


def _replay(path: Path, until: int) -> ObjectSource:
    from kproxy.sources.replay import ReplaySource

    source = ReplaySource(path, until)

    def watches() -> list[Watch]:
        return [Watch(REPLAY, source.played, None, 0, None)]

    node = source.node
    recorded = None if node is None else node.addresses
    addresses = None if recorded is None else lambda: recorded
    servers = frozenset(node.api_servers) if node is not None else frozenset[tuple[str, int]]()
    return ObjectSource(source, None, watches, lambda _: None, lambda: servers, addresses)


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
