"""Objects from a Kubernetes API server: one thread for each kind, over one set of credentials."""

import threading
import time

import structlog

from kproxy.sources.base import Sink
from kproxy.sources.cluster import ClusterAccess, ClusterAccessError
from kproxy.sources.config import KubernetesSourceConfig
from kproxy.sources.listing import StreamedListSupport, resources
from kproxy.sources.objects import ObjectApi
from kproxy.sources.reflector import Reflector, WatchStatus
from kproxy.sources.transport import Observe, Transport

__all__ = ["ClusterAccess", "ClusterAccessError", "KubernetesSource", "KubernetesSourceConfig", "WatchStatus"]

log = structlog.stdlib.get_logger(__name__)


class KubernetesSource:
    """Lists and watches Services, EndpointSlices and one Node (implements Source)."""

    def __init__(
        self,
        access: ClusterAccess,
        node: str | None = None,
        config: KubernetesSourceConfig | None = None,
        observe: Observe = lambda *_: None,
    ) -> None:
        """`node` is the name of the Node to watch; None: no Node. `observe` is told of each request."""
        self._config = config or KubernetesSourceConfig()
        self._transport = Transport(access, self._config.transport, observe)
        support = StreamedListSupport(self._config)
        self._reflectors = tuple(
            Reflector(self._transport, each, self._config, support) for each in resources(node)
        )

    def status(self) -> tuple[WatchStatus, ...]:
        """How the watch of each kind is doing; may be called from any thread at any time."""
        return tuple(each.status for each in self._reflectors)

    def objects(self) -> ObjectApi:
        """What reads and writes single objects, over the same connections and credentials."""
        return ObjectApi(self._transport)

    def run(self, sink: Sink, stop: threading.Event) -> None:
        """Feed `sink` until `stop` is set; can be run once.

        Raises ClusterAccessError at once if the configuration cannot be used; later failures are retried.
        """
        self._transport.load()
        threads = [
            threading.Thread(
                target=each.run, args=(sink, stop), name=f"watch-{each.status.kind.lower()}", daemon=True
            )
            for each in self._reflectors
        ]
        for thread in threads:
            thread.start()
        stop.wait()
        self._transport.close()
        deadline = time.monotonic() + self._config.stop_seconds
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                log.warning("watch_abandoned", thread=thread.name)
