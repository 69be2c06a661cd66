"""Objects from a Kubernetes API server: one thread for each kind, over one set of credentials."""

import threading
import time
from collections.abc import Callable

import structlog

from kproxy.sources.api_client import ObjectApi
from kproxy.sources.base import Sink
from kproxy.sources.cluster import ClusterAccess, ClusterAccessError
from kproxy.sources.config import KubernetesSourceConfig
from kproxy.sources.listing import SERVICE_CIDRS, StreamedListSupport, resources
from kproxy.sources.reflector import Reflector, WatchStatus
from kproxy.sources.servers import Server
from kproxy.sources.transport import Observe, Transport
from kproxy.state.decode import Kind

__all__ = ["ClusterAccess", "ClusterAccessError", "KubernetesSource", "KubernetesSourceConfig", "WatchStatus"]

log = structlog.stdlib.get_logger(__name__)


class KubernetesSource:
    """Lists and watches Services, EndpointSlices, one Node, ServiceCIDRs on demand (implements Source)."""

    def __init__(
        self,
        access: ClusterAccess,
        node: str | None = None,
        config: KubernetesSourceConfig | None = None,
        observe: Observe = lambda *_: None,
        moved: Callable[[], None] = lambda: None,
    ) -> None:
        """`node` is the name of the Node to watch; None: no Node. `observe` is told of each request.

        `moved` is called from any thread when `servers` changed.
        """
        self._config = config or KubernetesSourceConfig()
        self._transport = Transport(access, self._config.transport, observe, moved)
        support = StreamedListSupport(self._config)
        self._reflectors = tuple(
            Reflector(self._transport, each, self._config, support) for each in resources(node)
        )
        self._service_cidrs = Reflector(self._transport, SERVICE_CIDRS, self._config, support)
        self._service_cidrs_wanted = threading.Event()

    def status(self) -> tuple[WatchStatus, ...]:
        """How the watch of each kind is doing; may be called from any thread at any time.

        A kind that is not asked for, or that the server has or gives none of, is left out.
        """
        found = tuple(each.status for each in self._reflectors)
        optional = self._service_cidrs
        if not self._service_cidrs_wanted.is_set() or optional.unavailable:
            return found
        return (*found, optional.status)

    @property
    def servers(self) -> frozenset[Server]:
        """Where API servers are reached; may be asked from any thread."""
        return self._transport.servers

    def watch_service_cidrs(self) -> None:
        """Watch ServiceCIDRs too from now on; may be called from any thread, even before `run`."""
        self._service_cidrs_wanted.set()

    def objects(self) -> ObjectApi:
        """What reads and writes single objects, over the same connections and credentials."""
        return ObjectApi(self._transport)

    def run(self, sink: Sink, stop: threading.Event) -> None:
        """Feed `sink` until `stop` is set; can be run once.

        Raises ClusterAccessError at once if the configuration cannot be used; later failures are retried.
        """
        self._transport.load()
        work = {each.status.kind: each.run for each in self._reflectors}
        work[Kind.SERVICE_CIDR] = self._run_service_cidrs
        threads = [
            threading.Thread(target=run, args=(sink, stop), name=f"watch-{kind.lower()}", daemon=True)
            for kind, run in work.items()
        ]
        for thread in threads:
            thread.start()
        stop.wait()
        self._service_cidrs_wanted.set()
        self._transport.close()
        deadline = time.monotonic() + self._config.stop_seconds
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                log.warning("watch_abandoned", thread=thread.name)

    def _run_service_cidrs(self, sink: Sink, stop: threading.Event) -> None:
        self._service_cidrs_wanted.wait()
        self._service_cidrs.run(sink, stop)
