"""Where objects come from, as the settings say, and what that place can do besides: take Events, for one."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import msgspec

from kproxy.agent.config import ProxyConfig
from kproxy.agent.events import EventRecorder
from kproxy.agent.metric_series import REQUEST_SECONDS, REQUESTS
from kproxy.agent.metrics import Metrics
from kproxy.agent.status import Watch
from kproxy.sources.base import Source


class Input(msgspec.Struct, frozen=True):
    """A source; the recorder of Events if there is an API server to take them; how its watches are doing."""

    source: Source
    events: EventRecorder | None
    watches: Callable[[], Sequence[Watch]]


def make_input(config: ProxyConfig, metrics: Metrics) -> Input:
    """What `config` names; nothing is opened yet."""
    if config.manifests is not None:
        from kproxy.sources.manifests import ManifestSource

        return Input(ManifestSource(config.manifests, config.node_name), None, tuple)
    from kproxy.sources.cluster import ClusterAccess, ClusterAccessError
    from kproxy.sources.errors import ApiError
    from kproxy.sources.kubernetes import KubernetesSource

    def observe(host: str, method: str, code: str, seconds: float) -> None:
        metrics.add(REQUESTS, code, host, method)
        metrics.observe(REQUEST_SECONDS, host, method, value=seconds)

    access = ClusterAccess(kubeconfig=config.kubeconfig, master=config.master or None)
    source = KubernetesSource(access, config.node_name, observe=observe)

    def watches() -> list[Watch]:
        return [
            Watch(
                kind=each.kind.value,
                synced=each.synced,
                connected_since=_time(each.connected_since),
                consecutive_failures=each.consecutive_failures,
                last_error=each.last_error,
            )
            for each in source.status()
        ]

    errors = (ApiError, ClusterAccessError, ValueError)  # ValueError: text that cannot be sent
    return Input(source, EventRecorder(source.objects(), config.node_name, metrics, errors), watches)


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
