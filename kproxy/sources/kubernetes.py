"""Objects from a Kubernetes API server: one thread per kind, over one set of credentials.

Required kinds are watched from the start, optional ones once `watch` names them.
"""

import threading
import time
from collections.abc import Callable, Iterable

import structlog

from kproxy.sources.api_client import ObjectApi
from kproxy.sources.base import Sink
from kproxy.sources.cluster import ClusterAccess, ClusterAccessError
from kproxy.sources.config import KubernetesSourceConfig
from kproxy.sources.listing import StreamedListSupport, resources
from kproxy.sources.reflector import Reflector, WatchStatus
from kproxy.sources.servers import Server
from kproxy.sources.transport import Observe, Transport
from kproxy.state.kinds import KINDS, Kind

__all__ = ["ClusterAccess", "ClusterAccessError", "KubernetesSource", "KubernetesSourceConfig", "WatchStatus"]

log = structlog.stdlib.get_logger(__name__)


class KubernetesSource:
    """Lists and watches required kinds, and optional ones on demand (implements Source)."""

    def __init__(
        self,
        access: ClusterAccess,
        node: str | None = None,
        config: KubernetesSourceConfig | None = None,
        observe: Observe = lambda *_: None,
        moved: Callable[[], None] = lambda: None,
        kinds: Iterable[Kind] = KINDS,
    ) -> None:
        """`node` is the name of this node; None: do not watch a Node. `observe` is called after each request.

        `moved` is called from any thread when `servers` changed.
        """
        self._config = config or KubernetesSourceConfig()
        self._transport = Transport(access, self._config.transport, observe, moved)
        support = StreamedListSupport(self._config)
        self._reflectors = {
            each.kind: Reflector(self._transport, each, self._config, support)
            for each in resources(node, kinds)
        }
        self._wanted = {kind: threading.Event() for kind in self._reflectors}
        self.watch(kind for kind in self._reflectors if kind.required)

    def status(self) -> tuple[WatchStatus, ...]:
        """The state of the watch of each kind; may be called from any thread at any time.

        Kinds that are not needed, or that the server does not have or refuses, are left out.
        """
        return tuple(
            each.status
            for kind, each in self._reflectors.items()
            if self._wanted[kind].is_set() and not each.unavailable
        )

    @property
    def servers(self) -> frozenset[Server]:
        """The addresses and ports of API servers; may be read from any thread."""
        return self._transport.servers

    def watch(self, kinds: Iterable[Kind]) -> None:
        """Watch these kinds too from now on; may be called from any thread, even before `run`.

        Raises KeyError for a kind that this source was not made for.
        """
        for kind in kinds:
            self._wanted[kind].set()

    def objects(self) -> ObjectApi:
        """A client for single objects, over the same connections and credentials."""
        return ObjectApi(self._transport)

    def run(self, sink: Sink, stop: threading.Event) -> None:
        """Feed `sink` until `stop` is set; can be run once.

        Raises ClusterAccessError at once if the configuration cannot be used; later failures are retried.
        """
        self._transport.load()
        threads = [
            threading.Thread(
                target=self._run_kind, args=(kind, sink, stop), name=f"watch-{kind.name.lower()}", daemon=True
            )
            for kind in self._reflectors
        ]
        for thread in threads:
            thread.start()
        stop.wait()
        self.watch(self._reflectors)
        self._transport.close()
        deadline = time.monotonic() + self._config.stop_seconds
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                log.warning("watch_abandoned", thread=thread.name)

    def _run_kind(self, kind: Kind, sink: Sink, stop: threading.Event) -> None:
        self._wanted[kind].wait()
        self._reflectors[kind].run(sink, stop)
